"""The models of a server, by name. A model whose directory is replaced is loaded again, and takes over without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from deit.errors import DeiTError, ImageError, UserError
from deit.evaluation.explanation import Explainer, Explanation, Method, explainable
from deit.inference.predictor import Predictor
from deit.models.auto import load_classifier
from deit.serving.batching import MicroBatcher, Outcome
from deit.serving.metrics import Metrics
from deit.serving.problems import Problem, busy
from deit.system.garbage_collection import freeze_garbage_collection
from deit.system.progress import print_status

MAX_EXPLANATIONS = 4  # that wait, or are computed: each takes as long as several predictions
WATCHED = ("bundle.json", "config.json", "model.safetensors", "best/model.safetensors")  # whose change means another model
Stamp = tuple[tuple[int, int, int], ...]
Load = Callable[[str], Predictor]


@dataclass
class Models:
    """The models of a server.

    Attributes:
        paths: path or name of each model, by the name that it is served under; the first one is the default.
        load: opens a model.
        queue: images that may wait for a model.
        timeout: seconds after which a request is given up.
        metrics: of the server.
    """

    paths: Mapping[str, str]
    load: Load
    queue: int
    timeout: float
    metrics: Metrics
    _batchers: dict[str, MicroBatcher] = field(default_factory=dict, init=False)
    _stamps: dict[str, Stamp] = field(default_factory=dict, init=False)
    _explainers: dict[str, Explainer] = field(default_factory=dict, init=False)
    _explaining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1), init=False)
    _waiting_explanations: int = field(default=0, init=False)

    def open(self) -> None:
        """Opens all models.

        Raises:
            DeiTError: one cannot be opened.
        """
        for name, path in self.paths.items():
            self._stamps[name] = _stamp(path)
            self._batchers[name] = self._open(name, path)

    def _open(self, name: str, path: str) -> MicroBatcher:
        return MicroBatcher(name, self.load(path), self.queue, self.metrics, self.timeout)

    @property
    def names(self) -> list[str]:
        """Names of the models, the default one first."""
        return list(self.paths)

    def get(self, name: str | None) -> MicroBatcher:
        """Returns a model; None is the default one.

        Raises:
            Problem: the name is unknown.
        """
        chosen = self.names[0] if name is None else name
        if chosen not in self._batchers:
            raise Problem(HTTPStatus.NOT_FOUND, f"Unknown model {chosen!r}: choose from {', '.join(self.names)}")
        return self._batchers[chosen]

    async def predict(self, name: str, images: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, ...], list[Outcome]]:
        """Predicts images by a model. See :meth:`MicroBatcher.predict`.

        Returns:
            The classes of the model that predicted them, which another one may have replaced meanwhile, and the outcomes.

        Raises:
            Problem: the name is unknown, or the queue of the model is full.
        """
        batcher = self.get(name)  # no other model takes its place before the images wait
        return tuple(batcher.predictor.classes), await batcher.predict(images)

    async def explain(self, name: str, image: bytes, method: Method, top: int) -> Explanation:
        """Explains a prediction. One image at a time is explained, and :data:`MAX_EXPLANATIONS` may wait.

        Raises:
            Problem: the name is unknown, the model has no attention, or too many images wait.
            ImageError: the input is not an image.
        """
        self.get(name)
        if self._waiting_explanations >= MAX_EXPLANATIONS:
            raise busy(MAX_EXPLANATIONS)
        self._waiting_explanations += 1
        try:
            async with self._explaining:
                return await asyncio.to_thread(self._explain, name, image, method, top)
        except UserError as error:
            if isinstance(error, ImageError):
                raise
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        finally:
            self._waiting_explanations -= 1

    def _explain(self, name: str, image: bytes, method: Method, top: int) -> Explanation:
        if name not in self._explainers:
            self._explainers[name] = Explainer(load_classifier(explainable(self.paths[name])))
        return self._explainers[name](image, "image", method=method, top=top)

    async def watch(self, seconds: float) -> None:
        """Loads models again when their directories have changed, until it is cancelled.

        Args:
            seconds: between two looks.
        """
        while True:
            await asyncio.sleep(seconds)
            for name, path in self.paths.items():
                if (stamp := _stamp(path)) and stamp != self._stamps[name]:
                    self._stamps[name] = stamp
                    await self._reload(name, path)

    async def _reload(self, name: str, path: str) -> None:
        """Replaces a model by the one at its path, unless that cannot be opened. Requests of the old one are answered by it."""
        try:
            batcher = await asyncio.to_thread(self._open, name, path)
        except DeiTError as error:
            print_status(f"{name} is served as before: {error}")
            return
        old, self._batchers[name] = self._batchers[name], batcher
        self._explainers.pop(name, None)
        print_status(f"{name} was replaced and is loaded again")
        await asyncio.to_thread(old.close)
        del old
        freeze_garbage_collection()

    def close(self) -> None:
        """Ends the threads of all models, once what waits is predicted."""
        for batcher in self._batchers.values():
            batcher.close()


def _stamp(path: str) -> Stamp:
    """Returns what changes when a directory is replaced; empty while there is none."""
    found = []
    for file in (Path(path), *(Path(path) / name for name in WATCHED)):
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
