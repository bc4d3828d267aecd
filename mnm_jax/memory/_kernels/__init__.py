"""Pallas kernels that keep fast weights on the chip: chunks of a layer, and writes and reads of given tokens."""
