"""A supernet's options, and which subnets an update trains."""
