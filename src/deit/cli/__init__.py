"""Command line: one thin module per command. Heavy libraries are imported inside the commands."""

import time

STARTED = time.monotonic()  # of the program, which the time of --minutes includes
