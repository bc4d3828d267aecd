"""Suites: the runs of a comparison as data, and how several processes share them."""
