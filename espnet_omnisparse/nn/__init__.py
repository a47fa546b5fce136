"""The prunable encoders, made of ESPnet's own modules."""
