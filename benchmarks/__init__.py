"""Benchmarks: ``python -m benchmarks.NAME`` prints a table and, on its last line, the result as JSON."""
