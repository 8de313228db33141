"""Limits how long the threads of OpenMP, which torch computes with on a CPU, spin while they wait for each other.

A thread that waits at the end of a parallel loop first spins, which lets it go on at once, and then sleeps. GNU OpenMP, which
torch contains on Linux, spins for some 4 ms. That is longer than a turn of the operating system's scheduler: if another program
uses a core, one thread spins on its core while the other one waits for the core to be free, instead of moving to the first.
The limit here costs 2% on a quiet machine, and less than half of the speed beside a busy program
(``benchmarks/busy_machine.py``).

Each Python thread that computes has OpenMP threads of its own. Once there are more of them than cores, GNU OpenMP hardly spins
at all, also if only one Python thread computes at a time: a model in a thread of a server is slower by a third. An active wait
policy lets it spin ten times as long then; the limit holds for it, too.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

WAIT_VARIABLE, SPIN_VARIABLE = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPIN_COUNT = 3_000  # some 0.05 ms


def limit_spinning() -> None:
    """Sets the limit for this process and its children, unless the user has set one of the two variables.

    OpenMP reads them when it is loaded: call this before torch is imported. Other implementations than GNU's ignore the limit,
    and would spin without end by an active policy, so that it is set only where torch contains GNU OpenMP.
    """
    if {WAIT_VARIABLE, SPIN_VARIABLE} & os.environ.keys():
        return
    os.environ[SPIN_VARIABLE] = str(SPIN_COUNT)
    if torch_contains_gnu_openmp():
        os.environ[WAIT_VARIABLE] = "ACTIVE"


def torch_contains_gnu_openmp() -> bool:
    """Returns whether the installed torch comes with GNU OpenMP, as the wheels for Linux do. Does not import torch."""
    spec = importlib.util.find_spec("torch")
    return spec is not None and any(
        any(Path(folder, "lib").glob("libgomp*")) for folder in spec.submodule_search_locations or ()
    )
