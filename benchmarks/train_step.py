"""Images a second of our training step beside those of timm and transformers, and where the time of each goes.

    python -m benchmarks.train_step [--device cpu|cuda] [--sizes tiny small] [--precision bf16 fp32] [--batch 32]
                                    [--contenders NAME ...] [--repeats 9] [--write]

Each contender is a process of its own, with its own allocator settings, and does one step when it is its turn (ten on a
GPU); all take their turns in each repeat, and the figure is the median over the repeats. A step is forward, soft-target
cross-entropy over 1,000 classes, backward and AdamW, on the same random images of 224 pixels. Ours is ``train_step`` with the
recipe ``deit``; timm's is the loop of its training script (autocast, ``create_optimizer_v2``, stochastic depth 0.1 as ours);
that of transformers has fused AdamW, as its trainer does. "memory kept" gives timm our allocator setting, which its script
does not have. A ratio is ours to the other in the same repeat, and its median.

Then ours once more, fed by the loader from JPEG files of 500 x 375 with the recipe's whole augmentation: images a second, and
how much of the time the step waits for data.

The share of the peak counts three times the forward pass's matrix products, against a square product measured in turn with
the others. Processor time is that of all threads; on a machine that others use too it says more than the clock does, if
threads that wait do not spin (``OMP_WAIT_POLICY=passive``).

The last line printed is the result as JSON. ``--write`` writes ``train_step.json`` and ``train_step.md``, on a GPU
``train_step_cuda.json`` and ``train_step_cuda.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image

from benchmarks.contender import Contender
from benchmarks.train_contenders import CLASSES, FED, KINDS, OURS, Job, Stopwatch, jobs
from deit.config import ViTConfig
from deit.data.loader import cores
from deit.system.devices import Precision, describe
from deit.system.malloc import retained_memory

WARM_UP = 3
FED_STEPS = 16
PREFETCHED = 6  # first batches that the loader had ready: they say nothing of its speed
GPU_STEPS = 10  # of one turn
PARTS = ("forward", "backward", "optimizer", "processor")


def serve(connection: Connection, job: Job) -> None:
    """A contender's process: steps whenever it is asked for some."""
    device = torch.device(job.device)
    torch.set_num_threads(cores())
    with retained_memory(device) if job.keeps_memory else nullcontext():
        trainee, watch = KINDS[job.kind](job), Stopwatch(device)
        watch.attach(trainee)
        for _ in range(WARM_UP):
            trainee.step()
        connection.send("ready")
        for steps in iter(connection.recv, None):
            connection.send(measured(trainee.step, watch, steps))
        if device.type == "cuda":
            connection.send(torch.cuda.max_memory_allocated(device) / 2**20)
        else:
            connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def measured(step: Callable[[], object], watch: Stopwatch, steps: int) -> list[dict[str, float]]:
    """Seconds of each step and of its parts; on a GPU the mean of all steps together, and the parts of one more."""
    if watch.device.type != "cuda":
        return [parts_of(step, watch) for _ in range(steps)]
    start = watch.now()
    for _ in range(steps):
        step()
    total = (watch.now() - start) / steps
    return [parts_of(step, watch) | {"total": total}]


def parts_of(step: Callable[[], object], watch: Stopwatch) -> dict[str, float]:
    busy = time.process_time()
    watch.start()
    step()
    parts = watch.stop()
    return {**parts, "total": sum(parts.values()), "processor": time.process_time() - busy}


def peak_rate(device: torch.device, precision: Precision) -> float:
    """Operations a second of a square matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 3072
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    watch, seconds = Stopwatch(device), []
    for _ in range(5):
        start = watch.now()
        torch.mm(left, right)
        seconds.append(watch.now() - start)
    return 2 * side**3 / min(seconds)


def operations(config: ViTConfig) -> int:
    """Additions and multiplications of one image's forward matrix products."""
    width, tokens = config.hidden_size, config.tokens
    patches = tokens - config.PREFIX_TOKENS
    block = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
    embedding = patches * width * config.num_channels * config.patch_hw[0] * config.patch_hw[1]
    return 2 * (config.num_hidden_layers * block + embedding + width * CLASSES)


def turns(entrants: dict[str, Job], repeats: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, float], list[float]]:
    """Steps by contender, most memory in MiB by contender, and the peak rate of each repeat.

    On a CPU all contenders are there at once and take turns; on a GPU, which nobody else disturbs, one comes after the other.
    """
    first = next(iter(entrants.values()))
    device = torch.device(first.device)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in entrants}
    memory: dict[str, float] = {}
    if device.type == "cuda":
        peaks = [peak_rate(device, first.precision) for _ in range(repeats)]
        for name, job in entrants.items():
            contender = Contender(serve, job)
            steps[name] = [contender.ask(GPU_STEPS)[0] for _ in range(repeats)]
            memory[name] = contender.end()
        return steps, memory, peaks
    peaks = []
    contenders = {name: Contender(serve, job) for name, job in entrants.items()}
    for _ in range(repeats):
        peaks.append(peak_rate(device, first.precision))
        for name, contender in contenders.items():
            steps[name] += contender.ask(1)
    return steps, {name: contender.end() for name, contender in contenders.items()}, peaks


def summary(rates: list[float]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), np.percentile(rates, (25, 50, 75)).tolist(), strict=True))


