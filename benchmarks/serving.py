"""What a server costs: requests per second and latency, beside the predictor alone and beside other servers.

    python -m benchmarks.serving [MODEL] [--seconds 8] [--repeats 3] [--write]

MODEL is a bundle, or what ``deit export`` exports; without it, a tiny DeiT with random weights is exported to OpenVINO in fp32
and int8, and the same weights are served by torch, too: by ``deit serve``, by LitServe and by plain FastAPI, both with
transformers.
LitServe (``pip install litserve``) is left out if it is not installed.

A JPEG file of 500 x 375 pixels is sent again and again by 1, 8 and 64 clients over the loopback, each with a connection that
stays open; the clients share the cores with the server, which is a process of its own. ``Predictor`` is
:meth:`Predictor.stream` on the same bytes, and its latency that of single calls with the hint ``latency``, each in a process of
its own, whose threads wait as in the program. All take turns; figures are medians over the repeats. The last line printed is
the result as JSON. ``--write`` writes ``serving.json`` and ``serving.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection as PipeConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.contender import Contender as Process
from benchmarks.http_load import Connection
from benchmarks.inference_contenders import write_bundles
from benchmarks.reporting import environment, publish
from benchmarks.serving_contenders import (
    DEIT,
    LITSERVE,
    LITSERVE_BATCH,
    LITSERVE_TIMEOUT,
    TORCH,
    Contender,
    Program,
    contenders,
)
from deit.config import variant_config
from deit.export.export import export_model
from deit.images.processor import DeiTImageProcessor
from deit.inference import optional_libraries
from deit.inference.bundle import is_bundle, open_bundle
from deit.inference.predictor import Predictor
from deit.inference.runtimes import PerformanceHint
from deit.models.auto import load_classifier
from deit.models.modeling import new_classifier
from deit.system.hardware import cores
from deit.system.malloc import retain_freed_memory
from deit.system.openmp import limit_spinning

VARIANT = "deit-tiny-patch16-224"
BUNDLES = ("openvino fp32", "openvino int8")
PREDICTOR = "Predictor"
CLIENTS = (1, 8, 64)
WARM_UP = 1.0  # seconds
LIBRARIES = ("torch", "openvino", "transformers", "fastapi", "uvicorn", "litserve")

Figures = dict[str, float]
Row = tuple[str, str, int]  # contender, what computes the logits, clients


def photo() -> bytes:
    """Returns a JPEG file."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def measure_predictor(path: str, content: bytes, seconds: float) -> Figures:
    """Returns images per second of a stream, and milliseconds of single calls, each of a new process."""
    job = path, content, seconds
    return _figures(Process(serve_stream, job).stop(), Process(serve_calls, job).stop())


def serve_stream(connection: PipeConnection, job: tuple[str, bytes, float]) -> None:
    """Sends the images per second of a stream."""
    path, content, seconds = job
    predictor = _predictor(path, "throughput")
    connection.send("ready")
    connection.recv()
    begin, now, count = time.perf_counter() + WARM_UP, 0.0, 0
    for _ in predictor.stream(content for _ in itertools.count()):
        now = time.perf_counter()
        count += now >= begin
        if now >= begin + seconds:
            break
    connection.send(count / (now - begin))


def serve_calls(connection: PipeConnection, job: tuple[str, bytes, float]) -> None:
    """Sends the milliseconds of single calls."""
    path, content, seconds = job
    predictor = _predictor(path, "latency")
    connection.send("ready")
    connection.recv()
    times = []
    begin = time.perf_counter() + WARM_UP
    while (called := time.perf_counter()) < begin + seconds / 2:
        predictor(content)
        if called >= begin:
            times.append(1000 * (time.perf_counter() - called))
    connection.send(times)


def _predictor(path: str, performance_hint: PerformanceHint) -> Predictor:
    torch.set_num_threads(cores())  # whatever OMP_NUM_THREADS says
    retain_freed_memory()
    return Predictor.from_pretrained(path, performance_hint=performance_hint)


def measure_server(contender: Contender, seconds: float) -> dict[int, Figures]:
    """Starts a server. Returns requests per second and milliseconds per request, by the number of clients."""
    with Program(contender) as program:
        return {clients: asyncio.run(_load(program.port, contender.request, clients, seconds)) for clients in CLIENTS}


async def _load(port: int, request: bytes, clients: int, seconds: float) -> Figures:
    times: list[float] = []
    begin = time.perf_counter() + WARM_UP

    async def client() -> None:
        connection = await Connection.open(port)
        while (sent := time.perf_counter()) < begin + seconds:
            status = await connection.send(request)
            assert status == 200, status
            if (answered := time.perf_counter()) >= begin:
                times.append(1000 * (answered - sent))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return _figures(len(times) / (time.perf_counter() - begin), times)


