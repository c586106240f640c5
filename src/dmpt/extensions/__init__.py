"""What we added to the paper, one idea a file."""
