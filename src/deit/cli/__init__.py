"""Command line: one thin module per command. Heavy libraries are imported inside the commands."""
