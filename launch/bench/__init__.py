"""Benchmarks: the suites, one per file, and the code that measures, resumes and draws them."""
