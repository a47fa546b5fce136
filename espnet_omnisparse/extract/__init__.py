"""A size as a model of its own."""
