"""Answering over HTTP. Nothing is here yet."""
