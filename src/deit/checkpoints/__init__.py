"""Checkpoints: key maps between formats, safe reading, adapting to another model, atomic writing, and publishing."""
