"""Selects the runtime of a bundle: the fastest that was measured on this machine, or a default before any measurement."""

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
from deit.inference import optional_libraries
from deit.inference.bundle import Bundle, open_bundle
from deit.inference.loading import load_runtime
from deit.inference.runtimes import (
    FORMAT_RUNTIMES,
    RUNTIME_LIBRARIES,
    Runtime,
    RuntimeName,
    available_runtimes,
)
from deit.system.files import read_json, write_json
from deit.system.hardware import cores, cpu_name, has_bf16
from deit.system.home import cache_directory
from deit.system.threads import ordered_map

MAX_ENTRIES = 200
REPEATS = 5
REMEDY = f"pip install 'deit[{optional_libraries.EXTRA}]'"
ONLY_RUNTIME = "the only installed runtime for it"


@dataclass(frozen=True)
class RuntimeChoice:
    """A selected runtime.

    Attributes:
        name: name of the runtime.
        reason: why it was selected, as part of a sentence.
    """

    name: RuntimeName
    reason: str


def select_runtime(bundle: Bundle, device: str = "cpu", measure: bool = False) -> RuntimeChoice:
    """Selects the fastest runtime that was measured with a bundle on this machine, or the first one if none was.

    Args:
        bundle: an exported model.
        device: device to run on.
        measure: measure now if nothing was measured before and several runtimes are available; this takes seconds.

    Raises:
        MissingExtraError: no runtime for the bundle is installed.
    """
    names = available_runtimes(bundle.metadata.format, device)
    if not names:
        raise MissingExtraError(f"A bundle in the format {bundle.metadata.format}", optional_libraries.EXTRA)
    if len(names) == 1:
        return RuntimeChoice(names[0], ONLY_RUNTIME)
    speeds = {name: speed for name, speed in _read_speeds().get(_speeds_key(bundle, device), {}).items() if name in names}
    if not speeds and measure:
        speeds = {name: measure_speed(load_runtime(bundle, name, device, "throughput"), bundle) for name in names}
        save_speeds(bundle, device, speeds)
    if not speeds:
        return RuntimeChoice(names[0], "usually the fastest; `deit benchmark` measures it")
    fastest = max(names, key=lambda name: speeds.get(name, 0.0))
    listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1]))
    return RuntimeChoice(fastest, f"the fastest measured here, in images/s: {listed}")


def describe_machine(name: str | None = None) -> dict[str, Any]:
    """Describes the hardware, the installed runtimes, and which runtime is selected.

    Args:
        name: path of a bundle, to describe only its runtime; None describes that of each format.

    Raises:
        CheckpointError: ``name`` is not a readable bundle.
    """
    choices: list[tuple[str, str, str]] = []
    if name is not None:
        bundle = open_bundle(name)
        choice = select_runtime(bundle)
        choices.append((str(bundle.path), choice.name, choice.reason))
    else:
        for format in FORMAT_RUNTIMES:
            names = available_runtimes(format)
            reason = ONLY_RUNTIME if len(names) == 1 else "usually the fastest; measured for each bundle"
            choices.append((f"a bundle in the format {format}", names[0] if names else "", reason if names else REMEDY))
        choices.append(("a model that was not exported", "torch", "runs all models"))
    return {
        "deit": importlib.metadata.version("deit"),
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": cores(),
        "bf16": has_bf16(),
        "runtimes": [
            {
                "name": runtime,
                "version": optional_libraries.version(library),
                "runs": ", ".join(format for format, runtimes in FORMAT_RUNTIMES.items() if runtime in runtimes),
                "remedy": REMEDY,
            }
            for runtime, library in RUNTIME_LIBRARIES.items()
        ],
        "choices": [{"what": what, "runtime": runtime, "reason": reason} for what, runtime, reason in choices],
        "measurements": str(speeds_file()),
    }


def save_speeds(bundle: Bundle, device: str, speeds: Mapping[RuntimeName, float]) -> None:
    """Saves the images per second of a bundle's runtimes on this machine. Does nothing if the file is not writable."""
    saved, key = _read_speeds(), _speeds_key(bundle, device)
    entries = {**saved, key: saved.get(key, {}) | {str(name): speed for name, speed in speeds.items()}}
    recent = dict(list(entries.items())[-MAX_ENTRIES:])
    try:
        write_json(speeds_file(), {"written": date.today().isoformat(), "speeds": recent})
    except OSError:
        return


def speeds_file() -> Path:
    """Returns the path of the saved measurements."""
    return cache_directory() / "runtimes.json"


def measure_speed(runtime: Runtime, bundle: Bundle, repeats: int = REPEATS) -> float:
    """Measures the images per second of a runtime at full concurrency: the median of a few short runs after a warm-up."""
    pixels = np.zeros((runtime.batch_size, *bundle.metadata.input_shape), bundle.metadata.input_dtype)
    calls = 2 * runtime.concurrency
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        deque(ordered_map(runtime, [pixels] * calls, runtime.concurrency), maxlen=0)
        seconds.append(time.perf_counter() - start)
    return calls * runtime.batch_size / median(seconds[1:])


def _speeds_key(bundle: Bundle, device: str) -> str:
    """Hashes everything that a measurement depends on: the graph, the device, the CPU, and the versions of the libraries."""
    versions = [f"{name} {optional_libraries.version(name)}" for name in sorted(set(RUNTIME_LIBRARIES.values()))]
    hardware = [device, cpu_name(), str(cores())]
    lines = [*bundle.metadata.files.values(), *hardware, platform.python_version(), *versions]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _read_speeds() -> dict[str, dict[str, float]]:
    """Reads the saved measurements; a missing or corrupt file has none."""
    try:
        speeds = read_json(speeds_file()).get("speeds")
    except CheckpointError:
        return {}
    if not isinstance(speeds, dict):
        return {}
    return {
        key: {name: float(speed) for name, speed in row.items() if isinstance(speed, int | float)}
        for key, row in speeds.items()
        if isinstance(row, dict)
    }
