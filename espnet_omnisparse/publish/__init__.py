"""A family on the Hugging Face Hub: a repository per size, and one of the supernet."""
