"""Throughput of our training step beside those of timm and transformers, and where the time of each goes.

    python -m benchmarks.train_step [--device cpu|cuda] [--sizes tiny small] [--precision bf16 fp32] [--batch 32]
                                    [--contenders NAME ...] [--repeats 9] [--write]

Each contender runs in a process of its own, with its own allocator settings, and takes one step per turn (ten on a GPU). In
each repeat all contenders take turns; figures are medians over the repeats. A step is forward, soft-target cross-entropy over
1,000 classes, backward and AdamW, on the same random images of 224 pixels. Ours is ``train_step`` with the recipe ``deit``.
timm's is the loop of its training script (autocast, ``create_optimizer_v2``, stochastic depth 0.1 as in ours). That of
transformers uses fused AdamW, as its trainer does. "freed memory kept" gives timm our allocator settings, which its script does
not set. A speedup is the ratio of our throughput to another contender's in the same repeat.

Then our step is measured once more, fed by the data loader from 500 x 375 JPEG files with the recipe's whole augmentation:
images per second, and the share of time spent waiting for data.

The share of the peak counts the forward pass's matrix products three times, relative to a square matrix product measured in
turn with the contenders. CPU time is that of all threads. On a machine that also runs other programs it says more than
wall-clock time, provided that idle threads do not spin (``OMP_WAIT_POLICY=passive``).

The last line printed is the result as JSON. ``--write`` writes ``train_step.json`` and ``train_step.md``, on a GPU
``train_step_cuda.json`` and ``train_step_cuda.md``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

from benchmarks.contender import Contender
from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from benchmarks.train_contenders import CLASSES, IMPLEMENTATIONS, OURS, OURS_FROM_FILES, TIMM, Job, PhaseTimer, jobs
from deit.config import ViTConfig
from deit.inference.benchmark import write_synthetic_photos
from deit.system.devices import Precision
from deit.system.hardware import cores
from deit.system.malloc import retained_memory

WARM_UP_STEPS = 3
FILE_STEPS = 16  # measured steps that are fed from files
PREFETCHED_STEPS = 6  # not measured: the loader had prepared their batches beforehand
GPU_STEPS = 10  # per turn
PHASES = ("forward", "backward", "optimizer", "cpu")


def serve(connection: Connection, job: Job) -> None:
    """Runs a contender: takes as many steps as requested, and replies with the seconds of each."""
    device = torch.device(job.device)
    torch.set_num_threads(cores())
    with retained_memory(device) if job.retain_memory else nullcontext():
        loop, timer = IMPLEMENTATIONS[job.implementation](job), PhaseTimer(device)
        timer.attach(loop)
        for _ in range(WARM_UP_STEPS):
            loop.step()
        connection.send("ready")
        for steps in iter(connection.recv, None):
            connection.send(measure_steps(loop.step, timer, steps))
        if device.type == "cuda":
            connection.send(torch.cuda.max_memory_allocated(device) / 2**20)
        else:
            connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def measure_steps(step: Callable[[], object], timer: PhaseTimer, steps: int) -> list[dict[str, float]]:
    """Returns the seconds of each step and its phases; on a GPU the mean of all steps, and the phases of one more step."""
    if timer.device.type != "cuda":
        return [measure_phases(step, timer) for _ in range(steps)]
    start = timer.now()
    for _ in range(steps):
        step()
    total = (timer.now() - start) / steps
    return [measure_phases(step, timer) | {"total": total}]


def measure_phases(step: Callable[[], object], timer: PhaseTimer) -> dict[str, float]:
    """Returns the seconds of a step: of its phases, in total, and of CPU time."""
    cpu_start = time.process_time()
    timer.start()
    step()
    phases = timer.stop()
    return {**phases, "total": sum(phases.values()), "cpu": time.process_time() - cpu_start}


def peak_rate(device: torch.device, precision: Precision) -> float:
    """Returns the FLOP/s of a square matrix product, the best of five."""
    side = 8192 if device.type == "cuda" else 3072
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    timer, seconds = PhaseTimer(device), []
    for _ in range(5):
        start = timer.now()
        torch.mm(left, right)
        seconds.append(timer.now() - start)
    return 2 * side**3 / min(seconds)


def forward_flops(config: ViTConfig) -> int:
    """Returns the FLOPs (additions and multiplications) of the matrix products in one image's forward pass."""
    width, tokens = config.hidden_size, config.tokens
    patches = tokens - config.PREFIX_TOKENS
    block = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
    embedding = patches * width * config.num_channels * config.patch_hw[0] * config.patch_hw[1]
    return 2 * (config.num_hidden_layers * block + embedding + width * CLASSES)


