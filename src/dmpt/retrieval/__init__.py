"""From features to ranked lists and the numbers of the field."""
