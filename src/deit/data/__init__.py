"""Data pipeline: files -> samples -> batches. Each sample is a pure function of seed, epoch, index and repeat."""