def take_turns(
    jobs_by_name: dict[str, Job], repeats: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float], list[float]]:
    """Returns the steps and the peak memory in MiB of each contender, and the peak rate of each repeat.

    On a CPU the processes of all contenders exist side by side and take turns. On a GPU, which no other program uses, they run
    one after the other.
    """
    first = next(iter(jobs_by_name.values()))
    device = torch.device(first.device)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in jobs_by_name}
    memory: dict[str, float] = {}
    if device.type == "cuda":
        peaks = [peak_rate(device, first.precision) for _ in range(repeats)]
        for name, job in jobs_by_name.items():
            contender = Contender(serve, job)
            steps[name] = [contender.request(GPU_STEPS)[0] for _ in range(repeats)]
            memory[name] = contender.stop()
        return steps, memory, peaks
    peaks = []
    contenders = {name: Contender(serve, job) for name, job in jobs_by_name.items()}
    for _ in range(repeats):
        peaks.append(peak_rate(device, first.precision))
        for name, contender in contenders.items():
            steps[name] += contender.request(1)
    return steps, {name: contender.stop() for name, contender in contenders.items()}, peaks


def to_row(job: Job) -> dict[str, Any]:
    """Returns the fields of a job that are part of the result."""
    return {name: value for name, value in asdict(job).items() if name != "photos"}


def compare(jobs_by_name: dict[str, Job], repeats: int) -> list[dict[str, Any]]:
    """Measures contenders of one size and precision, and returns one row for each."""
    steps, memory, peaks = take_turns(jobs_by_name, repeats)
    peak = statistics.median(peaks)
    rows: list[dict[str, Any]] = []
    for name, job in jobs_by_name.items():
        rates = [job.batch / step["total"] for step in steps[name]]
        our_rates = [job.batch / step["total"] for step in steps[OURS]] if OURS in steps else rates
        rows.append(
            {
                **to_row(job),
                "images_per_second": quartiles(rates),
                "speedup_of_ours": quartiles([ours / other for ours, other in zip(our_rates, rates, strict=True)]),
                "seconds": {phase: statistics.median(step[phase] for step in steps[name]) for phase in steps[name][0]},
                "share_of_peak": statistics.median(rates) * 3 * forward_flops(job.config) / peak,
                "peak_gflops": peak / 1e9,
                "peak_mib": memory[name],
            }
        )
    return rows


def write_photos(folder: Path, count: int) -> None:
    """Writes JPEG files of two classes, the same on every machine."""
    for number, path in enumerate(write_synthetic_photos(folder, count)):
        class_folder = folder / f"class {number % 2}"
        class_folder.mkdir(exist_ok=True)
        path.rename(class_folder / path.name)


