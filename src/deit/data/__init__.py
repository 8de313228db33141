"""Data: files -> samples -> batches, each a pure function of integers."""
