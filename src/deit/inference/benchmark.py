"""How fast a model answers here: one image at once, and many; from pixels, and from files; and what memory it takes."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.errors import UserError
from deit.inference.bundle import Precision, is_bundle, open_bundle
from deit.inference.predictor import Predictor
from deit.inference.runtime_selection import remember
from deit.inference.runtimes import Runtime, RuntimeName, Work, usable
from deit.system.hardware import cores
from deit.system.progress import print_status
from deit.system.threads import ordered_map

BATCHES = (1, 2, 4, 8, 16, 32)
GPU_BATCHES = (1, 16, 64, 256, 512)
PHOTO = (500, 375)  # as ImageNet's mostly are
FILES = 64
LEAST_CALLS = 20
PRODUCT = 2048  # the side of the matrices that the peak is measured with


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements: the median, and the quartiles about it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one or more values."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(low, median, high)


@dataclass(frozen=True)
class Figures:
    """What was measured of a model on one runtime, in a process of its own.

    Attributes:
        runtime: its name; ``precision`` and ``device`` likewise.
        load_seconds: from the start of loading to the first answer.
        latency_ms: of one image's pixels, 50th and 99th percentile; ``file_latency_ms`` from a JPEG file to labels.
        images_per_second: by images a call, with as many calls at once as the runtime takes.
        files_per_second: JPEG files to labels, many at once.
        share_of_peak: operations of the best rate, by those of a large matrix product in the same precision; None on a GPU.
        steady_mib: resident memory after all of it; ``peak_mib`` the most that it was; both with Python and the libraries.
    """

    runtime: RuntimeName
    precision: Precision
    device: str
    load_seconds: float
    latency_ms: tuple[float, float]
    file_latency_ms: tuple[float, float]
    images_per_second: dict[int, Spread]
    files_per_second: Spread
    steady_mib: float
    peak_mib: float
    share_of_peak: float | None = None

    @property
    def best(self) -> tuple[int, Spread]:
        """The number of images a call with the highest rate, and the rate."""
        return max(self.images_per_second.items(), key=lambda item: item[1].median)

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def benchmark(
    model: str | Path,
    device: str = "auto",
    runtimes: Sequence[RuntimeName] = (),
    images: Sequence[Path] = (),
    seconds: float = 2.0,
) -> list[Figures]:
    """Measure a model on several runtimes, one after the other, and remember which was the fastest for a bundle.

    Args:
        model: as :meth:`Predictor.from_pretrained` takes it.
        device: likewise.
        runtimes: which; when empty, all that are installed and run the model, but for ``torch-compiled``.
        images: files to measure with; 64 made photographs of 500 x 375 when empty.
        seconds: for each figure.

    Raises:
        UserError: as :meth:`Predictor.from_pretrained`.
    """
    jobs: list[tuple[RuntimeName, Precision]]
    bundle = open_bundle(model) if is_bundle(model) else None
    place = "cpu" if device == "auto" and bundle is not None and bundle.facts.format != "torch" else device
    if bundle is not None:
        jobs = [(name, bundle.facts.precision) for name in runtimes or usable(bundle.facts.format, place)]
    else:
        jobs = [(name, precision) for name in runtimes or ("torch",) for precision in ("fp32", "bf16")]
    operations = _operations(model)  # and so a model that cannot be read is found here
    if not jobs:
        raise UserError(f"Nothing that is installed here runs {model} on {device}", "see `deit info`")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in images] or [str(path) for path in made_photos(Path(folder), FILES)]
        for name, precision in jobs:
            print_status(f"Measuring {name} in {precision}")
            # A process for each: libraries keep threads and memory that would weigh on the next.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                figures = pool.submit(measure, str(model), name, precision, place, files, seconds).result()
            if figures.device == "cpu":
                share = figures.best[1].median * operations / peak_rate(precision)
                figures = replace(figures, share_of_peak=share)
            measured.append(figures)
    if bundle is not None:
        remember(bundle, place, {figures.runtime: figures.best[1].median for figures in measured})
    return measured


def measure(model: str, runtime: RuntimeName, precision: Precision, device: str, files: list[str], seconds: float) -> Figures:
    """Measure one runtime, in this process."""

    def loaded(work: Work) -> Predictor:
        return Predictor.from_pretrained(model, device, runtime=runtime, precision=precision, work=work)

    start = time.perf_counter()
    quick = loaded("latency")
    quick(files[:1])
    load_seconds = time.perf_counter() - start
    one = np.stack([quick.pixels(files[0])])
    latency, file_latency = _latencies(quick, one, files, seconds)
    del quick
    many = loaded("throughput")
    batches = GPU_BATCHES if many.runtime.device.startswith("cuda") else BATCHES
    rates = {batch: Spread.of(throughput(many.runtime, np.repeat(one, batch, axis=0), seconds)) for batch in batches}
    listed = files * max(1, int(rates[many.runtime.batch].median * seconds / 3 / len(files)))
    many(listed)
    files_per_second = Spread.of([len(listed) / value for value in timed(lambda: many(listed), seconds, least=3)])
    return Figures(
        runtime,
        precision,
        many.runtime.device,
        load_seconds,
        latency,
        file_latency,
        rates,
        files_per_second,
        *memory(),
    )


def _latencies(
    predictor: Predictor, one: np.ndarray, files: list[str], seconds: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of one image's pixels, and of one file."""
    paths = itertools.cycle(files)
    return (
        percentiles(timed(lambda: predictor.runtime(one), seconds)),
        percentiles(timed(lambda: predictor([next(paths)]), seconds)),
    )