def measure_from_files(job: Job) -> dict[str, Any]:
    """Measures our step fed by the data loader: images per second, and the share of time spent waiting for data."""
    contender = Contender(serve, job)
    steps = [step for _ in range(PREFETCHED_STEPS + FILE_STEPS) for step in contender.request(1)][PREFETCHED_STEPS:]
    contender.stop()
    seconds = sum(step["total"] for step in steps)
    waiting = sum(step["data"] for step in steps) / seconds
    return {**to_row(job), "images_per_second": job.batch * len(steps) / seconds, "waiting_for_data": waiting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "small", "base"), default=["tiny", "small"])
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--contenders", nargs="+", help="measure only these contenders")
    parser.add_argument("--repeats", type=int, default=9, help="number of turns of each contender")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    unknown = set(options.contenders or ()) - jobs("tiny", "bf16", options.batch, options.device).keys()
    if unknown:
        parser.error(f"unknown contender on {options.device}: {', '.join(sorted(unknown))}")
    torch.set_num_threads(cores())
    rows: list[dict[str, Any]] = []
    from_files: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), max(2 * options.batch, 64))
        for size in options.sizes:
            for precision in options.precision:
                available = jobs(size, precision, options.batch, options.device)
                selected = {name: job for name, job in available.items() if name in (options.contenders or available)}
                rows += compare(selected, options.repeats)
                job = Job(OURS_FROM_FILES, OURS_FROM_FILES, size, precision, options.batch, options.device, None, True, folder)
                from_files.append(measure_from_files(job))
    versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
    result = {
        **environment(torch.device(options.device), versions),
        "repeats": options.repeats,
        "steps": rows,
        "from_files": from_files,
    }
    stem = "train_step" if options.device == "cpu" else f"train_step_{options.device}"
    publish(result, table(result), stem if options.write else None)


def best_of_each(rows: list[dict[str, Any]]) -> list[str]:
    """Compares our fastest contender with the fastest of timm, by their medians, for each size and precision."""
    lines = []
    for size, precision in dict.fromkeys((row["size"], row["precision"]) for row in rows):
        group = [row for row in rows if (row["size"], row["precision"]) == (size, precision)]
        rates = {row["contender"]: row["images_per_second"]["median"] for row in group}
        ours, timms = (
            max((row["contender"] for row in group if row["implementation"] == name), key=rates.__getitem__, default="")
            for name in (OURS, TIMM)
        )
        if ours and timms:
            ratio = rates[ours] / rates[timms]
            lines.append(f"{size} in {precision}, our best ({ours}) / timm's best ({timms}): {ratio:.2f}.")
    return lines


def command(result: dict[str, Any]) -> str:
    """Returns the command that measures this result."""
    rows = result["steps"]
    sizes, precisions, contenders = (dict.fromkeys(row[key] for row in rows) for key in ("size", "precision", "contender"))
    names = " ".join(f'"{name}"' if " " in name else name for name in contenders)
    return (
        f"python -m benchmarks.train_step --device {rows[0]['device']} --sizes {' '.join(sizes)} "
        f"--precision {' '.join(precisions)} --batch {rows[0]['batch']} --contenders {names} "
        f"--repeats {result['repeats']} --write"
    )


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Training step",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Median of {result['repeats']} turns, and the quartiles; 224 pixels; milliseconds of forward, backward, optimizer and",
        "of CPU time; peak resident memory in MiB, on a GPU that of its memory. Command:",
        f"`{command(result)}`.",
        "",
        "| size | precision | batch | contender | images/s | speedup of ours | phases, ms | of peak | memory |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["steps"]:
        phases = ", ".join(f"{row['seconds'].get(phase, 0) * 1e3:.0f}" for phase in PHASES)
        lines.append(
            f"| {row['size']} | {row['precision']} | {row['batch']} | {row['contender']} | "
            f"{with_quartiles(row['images_per_second'], 1)} | {with_quartiles(row['speedup_of_ours'], 2)} | "
            f"{phases} | {row['share_of_peak']:.0%} | {row['peak_mib']:.0f} |"
        )
    lines += ["", *best_of_each(result["steps"])]
    peaks = {row["precision"]: row["peak_gflops"] for row in result["steps"]}
    listed = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in peaks.items())
    lines += ["", f"Peak of a square matrix product: {listed}."]
    lines += ["", "Our step, fed by the data loader from 500 x 375 JPEG files:", ""]
    lines += ["| size | precision | batch | images/s | time waiting for data |", "|---|---|--:|--:|--:|"]
    for row in result["from_files"]:
        lines.append(
            f"| {row['size']} | {row['precision']} | {row['batch']} | {row['images_per_second']:.1f} | "
            f"{row['waiting_for_data']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
