"""Recognition of audio that is still arriving."""
