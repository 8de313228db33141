"""What a server does under load that is too much, that lasts, or that a signal ends.

    python -m benchmarks.serving_load [--overload-seconds 60] [--requests 100000] [--stops 20] [--seed 0] [--write]

Overload: the requests per second that the server answers to a few clients are measured; then ten times as many are offered, at
a constant rate, whether or not they are answered. Only the statuses 200, 429 and 503 are allowed, memory must stay flat, and
99% of the refusals must come within 50 ms. The model is DeiT-Ti, so that it is what limits the server, and not HTTP.

Endurance: images, images that are too large, files that are not images and unsupported media types are sent in turn. Memory may
grow by 20 MB. The model has 14,000 parameters.

Stops: SIGTERM reaches a server under load at a random time. Half of the clients open a connection per request, half keep theirs
open until the server closes it. A request is lost if its connection was accepted and it gets no answer, neither a prediction
nor a refusal. The program must end with exit code 0 within 30 s.

Weights are random, all requests go over the loopback, and the clients share the cores with the server. The last line printed is
the result as JSON. ``--write`` writes ``serving_load.json`` and ``serving_load.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.hostile_images import png
from benchmarks.http_load import Answer, Connection, ServerProgram, post, send_all, send_at_rate
from benchmarks.reporting import environment, publish
from benchmarks.serving import photo
from deit.config import DeiTConfig, ViTConfig, variant_config
from deit.models.modeling import new_classifier

FACTOR = 10  # offered requests / those that the server can answer
CLIENTS = 8
CAPACITY_SECONDS = 5.0
WARM_UP_SECONDS = 1.0
ALLOWED = {200, 429, 503}
REFUSAL_MS, GROWTH_MB, STOP_SECONDS = 50.0, 20.0, 30.0
MAX_BODY_MIB = 1
LOAD_SECONDS = (0.2, 1.0)  # before the signal


def published_model() -> ViTConfig:
    """Returns the configuration of a model that limits the server."""
    return variant_config("deit-tiny-patch16-224")


def minimal_model() -> DeiTConfig:
    """Returns the configuration of a model of 14,000 parameters, which costs less than the request."""
    sizes: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    return DeiTConfig(**sizes, intermediate_size=40, num_labels=5)


def save_model(config: ViTConfig, path: Path) -> Path:
    """Writes a model with random weights, and returns its path."""
    new_classifier(config, torch.Generator().manual_seed(0)).save_pretrained(path)
    return path


# --- Overload -------------------------------------------------------------------------------------------------------------


def measure_overload(server: ServerProgram, seconds: float) -> dict[str, Any]:
    """Offers ten times the requests per second that a server can answer.

    Returns:
        Rates, statuses, milliseconds and memory in MB, for JSON.
    """
    request = post(photo(), "image/jpeg")
    _predictions_per_second(server, request, WARM_UP_SECONDS)
    capacity = _predictions_per_second(server, request, min(CAPACITY_SECONDS, seconds))
    before, start = server.memory(), time.perf_counter()
    answers = asyncio.run(send_at_rate(server.port, request, FACTOR * capacity, seconds))
    return {
        "capacity_per_second": capacity,
        "offered_per_second": FACTOR * capacity,
        "seconds": seconds,
        "seconds_until_answered": time.perf_counter() - start,
        "statuses": statuses(answers),
        "refusal_ms": _percentiles([answer for answer in answers if answer.status != 200]),
        "prediction_ms": _percentiles([answer for answer in answers if answer.status == 200]),
        "memory_mb": {"before": before, "after": server.memory(), "highest": server.memory("VmHWM")},
    }


def _predictions_per_second(server: ServerProgram, request: bytes, seconds: float) -> float:
    """Returns the requests per second that are answered to a few clients."""
    end = time.perf_counter() + seconds
    requests = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.repeat(request))
    answers = asyncio.run(send_all(server.port, requests, CLIENTS))
    assert {answer.status for answer in answers} == {200}
    return len(answers) / seconds


def statuses(answers: Iterable[Answer]) -> dict[str, int]:
    """Returns the number of answers by status."""
    return {str(status): count for status, count in sorted(Counter(answer.status for answer in answers).items())}


def _percentiles(answers: Sequence[Answer]) -> dict[str, float] | None:
    if not answers:
        return None
    milliseconds = [1000 * answer.seconds for answer in answers]
    return dict(zip(("p50", "p99", "max"), np.percentile(milliseconds, (50, 99, 100)).tolist(), strict=True))


# --- Endurance ------------------------------------------------------------------------------------------------------------


def request_mix() -> list[tuple[bytes, int]]:
    """Returns requests, and the status of the answer to each."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(content, "PNG")
    image = content.getvalue()
    form = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + file + b"\r\n"
        for file in (image, b"not an image")
    )
    claims_400_megapixels = b"".join(itertools.islice(png(20_000, 20_000), 3))
    return [
        (post(image, "image/png"), 200),
        (post(image, "application/octet-stream", "/v1/predict?heads=true"), 200),
        (post(form + b"--x--\r\n", "multipart/form-data; boundary=x"), 200),
        (post(b"not an image", "image/png"), 422),
        (post(image[: len(image) // 2], "image/png"), 422),
        (post(claims_400_megapixels, "image/png"), 413),
        (post(b"", "image/png", length=2 * MAX_BODY_MIB * 2**20), 413),
        (post(b"{}", "application/json"), 415),
        (post(image, "image/png", "/v1/predict?top_k=0"), 422),
        (post(image, "image/png", "/v1/predict?model=other"), 404),
    ]


def measure_endurance(server: ServerProgram, requests: int, warm_up: int) -> dict[str, Any]:
    """Sends a steady mix of requests.

    Args:
        server: takes bodies of up to :data:`MAX_BODY_MIB`.
        requests: that are sent between the two measurements of memory.
        warm_up: requests before the first one.

    Returns:
        Statuses, how many are not as expected, and memory in MB, for JSON.
    """
    mix = request_mix()
    expected = Counter(status for _, status in itertools.islice(itertools.cycle(mix), requests))
    asyncio.run(_send_mix(server.port, mix, warm_up))
    before, start = server.memory(), time.perf_counter()
    answers = asyncio.run(_send_mix(server.port, mix, requests))
    found = Counter(answer.status for answer in answers)
    return {
        "requests": requests,
        "warm_up": warm_up,
        "seconds": time.perf_counter() - start,
        "statuses": statuses(answers),
        "unexpected": (found - expected).total(),
        "memory_mb": {"before": before, "after": server.memory(), "highest": server.memory("VmHWM")},
    }


async def _send_mix(port: int, mix: Sequence[tuple[bytes, int]], count: int) -> list[Answer]:
    requests = itertools.islice(itertools.cycle(request for request, _ in mix), count)
    return await send_all(port, requests, CLIENTS)


# --- Stops ----------------------------------------------------------------------------------------------------------------


@dataclass
class Stop:
    """How a server has ended under load.

    Attributes:
        statuses: of the answers after the signal.
        lost: requests whose connection was accepted, and which were not answered.
        exit_code: of the program.
        seconds: from the signal to the end of the program.
        log: what the program has printed meanwhile.
    """

    statuses: Counter[int]
    lost: int
    exit_code: int
    seconds: float
    log: str


def stop_under_load(model: Path, rng: random.Random) -> Stop:
    """Starts a server, and sends it SIGTERM while clients wait for predictions."""
    with ServerProgram(model) as server:
        return asyncio.run(_load_and_terminate(server, rng.uniform(*LOAD_SECONDS)))


async def _load_and_terminate(server: ServerProgram, delay: float) -> Stop:
    request = post(photo(), "image/jpeg")
    found: Counter[int] = Counter()
    lost = 0

    async def client(stays_connected: bool) -> None:
        nonlocal lost
        while True:
            try:
                connection = await Connection.open(server.port)
            except ConnectionError:  # the server accepts no more
                return
            try:
                while connection.is_open:
                    found[await connection.send(request)] += 1
                    if not stays_connected:
                        break
            except ConnectionError:
                lost += 1
            connection.close()

    clients = [asyncio.create_task(client(number % 2 == 0)) for number in range(2 * CLIENTS)]
    await asyncio.sleep(delay)
    found.clear()
    server.terminate()
    start = time.perf_counter()
    exit_code, log = await asyncio.to_thread(server.wait)
    seconds = time.perf_counter() - start
    await asyncio.gather(*clients)
    return Stop(found, lost, exit_code, seconds, log)


def measure_stops(model: Path, stops: int, rng: random.Random) -> dict[str, Any]:
    """Stops servers under load, and returns the sums over all of them, for JSON."""
    ends = [stop_under_load(model, rng) for _ in range(stops)]
    answered = sum((end.statuses for end in ends), Counter[int]())
    return {
        "stops": stops,
        "clients": 2 * CLIENTS,
        "statuses": {str(status): count for status, count in sorted(answered.items())},
        "lost": sum(end.lost for end in ends),
        "failed": sum(end.exit_code != 0 or bool(end.log) for end in ends),
        "seconds": {"median": float(np.median([end.seconds for end in ends])), "max": max(end.seconds for end in ends)},
    }


# --- Report ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        published, minimal = Path(name) / "published", Path(name) / "minimal"
        save_model(published_model(), published)
        save_model(minimal_model(), minimal)
        with ServerProgram(published) as server:
            overload = measure_overload(server, arguments.overload_seconds)
        with ServerProgram(minimal, "--max-body", str(MAX_BODY_MIB)) as server:
            endurance = measure_endurance(server, arguments.requests, arguments.requests // 10)
        stops = measure_stops(published, arguments.stops, random.Random(arguments.seed))
    result = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "command": f"python -m benchmarks.serving_load --overload-seconds {arguments.overload_seconds:g} "
        f"--requests {arguments.requests} --stops {arguments.stops} --seed {arguments.seed} --write",
        "overload": overload,
        "endurance": endurance,
        "stops": stops,
    }
    publish(result, table(result), "serving_load" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n".join(
        [
            "# Serving under load",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            f"`{result['command']}`.",
            "Random weights; all requests go over the loopback, and the clients share the cores with the server.",
            *_overload_lines(result["overload"]),
            *_endurance_lines(result["endurance"]),
            *_stop_lines(result["stops"]),
            "",
        ]
    )


def _overload_lines(overload: dict[str, Any]) -> list[str]:
    refusal, prediction, memory = overload["refusal_ms"], overload["prediction_ms"], overload["memory_mb"]
    forbidden = sum(count for status, count in overload["statuses"].items() if int(status) not in ALLOWED)
    return [
        "",
        "## Overload",
        "",
        f"DeiT-Ti answers {overload['capacity_per_second']:.1f} requests per second to {CLIENTS} clients. {FACTOR} times as",
        f"many are offered for {overload['seconds']:.0f} s. Goals: only 200, 429 and 503; memory stays flat; 99% of refusals",
        f"within {REFUSAL_MS:.0f} ms.",
        "",
        "| | |",
        "|---|--:|",
        f"| answers by status | {_counts(overload['statuses'])} |",
        f"| other statuses than 200, 429, 503 | {forbidden} |",
        f"| refusal, ms: p50; p99; max | {_triple(refusal)} |",
        f"| prediction, ms: p50; p99; max | {_triple(prediction)} |",
        f"| resident memory, MB: before; after; highest | {_memory(memory)} |",
    ]


def _endurance_lines(endurance: dict[str, Any]) -> list[str]:
    memory = endurance["memory_mb"]
    return [
        "",
        "## Endurance",
        "",
        "A model of 14,000 parameters. Images, images that are too large, files that are not images and unsupported media",
        f"types in turn, after {endurance['warm_up']:,} requests to warm up. Goal: growth below {GROWTH_MB:.0f} MB.",
        "",
        "| | |",
        "|---|--:|",
        f"| requests | {endurance['requests']:,} in {endurance['seconds']:.0f} s |",
        f"| answers by status | {_counts(endurance['statuses'])} |",
        f"| of these, not as expected | {endurance['unexpected']} |",
        f"| resident memory, MB: before; after; highest | {_memory(memory)} |",
        f"| growth, MB | {memory['after'] - memory['before']:.1f} |",
    ]


def _stop_lines(stops: dict[str, Any]) -> list[str]:
    seconds = stops["seconds"]
    return [
        "",
        "## SIGTERM under load",
        "",
        f"DeiT-Ti, {stops['clients']} clients. Goals: no accepted request is lost, exit code 0, within {STOP_SECONDS:.0f} s.",
        "",
        "| | |",
        "|---|--:|",
        f"| stops | {stops['stops']} |",
        f"| answers after the signal, by status | {_counts(stops['statuses'])} |",
        f"| lost requests | {stops['lost']} |",
        f"| other exit codes than 0, or error messages | {stops['failed']} |",
        f"| seconds until the program has ended: median; max | {seconds['median']:.1f}; {seconds['max']:.1f} |",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in counts.items())


def _triple(figures: dict[str, float] | None) -> str:
    return "none" if figures is None else "; ".join(f"{figures[name]:.1f}" for name in ("p50", "p99", "max"))


def _memory(figures: dict[str, float]) -> str:
    return "; ".join(f"{figures[name]:.0f}" for name in ("before", "after", "highest"))


if __name__ == "__main__":
    main()
