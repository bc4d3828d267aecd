"""Benchmarks: one suite per file, and how they are measured, resumed and drawn."""
