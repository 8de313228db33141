"""Benchmark of a model on this machine: latency, throughput from pixels and from files, and memory."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.errors import UserError
from deit.images.decoding import configure_pillow
from deit.inference.bundle import Precision, is_bundle, open_bundle
from deit.inference.predictor import Predictor
from deit.inference.runtime_selection import save_speeds
from deit.inference.runtimes import PerformanceHint, Runtime, RuntimeName, available_runtimes
from deit.system.hardware import cores
from deit.system.malloc import retain_freed_memory
from deit.system.processes import run_in_new_process
from deit.system.progress import print_status
from deit.system.threads import ordered_map

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
GPU_BATCH_SIZES = (1, 16, 64, 256, 512)
PHOTO_SIZE = (500, 375)  # the most frequent size in ImageNet
FILES = 64
MIN_CALLS = 20
MATRIX_SIZES = (256, 512, 1024, 2048)  # of the square matrices whose products measure the peak
MAX_PRODUCT_SECONDS = 0.5  # larger matrices are left out; without AVX-512, a large product in bf16 or int8 takes minutes


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements.

    Attributes:
        low: 25th percentile.
        median: 50th percentile.
        high: 75th percentile.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Returns the quartiles of one or more values."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(low, median, high)


@dataclass(frozen=True)
class RuntimeBenchmark:
    """Measurements of a model on one runtime, in a process of its own.

    Attributes:
        runtime: name of the runtime.
        precision: precision of the model.
        device: device of the runtime.
        load_seconds: time from the start of loading to the first prediction.
        latency_ms: latency of one image from pixels to logits, 50th and 99th percentile.
        file_latency_ms: latency of one JPEG file to its labels, 50th and 99th percentile.
        images_per_second: batch size -> throughput from pixels to logits, at the concurrency of the runtime.
        files_per_second: throughput from JPEG files to labels.
        steady_mib: resident memory after the measurements, including Python and the libraries.
        peak_mib: maximum resident memory.
        share_of_peak: operations per second at the best batch size, relative to those of a large matrix product in the same
            precision; None on a GPU.
    """

    runtime: RuntimeName
    precision: Precision
    device: str
    load_seconds: float
    latency_ms: tuple[float, float]
    file_latency_ms: tuple[float, float]
    images_per_second: dict[int, Quartiles]
    files_per_second: Quartiles
    steady_mib: float
    peak_mib: float
    share_of_peak: float | None = None

    @property
    def best(self) -> tuple[int, Quartiles]:
        """The batch size with the highest median throughput, and this throughput."""
        return max(self.images_per_second.items(), key=lambda item: item[1].median)

    def to_dict(self) -> dict[str, Any]:
        """Returns the measurements as JSON values."""
        return asdict(self)


def benchmark(
    model: str | Path,
    device: str = "auto",
    runtimes: Sequence[RuntimeName] = (),
    images: Sequence[Path] = (),
    seconds: float = 2.0,
) -> list[RuntimeBenchmark]:
    """Measures a model on several runtimes, one after the other, and saves the speeds of a bundle for the runtime selection.

    Args:
        model: a model of any kind that :meth:`Predictor.from_pretrained` takes.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        runtimes: runtimes to measure; if empty, all installed ones that support the model, except ``torch-compiled``.
        images: files to measure with; if empty, 64 synthetic photos of 500 x 375 pixels.
        seconds: duration of each measurement.

    Raises:
        CheckpointError: the model is not readable.
        MissingExtraError: a requested runtime is not installed.
        UserError: a runtime or the device does not fit the model.
        WorkError: a measurement was killed.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"A measurement cannot take {seconds:g} seconds", "pass a positive number of seconds")
    bundle = open_bundle(model) if is_bundle(model) else None
    runtime_device = "cpu" if device == "auto" and bundle is not None and bundle.metadata.format != "torch" else device
    jobs: list[tuple[RuntimeName, Precision]]
    if bundle is not None:
        names = runtimes or available_runtimes(bundle.metadata.format, runtime_device)
        jobs = [(name, bundle.metadata.precision) for name in names]
    else:
        jobs = [(name, precision) for name in runtimes or ("torch",) for precision in ("fp32", "bf16")]
    flops = _flops_per_image(model)  # also finds an unreadable model before the first measurement
    if not jobs:
        raise UserError(f"No installed runtime runs {model} on {device}", "see `deit info`")
    results: list[RuntimeBenchmark] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in images] or [str(path) for path in write_synthetic_photos(Path(folder), FILES)]
        for name, precision in jobs:
            print_status(f"Measuring {name} in {precision}")
            # One process for each: libraries keep threads and memory that would affect the next measurement.
            arguments = (str(model), name, precision, runtime_device, files, seconds)
            result: RuntimeBenchmark = run_in_new_process(f"Measuring {name} in {precision}", _measure_in_process, *arguments)
            if result.device == "cpu":
                result = replace(result, share_of_peak=result.best[1].median * flops / measure_matmul_peak(precision))
            results.append(result)
    if bundle is not None:
        save_speeds(bundle, runtime_device, {result.runtime: result.best[1].median for result in results})
    return results


