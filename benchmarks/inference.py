"""Images a second and milliseconds an image of our runtimes, beside transformers, timm, plain ONNX Runtime and plain OpenVINO.

    python -m benchmarks.inference [--sizes tiny base] [--repeats 5] [--device cuda] [--only ...] [--write]

Distilled models at 224 with random weights, which take the same time as trained ones. Each contender has a process of its
own, and in each repeat all of them take their turn, so that a machine that slows down slows all of them. Measured are: pixels
to logits with each one's best number of images a call; one image's pixels to logits, and one JPEG file of 500 x 375 to labels,
50th and 99th percentile; many such files to labels; resident memory, steady and at most, with Python and the libraries, ours
with one model for one image and another for many. The peak is
that of a large matrix product in the same precision, taken in turn with the others; the operations that count are
those that the graph has: ours leaves out what nobody reads in the last layer, others do not.

"Plain" is what a user of the library would do: the transformers model converted with its float input, its int8 form made by
``nncf.quantize`` with its setting for transformers. They resize with transformers' image processor, as transformers does.

The last line printed is the result as JSON. ``--write`` writes ``inference.json`` and ``inference.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from itertools import chain, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contender import Contender
from benchmarks.inference_contenders import CONTENDERS, Job, answerer, jobs, prepare
from deit.inference import libraries
from deit.inference.benchmark import PRODUCT, made_photos, memory, peak_rate, percentiles, timed
from deit.inference.bundle import Precision
from deit.system.devices import describe

FILES = 64
PILOT = 0.4  # seconds for each number of images a call
BATCHES = (1, 4, 8, 16)
GPU_BATCHES = (64, 256, 512)
SECONDS = 1.0  # of each figure in each turn
MEASURES = ("rate", "latency", "file_latency", "files")


def serve(connection: Connection, job: Job) -> None:
    """A contender's process: measures what it is asked for."""
    contender = answerer(job)
    rates = {}
    for batch in GPU_BATCHES if job.device == "cuda" else BATCHES:
        values = contender.values(batch)
        rates[batch] = sum(map(len, values)) / median_seconds(contender.many, values, PILOT)
    best = max(rates, key=lambda batch: rates[batch])
    values, one, paths = contender.values(best), contender.values(1), cycle(job.files)
    connection.send(best)
    for asked in iter(connection.recv, None):
        if asked == "rate":
            answer: Any = sum(map(len, values)) / median_seconds(contender.many, values, SECONDS)
        elif asked == "latency":
            answer = timed(lambda: contender.single(one[0]), SECONDS, 4)
        elif asked == "file_latency":
            answer = timed(lambda: contender.single_file(next(paths)), SECONDS, 4)
        else:
            count = max(16, min(len(job.files), int(rates[best] * SECONDS)))
            answer = count / median_seconds(contender.files, job.files[:count], SECONDS)
        connection.send(answer)
    connection.send(memory())


def median_seconds(function: Callable[[Any], object], argument: Any, seconds: float) -> float:
    """Of two or more calls that are timed."""
    return statistics.median(timed(lambda: function(argument), seconds, 2))


def compare(entrants: dict[str, Job], repeats: int) -> list[dict[str, Any]]:
    """Rows of one size."""
    on_gpu = next(iter(entrants.values())).device == "cuda"
    peaks: dict[Precision, list[float]] = {} if on_gpu else {"fp32": [], "bf16": [], "int8": []}
    found: dict[str, dict[str, list[Any]]] = {name: {what: [] for what in MEASURES} for name in entrants}
    contenders = {name: Contender(serve, job) for name, job in entrants.items()}
    for _ in range(repeats):
        for precision, measured in peaks.items():
            measured.append(peak_rate(precision))
        for name, contender in contenders.items():
            for what in MEASURES:
                found[name][what].append(contender.ask(what))
    batches = {name: contender.ready for name, contender in contenders.items()}
    memories = {name: contender.end() for name, contender in contenders.items()}
    rows = []
    for name, job in entrants.items():
        rate = statistics.median(found[name]["rate"])
        peak = statistics.median(peaks[job.precision]) if peaks else None
        rows.append(
            {
                **{key: value for key, value in asdict(job).items() if key not in ("files", "folder")},
                "contender": name,
                "batch": batches[name],
                "images_per_second": spread(found[name]["rate"]),
                "files_per_second": spread(found[name]["files"]),
                "latency_ms": percentiles(list(chain.from_iterable(found[name]["latency"]))),
                "file_latency_ms": percentiles(list(chain.from_iterable(found[name]["file_latency"]))),
                "share_of_peak": None if peak is None else rate * job.operations / peak,
                "peak_gflops": None if peak is None else peak / 1e9,
                "steady_mib": memories[name][0],
                "peak_mib": memories[name][1],
                "turns": {what: found[name][what] for what in ("rate", "files")},
            }
        )
    return rows


