"""Pretrained encoders from a name and a file, loaded strictly; nothing in a file is executed."""
