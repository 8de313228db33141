"""Inference: encoded image -> pixels -> logits -> class names."""
