"""One update of a supernet, the models of both tasks, the trainer."""
