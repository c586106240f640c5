"""Images made by rule, for the demonstration and the tests."""
