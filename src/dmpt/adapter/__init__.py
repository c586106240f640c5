"""What was trained, as a folder."""
