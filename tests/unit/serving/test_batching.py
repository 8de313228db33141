"""The queue before a predictor: no waiting when idle, batches when busy, a limit, and images that fail or leave alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.errors import ImageError
from deit.inference.predictor import Predictor
from deit.serving.batching import MicroBatcher, Outcome
from deit.serving.metrics import Metrics
from deit.serving.problems import Problem
from tests.helpers import pattern


class FakePredictor:
    """Returns the first byte of each image as its logits; waits for ``go`` before each batch. Is its own runtime."""

    def __init__(self, concurrency: int = 1) -> None:
        self.runtime: Any = self
        self.concurrency, self.batch_size = concurrency, 4
        self.go, self.started = threading.Event(), threading.Semaphore(0)
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.variants: dict[str, FakePredictor] = {}

    def with_performance_hint(self, hint: str) -> FakePredictor:
        return self.variants[hint]

    def preprocess(self, content: bytes) -> np.ndarray:
        if content == b"bad":
            raise ImageError("no image")
        return np.array([content[0]])

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(pixels))
        self.started.release()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return {"class": pixels}


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def batcher(predictor: FakePredictor) -> Iterator[MicroBatcher]:
    made = MicroBatcher("m", predictor, 8, Metrics(), threads=1)  # type: ignore[arg-type]
    yield made
    predictor.go.set()
    made.close()


def image(value: int) -> tuple[str, bytes]:
    return f"{value}.png", bytes([value])


async def hold(batcher: MicroBatcher, predictor: FakePredictor) -> asyncio.Task[list[Outcome]]:
    """Sends an image, which keeps the only thread busy."""
    task = asyncio.create_task(batcher.predict([image(0)]))
    await asyncio.to_thread(predictor.started.acquire)
    return task


def values(outcomes: list[Outcome]) -> list[int]:
    return [int(outcome["class"][0]) for outcome in outcomes if isinstance(outcome, dict)]


def test_batches_when_busy(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    async def run() -> list[list[Outcome]]:
        first = await hold(batcher, predictor)
        others = [asyncio.create_task(batcher.predict([image(number)])) for number in range(1, 7)]
        await asyncio.sleep(0)
        predictor.go.set()
        return await asyncio.gather(first, *others)

    assert [values(outcomes) for outcomes in asyncio.run(run())] == [[number] for number in range(7)]
    assert predictor.batches == [1, 4, 2]


def test_threads_share_what_waits(predictor: FakePredictor) -> None:
    predictor.go.set()
    batcher = MicroBatcher("m", predictor, 8, Metrics(), threads=2)  # type: ignore[arg-type]
    outcomes = asyncio.run(batcher.predict([image(number) for number in range(4)]))
    batcher.close()
    assert values(outcomes) == [0, 1, 2, 3]
    assert max(predictor.batches) <= 2


def test_full_queue_refuses_a_request_as_a_whole(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    async def run() -> None:
        first = await hold(batcher, predictor)
        waiting = asyncio.create_task(batcher.predict([image(number) for number in range(6)]))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as error:
            await batcher.predict([image(number) for number in range(3)])
        assert error.value.status == 429
        assert int((error.value.headers or {})["Retry-After"]) >= 1
        accepted = asyncio.create_task(batcher.predict([image(7), image(8)]))
        await asyncio.sleep(0)
        predictor.go.set()
        assert values(await accepted) == [7, 8]
        await asyncio.gather(first, waiting)

    asyncio.run(run())


def test_request_that_would_wait_too_long_is_refused_at_once(predictor: FakePredictor) -> None:
    batcher = MicroBatcher("m", predictor, 8, Metrics(), patience=5.0, threads=1)  # type: ignore[arg-type]
    batcher._seconds_per_image = 3.0

    async def run() -> None:
        accepted = [await hold(batcher, predictor)]
        for number in (1, 2):  # 0 and 3 s until it is their turn
            accepted.append(asyncio.create_task(batcher.predict([image(number)])))
            await asyncio.sleep(0)
        with pytest.raises(Problem) as error:
            await batcher.predict([image(3)])
        assert (error.value.status, error.value.headers) == (429, {"Retry-After": "6"})
        predictor.go.set()
        assert [values(outcomes) for outcomes in await asyncio.gather(*accepted)] == [[0], [1], [2]]

    asyncio.run(run())
    batcher.close()


def test_bad_image_fails_alone(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    predictor.go.set()
    outcomes = asyncio.run(batcher.predict([image(1), ("bad.png", b"bad"), image(2)]))
    assert isinstance(outcomes[1], ImageError)
    assert values(outcomes) == [1, 2]


def test_request_that_is_cancelled_leaves_the_queue(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    async def run() -> None:
        first = await hold(batcher, predictor)
        waiting = asyncio.create_task(batcher.predict([image(number) for number in range(8)]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        accepted = asyncio.create_task(batcher.predict([image(number) for number in range(8)]))
        await asyncio.sleep(0)
        predictor.go.set()
        assert len(await accepted) == 8
        await first

    asyncio.run(run())
    assert sum(predictor.batches) == 9


def test_error_of_the_model_reaches_every_request(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    predictor.error = RuntimeError("broken")
    predictor.go.set()
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(batcher.predict([image(1), image(2)]))
    predictor.error = None
    assert values(asyncio.run(batcher.predict([image(3)]))) == [3]


def test_what_waits_is_predicted_before_the_threads_end(predictor: FakePredictor) -> None:
    batcher = MicroBatcher("m", predictor, 8, Metrics(), threads=1)  # type: ignore[arg-type]

    async def run() -> list[Outcome]:
        first = await hold(batcher, predictor)
        waiting = asyncio.create_task(batcher.predict([image(5), image(6)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        predictor.go.set()
        await asyncio.gather(first, closing)
        return await waiting

    assert values(asyncio.run(run())) == [5, 6]


@pytest.fixture
def latency_runtime() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def two_runtimes(predictor: FakePredictor, latency_runtime: FakePredictor) -> Iterator[MicroBatcher]:
    """A batcher of two threads, whose runtime has a variant for single images."""
    predictor.concurrency = 2
    predictor.variants["latency"] = latency_runtime
    made = MicroBatcher("m", predictor, 8, Metrics(), threads=2)  # type: ignore[arg-type]
    yield made
    predictor.go.set()
    latency_runtime.go.set()
    made.close()


def test_all_cores_work_for_an_image_that_is_alone(
    two_runtimes: MicroBatcher, predictor: FakePredictor, latency_runtime: FakePredictor
) -> None:
    async def run() -> None:
        first = asyncio.create_task(two_runtimes.predict([image(1)]))
        await asyncio.to_thread(latency_runtime.started.acquire)
        second = asyncio.create_task(two_runtimes.predict([image(2)]))
        await asyncio.to_thread(predictor.started.acquire)
        predictor.go.set()
        latency_runtime.go.set()
        assert values([*await first, *await second]) == [1, 2]
        assert values(await two_runtimes.predict([image(3)])) == [3]

    asyncio.run(run())
    assert (latency_runtime.batches, predictor.batches) == ([1, 1], [1])


def test_images_that_come_together_share_the_cores(
    two_runtimes: MicroBatcher, predictor: FakePredictor, latency_runtime: FakePredictor
) -> None:
    async def run() -> None:
        both = asyncio.create_task(two_runtimes.predict([image(1), image(2)]))
        for _ in range(2):
            await asyncio.to_thread(predictor.started.acquire)
        predictor.go.set()
        assert values(await both) == [1, 2]

    asyncio.run(run())
    assert (latency_runtime.batches, predictor.batches) == ([], [1, 1])


def test_pixels_and_files_are_predicted_in_one_batch(batcher: MicroBatcher, predictor: FakePredictor) -> None:
    async def run() -> None:
        first = await hold(batcher, predictor)
        pixels = asyncio.create_task(batcher.predict_pixels(np.array([[5], [6]])))
        files = asyncio.create_task(batcher.predict([image(7)]))
        await asyncio.sleep(0)
        predictor.go.set()
        assert [int(logits["class"][0]) for logits in await pixels] == [5, 6]
        assert values(await files) == [7]
        await first

    asyncio.run(run())
    assert predictor.batches == [1, 3]


def test_prediction_alone_and_in_a_batch(model: Path, tmp_path: Path) -> None:
    batcher = MicroBatcher("m", Predictor.from_pretrained(model, "cpu"), 64, Metrics(), threads=1)
    for number in range(8):
        pattern(60, 40, number).save(tmp_path / f"{number}.png")
    images = [(f"{number}", (tmp_path / f"{number}.png").read_bytes()) for number in range(8)]
    together = asyncio.run(batcher.predict(images))
    for single, expected in zip(images, together, strict=True):
        [alone] = asyncio.run(batcher.predict([single]))
        assert isinstance(alone, dict) and isinstance(expected, dict)
        np.testing.assert_allclose(alone["both"], expected["both"], rtol=1e-4, atol=1e-5)
    pixels = np.stack([batcher.predictor.preprocess(content) for _, content in images])
    for logits, expected in zip(asyncio.run(batcher.predict_pixels(pixels)), together, strict=True):
        assert isinstance(expected, dict)
        np.testing.assert_array_equal(logits["both"], expected["both"])
    batcher.close()
