"""From files on disk to batches of aligned samples."""
