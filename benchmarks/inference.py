"""Throughput and latency of our runtimes, beside transformers, timm, plain ONNX Runtime and plain OpenVINO.

    python -m benchmarks.inference [--sizes tiny base] [--repeats 5] [--device cuda] [--contenders NAME ...] [--write]

Distilled models at 224 pixels with random weights, which take the same time as trained ones. Each contender runs in its own
process, and in each repeat all of them take turns, so that a slower machine slows all of them. Measured are:

- throughput from pixels to logits, with the best batch size of each contender;
- latency of one image from pixels to logits, and of one 500 x 375 JPEG file to its label, 50th and 99th percentile;
- throughput from such files to labels;
- resident memory at the end and at its peak, including Python and the libraries; ours holds one model for latency and another
  for throughput.

The peak is the FLOP/s of a large matrix product in the same precision, measured in turn with the contenders. FLOPs are counted
in the graph of each contender: ours skips the tokens of the last layer that no head reads, the others do not.

"plain" is what a user of the library would do: convert the model of transformers with its float input, and for int8 quantize it
with ``nncf.quantize`` and its preset for transformers. The images are processed by the image processor of transformers.

The last line printed is the result as JSON. ``--write`` writes ``inference.json`` and ``inference.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import Contender
from benchmarks.inference_contenders import CONTENDERS, Job, jobs, load_classifier, prepare
from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.inference import optional_libraries
from deit.inference.benchmark import (
    MATRIX_SIZES,
    latency_percentiles,
    measure_matmul_peak,
    resident_memory,
    time_calls,
    write_synthetic_photos,
)
from deit.inference.bundle import Precision

FILES = 64
BATCH_SIZES = (1, 4, 8, 16)
GPU_BATCH_SIZES = (64, 256, 512)
BATCH_SIZE_SECONDS = 0.4  # for trying each batch size
SECONDS = 1.0  # for each measurement of a turn
RATES = ("images_per_second", "files_per_second")
MEASUREMENTS = ("images_per_second", "latency", "file_latency", "files_per_second")


def serve(connection: Connection, job: Job) -> None:
    """Runs a contender: sends its best batch size, then replies to each name of a measurement with the measured values."""
    classifier = load_classifier(job)
    rates = {}
    for batch_size in GPU_BATCH_SIZES if job.device == "cuda" else BATCH_SIZES:
        batches = classifier.make_batches(batch_size)
        rates[batch_size] = sum(map(len, batches)) / median_seconds(classifier.run_batches, batches, BATCH_SIZE_SECONDS)
    best = max(rates, key=lambda batch_size: rates[batch_size])
    batches, single, paths = classifier.make_batches(best), classifier.make_batches(1)[0], cycle(job.files)
    connection.send(best)
    for measurement in iter(connection.recv, None):
        if measurement == "images_per_second":
            measured: Any = sum(map(len, batches)) / median_seconds(classifier.run_batches, batches, SECONDS)
        elif measurement == "latency":
            measured = time_calls(lambda: classifier.run_batch(single), SECONDS, 4)
        elif measurement == "file_latency":
            measured = time_calls(lambda: classifier.classify_file(next(paths)), SECONDS, 4)
        else:
            count = max(16, min(len(job.files), int(rates[best] * SECONDS)))
            measured = count / median_seconds(classifier.classify_files, job.files[:count], SECONDS)
        connection.send(measured)
    connection.send(resident_memory())


def median_seconds(function: Callable[[Any], object], argument: Any, seconds: float) -> float:
    """Returns the median duration of two or more calls."""
    return statistics.median(time_calls(lambda: function(argument), seconds, 2))


def compare(jobs_by_name: dict[str, Job], repeats: int) -> list[dict[str, Any]]:
    """Measures contenders of one size, and returns one row for each."""
    on_gpu = next(iter(jobs_by_name.values())).device == "cuda"
    peaks: dict[Precision, list[float]] = {} if on_gpu else {"fp32": [], "bf16": [], "int8": []}
    contenders = {name: Contender(serve, job) for name, job in jobs_by_name.items()}
    measured: dict[str, dict[str, list[Any]]] = {name: {key: [] for key in MEASUREMENTS} for name in contenders}
    for _ in range(repeats):
        for precision, values in peaks.items():
            values.append(measure_matmul_peak(precision))
        for name, contender in contenders.items():
            for measurement in MEASUREMENTS:
                measured[name][measurement].append(contender.request(measurement))
    batch_sizes = {name: contender.ready for name, contender in contenders.items()}
    memories = {name: contender.stop() for name, contender in contenders.items()}
    rows = []
    for name, job in jobs_by_name.items():
        rate = statistics.median(measured[name]["images_per_second"])
        peak = statistics.median(peaks[job.precision]) if peaks else None
        rows.append(
            {
                **{key: value for key, value in asdict(job).items() if key not in ("files", "folder")},
                "batch": batch_sizes[name],
                **{key: quartiles(measured[name][key]) for key in RATES},
                "latency_ms": latency_percentiles(list(chain.from_iterable(measured[name]["latency"]))),
                "file_latency_ms": latency_percentiles(list(chain.from_iterable(measured[name]["file_latency"]))),
                "share_of_peak": None if peak is None else rate * job.flops / peak,
                "peak_gflops": None if peak is None else peak / 1e9,
                "steady_mib": memories[name][0],
                "peak_mib": memories[name][1],
                "turns": {key: measured[name][key] for key in RATES},
            }
        )
    return rows


def ratio(rows: list[dict[str, Any]], size: str, ours: str, theirs: str, rate: str) -> str | None:
    """Returns the median and the quartiles of the ratio of two contenders' rates in the same turns; None without both."""
    turns = {row["contender"]: row["turns"][rate] for row in rows if row["size"] == size}
    if ours not in turns or theirs not in turns:
        return None
    return with_quartiles(quartiles([mine / other for mine, other in zip(turns[ours], turns[theirs], strict=True)]), 2)


