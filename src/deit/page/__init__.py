"""The files of the page of ``deit serve`` and ``deit export --to web``."""
