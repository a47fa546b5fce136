"""Tables and plots, generated from what was measured."""
