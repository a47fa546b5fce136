"""Masks, gates, schedules and subnets: PyTorch alone, nothing of ESPnet."""