def compare(entrants: dict[str, Job], repeats: int) -> list[dict[str, Any]]:
    """Rows of one size and precision."""
    steps, memory, peaks = turns(entrants, repeats)
    peak = statistics.median(peaks)
    rows: list[dict[str, Any]] = []
    for name, job in entrants.items():
        rates = [job.batch / step["total"] for step in steps[name]]
        baseline = [job.batch / step["total"] for step in steps[OURS]] if OURS in steps else rates
        rows.append(
            {
                **asdict(job),
                "images_per_second": summary(rates),
                "ours_to_it": summary([one / other for one, other in zip(baseline, rates, strict=True)]),
                "seconds": {part: statistics.median(step[part] for step in steps[name]) for part in steps[name][0]},
                "share_of_peak": statistics.median(rates) * 3 * operations(job.config) / peak,
                "peak_gflops": peak / 1e9,
                "memory_mib": memory[name],
            }
        )
    return rows


def photos(folder: Path, images: int) -> None:
    """JPEG files with large shapes and fine grain in two classes, the same on every machine."""
    for number in range(images):
        rng = np.random.default_rng(number)
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (375, 500, 3))
        place = folder / f"class {number % 2}" / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(place, quality=90)


def from_files(job: Job) -> dict[str, Any]:
    """Our step fed by the loader: images a second, and the share of the time in which it waits."""
    contender = Contender(serve, job)
    steps = [step for _ in range(PREFETCHED + FED_STEPS) for step in contender.ask(1)][PREFETCHED:]
    contender.end()
    seconds = sum(step["total"] for step in steps)
    waiting = sum(step["data"] for step in steps) / seconds
    return {**asdict(job), "images_per_second": job.batch * len(steps) / seconds, "waiting": waiting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "small", "base"), default=["tiny", "small"])
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--contenders", nargs="+", help="some of them only, by name")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results")
    options = parser.parse_args()
    unknown = set(options.contenders or ()) - jobs("tiny", "bf16", options.batch, options.device).keys()
    if unknown:
        parser.error(f"no such contender on {options.device}: {', '.join(sorted(unknown))}")
    torch.set_num_threads(cores())
    rows: list[dict[str, Any]] = []
    fed_rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder), max(2 * options.batch, 64))
        for size in options.sizes:
            for precision in options.precision:
                entrants = jobs(size, precision, options.batch, options.device)
                chosen = {name: job for name, job in entrants.items() if name in (options.contenders or entrants)}
                rows += compare(chosen, options.repeats)
                fed_job = Job(FED, FED, size, precision, options.batch, options.device, None, True, folder)
                fed_rows.append(from_files(fed_job))
    result = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device(options.device)),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"transformers {transformers.__version__}",
        "repeats": options.repeats,
        "steps": rows,
        "from_files": [{**row, "photos": ""} for row in fed_rows],
    }
    print(table(result))
    if options.write:
        place = Path(__file__).parent / "results"
        place.mkdir(exist_ok=True)
        name = "train_step" if options.device == "cpu" else f"train_step_{options.device}"
        (place / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (place / f"{name}.md").write_text(table(result))
    print(json.dumps(result))


def best_to_best(rows: list[dict[str, Any]]) -> list[str]:
    """For each size and precision, our fastest contender beside the fastest of timm, by their medians."""
    lines = []
    for size, precision in dict.fromkeys((row["size"], row["precision"]) for row in rows):
        here = [row for row in rows if (row["size"], row["precision"]) == (size, precision)]
        rates = {row["contender"]: row["images_per_second"]["median"] for row in here}
        kinds = [[row["contender"] for row in here if row["kind"] == kind] for kind in (OURS, "timm")]
        best = [max(names, key=rates.__getitem__, default="") for names in kinds]
        if all(best):
            ratio = rates[best[0]] / rates[best[1]]
            lines.append(f"{size} in {precision}, our best ({best[0]}) to timm's best ({best[1]}): {ratio:.2f}.")
    return lines


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# A training step",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Median of {result['repeats']} turns and the quartiles; images of 224 pixels; milliseconds of forward, backward,",
        "optimizer, and of the processor.",
        "",
        "| size | precision | batch | contender | images/s | ours to it | parts, ms | of peak | MiB |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["steps"]:
        rate, ratio = row["images_per_second"], row["ours_to_it"]
        parts = ", ".join(f"{row['seconds'].get(part, 0) * 1e3:.0f}" for part in PARTS)
        lines.append(
            f"| {row['size']} | {row['precision']} | {row['batch']} | {row['contender']} | {rate['median']:.1f} "
            f"({rate['low']:.1f} to {rate['high']:.1f}) | {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | "
            f"{parts} | {row['share_of_peak']:.0%} | {row['memory_mib']:.0f} |"
        )
    lines += ["", *best_to_best(result["steps"])]
    peaks = {row["precision"]: row["peak_gflops"] for row in result["steps"]}
    lines += [
        "",
        "Peak, a square matrix product: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in peaks.items()) + ".",
    ]
    lines += ["", "Ours, fed by the loader from JPEG files of 500 x 375:", ""]
    lines += ["| size | precision | batch | images/s | waiting for data |", "|---|---|--:|--:|--:|"]
    for row in result["from_files"]:
        lines.append(
            f"| {row['size']} | {row['precision']} | {row['batch']} | {row['images_per_second']:.1f} | {row['waiting']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
