"""Limits how long the threads of OpenMP, which torch computes with on a CPU, spin while they wait for each other.

A thread that waits at the end of a parallel loop first spins, which lets it go on at once, and then sleeps. GNU OpenMP, which
torch contains on Linux, spins for some 4 ms. That is longer than a turn of the operating system's scheduler: if another program
uses a core, one thread spins on its core while the other one waits for the core to be free, instead of moving to the first.
The limit here costs 2% on a quiet machine, and less than half of the speed beside a busy program
(``benchmarks/busy_machine.py``).
"""

from __future__ import annotations

import os

WAIT_VARIABLE, SPIN_VARIABLE = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPIN_COUNT = 3_000  # some 0.05 ms


def limit_spinning() -> None:
    """Sets the limit for this process and its children, unless the user has set one of the two variables.

    OpenMP reads them when it is loaded: call this before torch is imported. Other implementations than GNU's ignore it.
    """
    if not {WAIT_VARIABLE, SPIN_VARIABLE} & os.environ.keys():
        os.environ[SPIN_VARIABLE] = str(SPIN_COUNT)
