"""A bounded queue before a predictor: an image that comes alone is predicted at once, those that wait leave in batches.

There is a thread per core, as in :meth:`Predictor.stream`: each takes what waits, up to the batch size of the runtime, decodes
it, runs the model on it, and takes the next. Nothing waits for a batch to fill. While the other threads are idle, a single
image runs on a second runtime, which uses all cores for it.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from deit.errors import ImageError
from deit.inference.predictor import Predictor
from deit.inference.runtimes import Runtime
from deit.serving.metrics import Metrics
from deit.serving.problems import busy
from deit.system.hardware import cores

Logits = dict[str, np.ndarray]  # (K,) by head
Outcome = Logits | ImageError
RATE_MEMORY = 0.9  # of the moving average of the seconds per image


@dataclass(eq=False)
class _Job:
    """An image that waits: a file's content, or pixels (C, height, width) that are preprocessed."""

    content: bytes | np.ndarray
    outcome: asyncio.Future[Outcome]
    arrived: float = field(default_factory=time.monotonic)


class MicroBatcher:
    """Predicts images that arrive one by one, or a few at a time.

    Args:
        name: of the model, for metrics.
        predictor: the model.
        limit: images that may wait.
        metrics: of the server.
        patience: seconds after which a request is given up: it is refused at once if the images before it take longer.
        threads: that decode and run the model; None is one per core.

    Raises:
        CheckpointError: the model was replaced after it was loaded.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        limit: int,
        metrics: Metrics,
        patience: float = math.inf,
        threads: int | None = None,
    ) -> None:
        self.predictor, self.limit, self._patience = predictor, limit, patience
        self._single_image_runtime = _for_single_images(predictor.runtime)
        self._name, self._metrics = name, metrics
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy_threads = 0
        self._seconds_per_image = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"deit-serve-{number}", daemon=True)
            for number in range(threads or cores())
        ]
        for thread in self._threads:
            thread.start()

    async def predict(self, images: Sequence[tuple[str, bytes]]) -> list[Outcome]:
        """Predicts the images of a request, all or none. If the request is cancelled, those that still wait leave the queue.

        Args:
            images: names and file contents.

        Raises:
            Problem: the queue is full, or too long for the time of a request.
        """
        return await self._submit([content for _, content in images])

    async def predict_pixels(self, pixels: np.ndarray) -> list[Logits]:
        """Predicts images that are preprocessed, as :meth:`predict` does.

        Args:
            pixels: (B, C, height, width), in the type of the model's input.

        Raises:
            Problem: the queue is full.
        """
        return cast("list[Logits]", await self._submit(list(pixels)))  # only a file can be unreadable

    async def _submit(self, contents: Sequence[bytes | np.ndarray]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        jobs = [_Job(content, loop.create_future()) for content in contents]
        with self._changed:
            seconds = self._seconds_until_room()
            if self._waiting and (len(self._waiting) + len(jobs) > self.limit or seconds > self._patience):
                raise busy(seconds)
            self._waiting.extend(jobs)
            self._report()
            self._changed.notify(len(jobs))
        try:
            return list(await asyncio.gather(*(job.outcome for job in jobs)))
        finally:
            with self._changed:
                for job in jobs:
                    if not job.outcome.done() or job.outcome.cancelled():
                        self._withdraw(job)
                self._report()

    def close(self) -> None:
        """Ends the threads once nothing waits any more. Waits for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _withdraw(self, job: _Job) -> None:
        try:
            self._waiting.remove(job)
        except ValueError:  # a thread has it already
            return

    def _report(self) -> None:
        self._metrics.queued.labels(self._name).set(len(self._waiting))

    def _seconds_until_room(self) -> int:
        return max(math.ceil(len(self._waiting) * self._seconds_per_image / len(self._threads)), 1)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                jobs, reason = self._take()
                self._busy_threads += 1
            self._metrics.batch_size.labels(self._name, reason).observe(len(jobs))
            start = time.monotonic()
            outcomes = self._predict(jobs)
            taken = (time.monotonic() - start) / len(jobs)
            with self._changed:
                self._busy_threads -= 1  # before a client has its outcome, and sends the next image
                self._seconds_per_image = RATE_MEMORY * self._seconds_per_image + (1 - RATE_MEMORY) * taken or taken
            for job, outcome in outcomes.items():
                _resolve(job, outcome)

    def _take(self) -> tuple[list[_Job], str]:
        """Takes a share of what waits, so that other threads have some, too. Returns it, and why the batch has its size."""
        share = -(-len(self._waiting) // len(self._threads))
        count = min(share, self.predictor.runtime.batch_size)
        reason = "full" if count == self.predictor.runtime.batch_size else "alone" if share == 1 else "shared"
        jobs = [self._waiting.popleft() for _ in range(count)]
        self._report()
        return jobs, reason

    def _predict(self, jobs: Sequence[_Job]) -> dict[_Job, Outcome | Exception]:
        """Decodes images and runs the model. An image that cannot be decoded fails alone."""
        now = time.monotonic()
        pixels: dict[_Job, np.ndarray] = {}
        outcomes: dict[_Job, Outcome | Exception] = {}
        for job in jobs:
            self._metrics.queue_age.labels(self._name).observe(now - job.arrived)
            if job.outcome.cancelled():
                continue
            try:
                pixels[job] = self._pixels(job.content)
            except Exception as error:  # noqa: BLE001, raised in the request
                outcomes[job] = error
        if not pixels:
            return outcomes
        runtime = self._choose_runtime(len(pixels))
        try:
            with self._metrics.model_seconds.labels(self._name).time():
                logits = runtime(np.stack(list(pixels.values())))
        except Exception as error:  # noqa: BLE001, raised in the requests
            return outcomes | dict.fromkeys(pixels, error)
        rows = ({head: values[row] for head, values in logits.items()} for row in range(len(pixels)))
        return outcomes | dict(zip(pixels, rows, strict=True))

    def _pixels(self, content: bytes | np.ndarray) -> np.ndarray:
        if isinstance(content, np.ndarray):
            return content
        with self._metrics.decode_seconds.labels(self._name).time():
            return self.predictor.preprocess(content)

    def _choose_runtime(self, images: int) -> Runtime:
        """Returns the runtime that uses all cores for an image, unless other threads need them."""
        with self._changed:
            is_alone = images == 1 and self._busy_threads == 1 and not self._waiting
        return self._single_image_runtime if is_alone else self.predictor.runtime


def _for_single_images(runtime: Runtime) -> Runtime:
    """Returns a runtime that uses all cores for one call: the same one if it runs one call at a time anyway."""
    return runtime if runtime.concurrency == 1 else runtime.with_performance_hint("latency")


def _resolve(job: _Job, outcome: Outcome | Exception) -> None:
    """Hands a result to the event loop. An image error is a result; any other error is raised in the request."""

    def set_outcome() -> None:
        if job.outcome.done():
            return
        if isinstance(outcome, Exception) and not isinstance(outcome, ImageError):
            job.outcome.set_exception(outcome)
        else:
            job.outcome.set_result(outcome)

    try:
        job.outcome.get_loop().call_soon_threadsafe(set_outcome)
    except RuntimeError:  # the event loop is closed
        return
