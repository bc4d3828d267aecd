"""Sweeps: many runs of one recipe with other settings, in parallel on Ray, the worst stopped early."""
