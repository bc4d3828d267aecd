"""Writes and reads at many steps, for given keys, values and rates, in a Pallas kernel."""
