"""Commands that measure: ``python -m benchmarks.NAME``. Each prints a table and, on its last line, one JSON object."""
