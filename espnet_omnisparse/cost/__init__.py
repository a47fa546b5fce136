"""Parameters, MACs, bytes and time: each defined once."""
