"""Evolutionary search for the best sparsities within budgets."""
