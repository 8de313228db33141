"""Serves models over HTTP; extra ``serve``."""