def _measure_in_process(
    model: str, runtime: RuntimeName, precision: Precision, device: str, files: list[str], seconds: float
) -> RuntimeBenchmark:
    """Measures one runtime. Runs in a process of its own."""
    configure_pillow()
    retain_freed_memory()

    def load(performance_hint: PerformanceHint) -> Predictor:
        return Predictor.from_pretrained(model, device, runtime=runtime, precision=precision, performance_hint=performance_hint)

    start = time.perf_counter()
    for_latency = load("latency")
    for_latency(files[:1])
    load_seconds = time.perf_counter() - start
    image = np.stack([for_latency.preprocess(files[0])])  # (1, C, height, width)
    latency, file_latency = _measure_latencies(for_latency, image, files, seconds)
    del for_latency
    for_throughput = load("throughput")
    model_runtime = for_throughput.runtime
    batch_sizes = GPU_BATCH_SIZES if model_runtime.device.startswith("cuda") else BATCH_SIZES
    images_per_second = {
        size: Quartiles.of(measure_throughput(model_runtime, np.repeat(image, size, axis=0), seconds)) for size in batch_sizes
    }
    many_files = files * max(1, int(images_per_second[model_runtime.batch_size].median * seconds / 3 / len(files)))
    for_throughput(many_files)
    durations = time_calls(lambda: for_throughput(many_files), seconds, min_calls=3)
    return RuntimeBenchmark(
        runtime,
        precision,
        model_runtime.device,
        load_seconds,
        latency,
        file_latency,
        images_per_second,
        Quartiles.of([len(many_files) / duration for duration in durations]),
        *resident_memory(),
    )


def _measure_latencies(
    predictor: Predictor, image: np.ndarray, files: list[str], seconds: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the latency percentiles of one image's pixels, and of one file."""
    paths = itertools.cycle(files)
    return (
        latency_percentiles(time_calls(lambda: predictor.runtime(image), seconds)),
        latency_percentiles(time_calls(lambda: predictor([next(paths)]), seconds)),
    )


def time_calls(function: Callable[[], object], seconds: float, min_calls: int = MIN_CALLS) -> list[float]:
    """Calls a function repeatedly for ``seconds``, after a warm-up call, and returns the duration of each call in seconds."""
    function()
    end = time.perf_counter() + seconds
    durations: list[float] = []
    while len(durations) < min_calls or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return durations


def measure_throughput(runtime: Runtime, pixels: np.ndarray, seconds: float, turns: int = 5) -> list[float]:
    """Returns the images per second of each turn, at the concurrency of the runtime."""
    start = time.perf_counter()
    runtime(pixels)
    once = time.perf_counter() - start
    calls = max(2, int(seconds / turns / once)) * runtime.concurrency
    durations = time_calls(lambda: _run_concurrently(runtime, pixels, calls), 0, turns)
    return [calls * len(pixels) / duration for duration in durations]


def latency_percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Returns the 50th and the 99th percentile in milliseconds."""
    median, p99 = (np.percentile(seconds, (50, 99)) * 1e3).tolist()
    return median, p99


def measure_matmul_peak(precision: Precision) -> float:
    """Returns the highest number of operations per second of matrix products of several sizes.

    Uses torch for bf16 and int8, and NumPy for fp32, which is faster there.
    """
    import torch

    torch.set_num_threads(cores())
    peak = 0.0
    for size in MATRIX_SIZES:
        operations = 2 * size**3
        if peak and operations / peak > MAX_PRODUCT_SECONDS:
            break
        fp32 = np.random.default_rng(0).integers(-9, 9, (size, size)).astype(np.float32)
        product: Callable[[], object]
        if precision == "fp32":
            product = partial(np.matmul, fp32, fp32)
        elif precision == "bf16":
            bf16 = torch.from_numpy(fp32).bfloat16()
            product = partial(torch.mm, bf16, bf16)
        else:
            int8 = torch.from_numpy(fp32).to(torch.int8)
            product = partial(torch._int_mm, int8, int8)
        peak = max(peak, operations / min(time_calls(product, 0, 5)))
    return peak


def _flops_per_image(model: str | Path) -> int:
    """Returns the operations per image, from the report of a bundle if it has them."""
    if is_bundle(model) and isinstance(reported := open_bundle(model).metadata.report.get("flops"), int):
        return reported
    from deit.inference.inference_model import InferenceModel, count_flops
    from deit.models.auto import load_classifier

    return count_flops(InferenceModel(load_classifier(model)))


def resident_memory() -> tuple[float, float]:
    """Returns the current and the maximum resident memory of this process in MiB; the maximum twice if only it is known."""
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource  # not available on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return peak, peak
    lines = (line.partition(":") for line in status.read_text().splitlines())
    kibibytes = {name: int(value.split()[0]) for name, _, value in lines if name in ("VmRSS", "VmHWM")}
    return kibibytes["VmRSS"] / 1024, kibibytes["VmHWM"] / 1024


def write_synthetic_photos(folder: Path, count: int) -> list[Path]:
    """Writes JPEG files with large shapes and fine noise, the same on every machine, and returns their paths."""
    paths = []
    for index in range(count):
        rng = np.random.default_rng(index)
        colors = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        shapes = np.asarray(colors.resize(PHOTO_SIZE, Image.Resampling.BICUBIC))
        pixels = shapes + rng.normal(0, 8, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3))
        path = folder / f"{index}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def _run_concurrently(runtime: Runtime, pixels: np.ndarray, calls: int) -> None:
    deque(ordered_map(runtime, [pixels] * calls, runtime.concurrency), maxlen=0)