def spread(values: list[float]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), np.percentile(values, (25, 50, 75)).tolist(), strict=True))


def ratio(rows: list[dict[str, Any]], size: str, ours: str, theirs: str, what: str) -> str | None:
    """Of two contenders in the same turns, the median and the quartiles."""
    turns = {row["contender"]: row["turns"][what] for row in rows if row["size"] == size}
    if ours not in turns or theirs not in turns:
        return None
    values = spread([one / other for one, other in zip(turns[ours], turns[theirs], strict=True)])
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


RATIOS = (
    ("model alone, int8, to transformers fp32", "ours, openvino int8", "transformers fp32", "rate"),
    ("model alone, int8, to plain OpenVINO int8", "ours, openvino int8", "plain OpenVINO int8", "rate"),
    ("model alone, bf16, to plain OpenVINO bf16", "ours, openvino bf16", "plain OpenVINO bf16", "rate"),
    ("model alone, ONNX Runtime int8, to plain ONNX Runtime", "ours, onnxruntime int8", "plain ONNX Runtime fp32", "rate"),
    ("file to label, int8, to transformers fp32", "ours, openvino int8", "transformers fp32", "files"),
    ("file to label, int8, to plain OpenVINO int8", "ours, openvino int8", "plain OpenVINO int8", "files"),
)


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = result["rows"]
    lines = [
        "# Inference",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Medians of {result['repeats']} turns and the quartiles; images of 224 pixels, files JPEG of 500 x 375;",
        "latencies 50th and 99th percentile in ms; memory steady and at most in MiB, Python and libraries included.",
        "",
        "| size | contender | images/s | a call | of peak | ms an image | files/s | ms a file | MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        rate, files = row["images_per_second"], row["files_per_second"]
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        steady, most = row["steady_mib"], row["peak_mib"]
        lines.append(
            f"| {row['size']} | {row['contender']} | {rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f}) | "
            f"{row['batch']} | {share} | {row['latency_ms'][0]:.1f}, {row['latency_ms'][1]:.1f} | {files['median']:.1f} | "
            f"{row['file_latency_ms'][0]:.1f}, {row['file_latency_ms'][1]:.1f} | {steady:.0f}, {most:.0f} |"
        )
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines += [
        "",
        "Ratios within a turn, median and quartiles:",
        "",
        f"| | {' | '.join(sizes)} |",
        "|---|" + "--:|" * len(sizes),
    ]
    for title, ours, theirs, what in RATIOS:
        found = [ratio(rows, size, ours, theirs, what) for size in sizes]
        if any(found):
            lines.append(f"| {title} | {' | '.join(value or '' for value in found)} |")
    peaks = {row["precision"]: row["peak_gflops"] for row in rows if row["peak_gflops"]}
    if peaks:
        listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in peaks.items())
        lines += ["", f"Peak of a product of {PRODUCT} x {PRODUCT}, GFLOP/s: {listed}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "small", "base"), default=["tiny", "base"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="some contenders, by name")
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; known are {', '.join(CONTENDERS)}")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            files = tuple(str(path) for path in made_photos(Path(folder), FILES))
            entrants = {
                name: job
                for name, job in jobs(size, options.device, folder, files).items()
                if name in (options.only or CONTENDERS)
            }
            prepare(size, Path(folder), entrants)
            rows += compare(entrants, options.repeats)
    names = ("torch", "transformers", "timm", "openvino", "onnxruntime", "nncf")
    result = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device(options.device)),
        "software": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {libraries.version(name)}" for name in names)]
        ),
        "repeats": options.repeats,
        "rows": rows,
    }
    print(table(result))
    if options.write:
        place = Path(__file__).parent / "results"
        name = "inference" if options.device == "cpu" else f"inference_{options.device}"
        (place / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (place / f"{name}.md").write_text(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
