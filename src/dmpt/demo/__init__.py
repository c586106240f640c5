"""The method on a drawn world."""
