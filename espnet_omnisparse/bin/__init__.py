"""ESPnet's commands of the same names, with our tasks."""
