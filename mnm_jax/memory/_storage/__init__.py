"""Storages of the fast weights: dense, factored, and either of them with its transpose kept."""