def timed(function: Callable[[], object], seconds: float, least: int = LEAST_CALLS) -> list[float]:
    """Seconds of each of as many calls as fit, after one that is not counted."""
    function()
    end = time.perf_counter() + seconds
    taken: list[float] = []
    while len(taken) < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def throughput(runtime: Runtime, pixels: np.ndarray, seconds: float, turns: int = 5) -> list[float]:
    """Images per second of each turn, with all of the runtime's calls at work."""
    start = time.perf_counter()
    runtime(pixels)
    once = time.perf_counter() - start
    calls = max(2, int(seconds / turns / once)) * runtime.calls
    return [calls * len(pixels) / taken for taken in timed(lambda: _calls(runtime, pixels, calls), 0, turns)]


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """50th and 99th, in milliseconds."""
    median, late = (np.percentile(seconds, (50, 99)) * 1e3).tolist()
    return median, late


def peak_rate(precision: Precision) -> float:
    """Operations a second of a large matrix product in torch, the best of a few; of fp32 in NumPy, which is faster there."""
    import torch

    torch.set_num_threads(cores())
    whole = np.random.default_rng(0).integers(-9, 9, (PRODUCT, PRODUCT)).astype(np.float32)
    low, small = torch.from_numpy(whole).bfloat16(), torch.from_numpy(whole).to(torch.int8)
    products: dict[Precision, Callable[[], object]] = {
        "fp32": lambda: whole @ whole,
        "bf16": lambda: low @ low,
        "int8": lambda: torch._int_mm(small, small),
    }
    return 2 * PRODUCT**3 / min(timed(products[precision], 0, 5))


def _operations(model: str | Path) -> int:
    """Of one image: as the bundle's report says, or counted."""
    if is_bundle(model) and isinstance(noted := open_bundle(model).facts.report.get("operations"), int):
        return noted
    from deit.inference.graph import Graph, operations
    from deit.models.auto import load_classifier

    return operations(Graph(load_classifier(model)))


def memory() -> tuple[float, float]:
    """This process's resident memory now and at most, in MiB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return peak, peak
    lines = (line.partition(":") for line in status.read_text().splitlines())
    kibibytes = {name: int(value.split()[0]) for name, _, value in lines if name in ("VmRSS", "VmHWM")}
    return kibibytes["VmRSS"] / 1024, kibibytes["VmHWM"] / 1024


def made_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files with large shapes and fine grain, the same on every machine."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(PHOTO, Image.Resampling.BICUBIC)
        values = np.asarray(shapes) + rng.normal(0, 8, (PHOTO[1], PHOTO[0], 3))
        path = folder / f"{number}.jpg"
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def _calls(runtime: Runtime, pixels: np.ndarray, calls: int) -> None:
    deque(ordered_map(runtime, [pixels] * calls, runtime.calls), maxlen=0)
