"""HTML: frame, charts, pictures."""
