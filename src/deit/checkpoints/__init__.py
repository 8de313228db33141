"""Saved weights: the key tables between formats, safe reading, atomic writing."""
