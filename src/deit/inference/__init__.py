"""Answering: bytes -> pixels -> logits -> names."""