def _figures(per_second: float, milliseconds: Sequence[float]) -> Figures:
    p50, p99 = np.percentile(milliseconds, (50, 99)).tolist()
    return {"per_second": per_second, "p50": p50, "p99": p99}


def measure(
    bundles: Mapping[str, str], model: str | None, content: bytes, seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """Measures the predictor and all servers in turns.

    Args:
        bundles: exported models by what computes their logits.
        model: the same one before its export; None leaves the contenders of torch out.
        content: the file that is sent.
        seconds: per measurement.
        repeats: of each measurement.

    Returns:
        The medians of each contender and number of clients.
    """
    found: dict[Row, list[Figures]] = {}
    paths = {**bundles, TORCH: model} if model is not None else bundles
    servers = contenders(bundles, model, content)
    for _ in range(repeats):
        for runs, path in paths.items():
            found.setdefault((PREDICTOR, runs, 0), []).append(measure_predictor(path, content, seconds))
        for server in servers:
            for clients, figures in measure_server(server, seconds).items():
                found.setdefault((server.name, server.runs, clients), []).append(figures)
    return [
        {"contender": name, "runs": runs, "clients": clients}
        | {key: statistics.median(figures[key] for figures in measured) for key in measured[0]}
        for (name, runs, clients), measured in found.items()
    ]


def save_random(folder: Path) -> Path:
    """Writes a tiny DeiT with random weights, and returns its path."""
    path = folder / "random"
    new_classifier(variant_config(VARIANT), torch.Generator().manual_seed(0)).save_pretrained(path)
    DeiTImageProcessor.for_size(224, 224).save_pretrained(path)
    return path


def exported(folder: Path, model: str, is_random: bool) -> dict[str, str]:
    """Exports a model unless it is a bundle. Returns the bundles by what computes their logits."""
    if is_random:
        write_bundles(load_classifier(model), folder, BUNDLES)
        return {name: str(folder / name) for name in BUNDLES}
    bundle = open_bundle(model) if is_bundle(model) else export_model(model, folder / "model").bundle
    return {f"{bundle.metadata.format} {bundle.metadata.precision}": str(bundle.path)}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Returns what matters of the rows in a few sentences."""
    figures = {(row["contender"], row["runs"], row["clients"]): row for row in rows}
    few, many = CLIENTS[0], CLIENTS[-1]
    litserve = figures.get((LITSERVE, TORCH, many))
    sentences = []
    for alone in (row for row in rows if row["contender"] == PREDICTOR):
        busy, idle = figures[DEIT, alone["runs"], many], figures[DEIT, alone["runs"], few]
        share, overhead = busy["per_second"] / alone["per_second"], idle["p50"] - alone["p50"]
        sentence = f"`deit serve`, {alone['runs']}: {overhead:+.1f} ms with one client, {share:.0%} of the rate with {many}"
        if litserve is not None:
            sentence += f", {busy['per_second'] / litserve['per_second']:.1f} times that of LitServe"
        sentences.append(f"{sentence}.")
    return "\n".join(sentences)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Serving\n",
        f"{result['date']}, {result['hardware']}; {result['software']}.",
        f"`{result['command']}`: {result['model']}; requests of one JPEG file",
        f"of 500 x 375 pixels. Medians of {result['repeats']} repeats; the clients share the cores with the server.\n",
        "| | runs | clients | requests/s | p50, ms | p99, ms |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        clients = row["clients"] or ""
        rate = f"{row['per_second']:.1f} | {row['p50']:.1f} | {row['p99']:.1f}"
        lines.append(f"| {row['contender']} | {row['runs']} | {clients} | {rate} |")
    lines += ["", summary(result["rows"]), ""]
    lines.append("The latency of the predictor is that of single calls, its rate that of a stream.")
    if any(row["contender"] == LITSERVE for row in result["rows"]):
        wait = f"{1000 * LITSERVE_TIMEOUT:g} ms"
        lines.append(f"LitServe: one worker, batches of up to {LITSERVE_BATCH}, which wait {wait} to fill.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=VARIANT)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    limit_spinning()  # in the processes of the predictor
    with tempfile.TemporaryDirectory() as name:
        model = str(save_random(Path(name))) if arguments.model == VARIANT else None
        bundles = exported(Path(name), arguments.model if model is None else model, is_random=model is not None)
        rows = measure(bundles, model, photo(), arguments.seconds, arguments.repeats)
    versions = {library: optional_libraries.version(library) for library in LIBRARIES}
    result = {
        **environment(torch.device("cpu"), {library: number for library, number in versions.items() if number is not None}),
        "command": f"python -m benchmarks.serving {arguments.model} --seconds {arguments.seconds:g}",
        "model": "a tiny DeiT" if model is not None else arguments.model,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    publish(result, table(result), "serving" if arguments.write else None)


if __name__ == "__main__":
    main()
