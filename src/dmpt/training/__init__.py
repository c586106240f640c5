"""The recipe of section 4.2, and its run folder."""
