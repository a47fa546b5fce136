"""Recordings as text, with the times of their words."""
