"""What supernet training and streaming cost, measured."""
