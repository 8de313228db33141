"""Which runtime runs a bundle here: what was measured on this machine decides, and before that a rule."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deit.errors import CheckpointError, MissingExtraError
from deit.inference import libraries
from deit.inference.bundle import Bundle, open_bundle
from deit.inference.loading import open_runtime
from deit.inference.runtimes import LIBRARIES, RUNTIMES, Runtime, RuntimeName, cache_directory, usable
from deit.system.files import read_json, write_json
from deit.system.hardware import cores, cpu_name, has_bf16
from deit.system.threads import ordered_map

MAX_ENTRIES = 200
REPEATS = 5
REMEDY = f"pip install 'deit[{libraries.EXTRA}]'"


@dataclass(frozen=True)
class Choice:
    """A runtime, and why it.

    Attributes:
        name: of the runtime.
        reason: half a sentence.
    """

    name: RuntimeName
    reason: str


def choose_runtime(bundle: Bundle, device: str = "cpu", measure: bool = False) -> Choice:
    """The runtime for a bundle: the fastest that was measured with it on this machine, else the first of those installed.

    Args:
        measure: where nothing was measured yet and there is a choice, do it now; it takes seconds.

    Raises:
        MissingExtraError: none that can run it is installed.
    """
    names = usable(bundle.facts.format, device)
    if not names:
        raise MissingExtraError(f"A bundle in the format {bundle.facts.format}", libraries.EXTRA)
    if len(names) == 1:
        return Choice(names[0], "the only one here that runs it")
    speeds = {name: speed for name, speed in _read().get(_key(bundle, device), {}).items() if name in names}
    if not speeds and measure:
        speeds = {name: images_per_second(open_runtime(bundle, name, device, "throughput"), bundle) for name in names}
        remember(bundle, device, speeds)
    if not speeds:
        return Choice(names[0], "usually the fastest; `deit benchmark` measures it")
    best = max(names, key=lambda name: speeds.get(name, 0.0))
    listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1]))
    return Choice(best, f"the fastest measured here, in images/s: {listed}")


def describe_machine(name: str | None = None) -> dict[str, Any]:
    """What there is to answer with on this machine, and which runtime a bundle, or each format, gets.

    Raises:
        CheckpointError: ``name`` is no readable bundle.
    """
    bundle = None if name is None else open_bundle(name)
    choices = []
    if bundle is not None:
        choices.append((str(bundle.path), *_named(bundle)))
    else:
        for form in RUNTIMES:
            names = usable(form)
            reason = "the only one here that runs it" if len(names) == 1 else "usually the fastest; measured for each bundle"
            choices.append((f"a bundle in the format {form}", names[0] if names else "", reason if names else REMEDY))
        choices.append(("a model that was not exported", "torch", "runs every model as it is"))
    return {
        "deit": importlib.metadata.version("deit"),
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": cores(),
        "bf16": has_bf16(),
        "runtimes": [
            {"name": name, "version": libraries.version(library), "runs": ", ".join(_formats(name)), "remedy": REMEDY}
            for name, library in LIBRARIES.items()
        ],
        "choices": [{"what": what, "runtime": runtime, "reason": reason} for what, runtime, reason in choices],
        "measurements": str(cache_file()),
    }


def _named(bundle: Bundle) -> tuple[str, str]:
    choice = choose_runtime(bundle)
    return choice.name, choice.reason


def _formats(runtime: RuntimeName) -> list[str]:
    return [form for form, names in RUNTIMES.items() if runtime in names]


def remember(bundle: Bundle, device: str, speeds: Mapping[RuntimeName, float]) -> None:
    """Keep images per second of a bundle's runtimes on this machine. Where nothing can be written, nothing is kept."""
    kept, key = _read(), _key(bundle, device)
    entries = {**kept, key: kept.get(key, {}) | {str(name): speed for name, speed in speeds.items()}}
    recent = dict(list(entries.items())[-MAX_ENTRIES:])
    try:
        write_json(cache_file(), {"written": date.today().isoformat(), "speeds": recent})
    except OSError:
        return


def cache_file() -> Path:
    """Where measurements are kept."""
    return cache_directory() / "runtimes.json"


def images_per_second(runtime: Runtime, bundle: Bundle, repeats: int = REPEATS) -> float:
    """A short measurement with all of the runtime's calls at work, median of several; the first is not counted."""
    pixels = np.zeros((runtime.batch, *bundle.facts.shape), bundle.facts.pixels)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        deque(ordered_map(runtime, [pixels] * 2 * runtime.calls, runtime.calls), maxlen=0)
        seconds.append(time.perf_counter() - start)
    return 2 * runtime.calls * runtime.batch / median(seconds[1:])


def _key(bundle: Bundle, device: str) -> str:
    """What a measurement depends on: the graph, the processor, and the libraries' versions."""
    versions = [f"{name} {libraries.version(name)}" for name in sorted(set(LIBRARIES.values()))]
    parts = [*bundle.facts.files.values(), device, cpu_name(), str(cores()), platform.python_version(), *versions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read() -> dict[str, dict[str, float]]:
    """What was kept; a file that is missing or damaged holds nothing."""
    try:
        speeds = read_json(cache_file()).get("speeds")
    except CheckpointError:
        return {}
    if not isinstance(speeds, dict):
        return {}
    return {
        key: {name: float(speed) for name, speed in row.items() if isinstance(speed, int | float)}
        for key, row in speeds.items()
        if isinstance(row, dict)
    }