IMAGES, FILES_TO_LABELS = RATES
RATIOS = (  # title, our contender, other contender, rate
    ("model only, int8 / transformers fp32", "ours, openvino int8", "transformers fp32", IMAGES),
    ("model only, int8 / plain OpenVINO int8", "ours, openvino int8", "plain OpenVINO int8", IMAGES),
    ("model only, bf16 / plain OpenVINO bf16", "ours, openvino bf16", "plain OpenVINO bf16", IMAGES),
    ("model only, ONNX Runtime int8 / plain ONNX Runtime fp32", "ours, onnxruntime int8", "plain ONNX Runtime fp32", IMAGES),
    ("file to label, int8 / transformers fp32", "ours, openvino int8", "transformers fp32", FILES_TO_LABELS),
    ("file to label, int8 / plain OpenVINO int8", "ours, openvino int8", "plain OpenVINO int8", FILES_TO_LABELS),
)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = result["rows"]
    lines = [
        "# Inference",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Medians of {result['repeats']} turns, and the quartiles; 224 pixels; 500 x 375 JPEG files. Latency in ms, 50th and",
        "99th percentile. Resident memory in MiB at the end and at its peak, Python and libraries included. Command:",
        f"`{command(result)}`.",
        "",
        "| size | contender | images/s | batch | of peak | latency | files/s | file latency | memory |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        latency, file_latency = (", ".join(f"{value:.1f}" for value in row[key]) for key in ("latency_ms", "file_latency_ms"))
        lines.append(
            f"| {row['size']} | {row['contender']} | {with_quartiles(row['images_per_second'], 1)} | {row['batch']} | "
            f"{share} | {latency} | {row['files_per_second']['median']:.1f} | {file_latency} | "
            f"{row['steady_mib']:.0f}, {row['peak_mib']:.0f} |"
        )
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines += [
        "",
        "Ratios of our runtimes to others within a turn, median and quartiles:",
        "",
        f"| | {' | '.join(sizes)} |",
        "|---|" + "--:|" * len(sizes),
    ]
    for title, ours, theirs, rate in RATIOS:
        cells = [ratio(rows, size, ours, theirs, rate) or "" for size in sizes]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    peaks = {row["precision"]: row["peak_gflops"] for row in rows if row["peak_gflops"]}
    if peaks:
        listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in peaks.items())
        lines += ["", f"Peak of matrix products of up to {MATRIX_SIZES[-1]} x {MATRIX_SIZES[-1]}, GFLOP/s: {listed}."]
    return "\n".join(lines) + "\n"


def command(result: dict[str, Any]) -> str:
    """Returns the command that measures this result."""
    sizes = " ".join(dict.fromkeys(row["size"] for row in result["rows"]))
    device = next(row["device"] for row in result["rows"])
    return f"python -m benchmarks.inference --sizes {sizes} --device {device} --repeats {result['repeats']} --write"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "small", "base"), default=["tiny", "base"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="number of turns of each contender")
    parser.add_argument("--contenders", nargs="+", help="measure only these contenders")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    if unknown := set(options.contenders or ()) - set(CONTENDERS):
        parser.error(f"unknown contender: {', '.join(sorted(unknown))}; the contenders are {'; '.join(CONTENDERS)}")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            files = tuple(str(path) for path in write_synthetic_photos(Path(folder), FILES))
            selected = {
                name: job
                for name, job in jobs(size, options.device, folder, files).items()
                if name in (options.contenders or CONTENDERS)
            }
            prepare(size, Path(folder), selected)
            rows += compare(selected, options.repeats)
    libraries_used = ("torch", "transformers", "timm", "openvino", "onnxruntime", "nncf")
    versions = {name: optional_libraries.version(name) for name in libraries_used}
    result = {**environment(torch.device(options.device), versions), "repeats": options.repeats, "rows": rows}
    stem = "inference" if options.device == "cpu" else f"inference_{options.device}"
    publish(result, table(result), stem if options.write else None)


if __name__ == "__main__":
    main()
