"""A size as files for other run times."""
