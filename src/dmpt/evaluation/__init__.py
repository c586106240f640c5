"""A trained model on a test split."""
