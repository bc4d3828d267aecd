"""Sweeps: many runs of one recipe with other settings, side by side on Ray, the worst stopped early."""
