"""A trained model as one file that needs no torch."""
