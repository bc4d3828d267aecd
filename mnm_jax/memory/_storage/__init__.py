"""Storages of the fast weights: dense and factored, and either of them kept as the transpose."""
