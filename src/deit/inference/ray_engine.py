"""Predicts a table on the machines of a Ray cluster (https://docs.ray.io), with Ray Data; extra ``ray``.

Each machine, or each GPU, runs a :class:`Predictor`. Ray distributes the parts of the table, and repeats those of a worker that
fails. The program that was started writes them, so that a table begun on one engine can be finished on another. Every machine
must have this package, and find the model and the images under the same names: on a file system that all share, or packed at
an address.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deit.errors import CheckpointError, MissingExtraError, UserError, WorkError
from deit.images.decoding import configure_pillow
from deit.images.limits import max_pixels, set_max_pixels
from deit.inference.predict_files import ImageFiles, Images, PackedImages, Part, is_same_model, probe
from deit.inference.predictor import Prediction, Predictor
from deit.system.signals import check_stop

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5  # how often a signal is looked for while a part is awaited


class RayEngine:
    """An :class:`deit.inference.predict_files.Engine` that predicts on Ray.

    It connects to the cluster at ``$RAY_ADDRESS``, or to one that runs on this machine, or starts one on it.

    Args:
        predictor: the model, as this process has loaded it.
        arguments: of :meth:`Predictor.from_pretrained`, for the workers.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: there is no cluster at ``$RAY_ADDRESS``.
    """

    def __init__(self, predictor: Predictor, arguments: Mapping[str, Any]) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise MissingExtraError("Predicting on Ray", "ray") from None
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        self._predictor, self._arguments = predictor, dict(arguments)

    def __call__(
        self, images: Images, parts: Sequence[Part], top: int, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Prediction]]]:
        """Yields the number of each part with its predictions, in the order in which they arrive.

        Raises:
            InterruptedWorkError: a signal was received.
            WorkError: Ray has failed, or a worker in a way that is not repeated.
        """
        if not parts:
            return
        with redirect_stdout(sys.stderr), _connected():  # Ray prints there that a worker has died
            for row in _in_background(self._rows(images, parts, top)):
                predictions = [_prediction(fields) for fields in json.loads(row["predictions"])]
                advance(len(predictions))
                yield int(row["number"]), predictions

    def _rows(self, images: Images, parts: Sequence[Part], top: int) -> Iterator[dict[str, Any]]:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        pool = _pool(ray.nodes())  # type: ignore[no-untyped-call]
        packed = images.data if isinstance(images, PackedImages) else None
        items = [
            {
                "number": part.number,
                "names": json.dumps([images.names[index] for index in part.indices]),
                "first": part.indices.start,
            }
            for part in parts
        ]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _PartPredictor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(items))),
            fn_constructor_kwargs={
                "arguments": {**self._arguments, "name": _absolute(self._arguments["name"])},
                "top": top,
                "packed": None if packed is None else _absolute(packed),
                "folder": str(Path.cwd()),
                "logits": probe(self._predictor).tolist(),
                "pixels": max_pixels(),
            },
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        yield from dataset.iter_rows()


class _PartPredictor:
    """The class of Ray Data's actors: predicts parts on one machine or GPU."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        top: int,
        packed: str | None,
        folder: str,
        logits: Sequence[float],
        pixels: int,
    ) -> None:
        with suppress(OSError):  # where it does not exist, names of files are absolute
            os.chdir(folder)
        configure_pillow()
        set_max_pixels(pixels)
        self._predictor = Predictor.from_pretrained(**arguments)
        if not is_same_model(probe(self._predictor), np.asarray(logits)):
            raise CheckpointError(f"{arguments['name']} on {os.uname().nodename} is another model", "copy it to all machines")
        self._top = top
        self._packed = None if packed is None else PackedImages(packed)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        names, first = json.loads(str(batch["names"][0])), int(batch["first"][0])
        if self._packed is None:
            files: Images = ImageFiles(names)
            contents = (files.open(index) for index in range(len(names)))
        else:
            packed = self._packed
            contents = (packed.open(index) for index in range(first, first + len(names)))
        predictions = [asdict(row) for row in self._predictor.stream(contents, self._top, names)]
        return {"number": [int(batch["number"][0])], "predictions": [json.dumps(predictions)]}


def _check_address(address: str) -> None:
    """Checks that something answers at ``host:port``; Ray would wait for minutes.

    Raises:
        UserError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"There is no Ray cluster at {address}", "set RAY_ADDRESS to that of its head node") from error


@contextmanager
def _connected() -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine, unless the program has done so.

    Raises:
        WorkError: neither is possible.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors of its own that it recovers from
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WorkError(f"Cannot connect to Ray: {error}", "check $RAY_ADDRESS, and that the cluster runs") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray installs its own
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, too
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Pool:
    """Number of workers, and the cores and GPUs of each."""

    workers: int
    cpus: float
    gpus: float


def _pool(nodes: Sequence[Mapping[str, Any]]) -> _Pool:
    """Returns a worker per GPU, with its share of the cores, or without GPUs one per machine, with all cores.

    A machine with several times the cores of the smallest one gets several workers.

    Raises:
        WorkError: no machine has a core for workers.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not machines:
        raise WorkError("The Ray cluster has no cores for workers", "start a node with --num-cpus 1 or more")
    gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if gpus:
        share = min(machine["CPU"] / machine["GPU"] for machine in gpus)
        return _Pool(sum(int(machine["GPU"]) for machine in gpus), cpus=share, gpus=1)
    fewest = min(machine["CPU"] for machine in machines)
    return _Pool(sum(int(machine["CPU"] // fewest) for machine in machines), cpus=fewest, gpus=0)


def _in_background(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields rows that another thread waits for, so that a signal is noticed meanwhile.

    Raises:
        InterruptedWorkError: a signal was received.
        WorkError: the rows end with an error.
    """
    found: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def wait() -> None:
        try:
            for row in rows:
                found.put(row)
            found.put(None)
        except BaseException as error:  # noqa: BLE001, raised in the thread that waits
            found.put(error)

    threading.Thread(target=wait, daemon=True).start()
    while True:
        check_stop()
        try:
            row = found.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            check_stop()  # a signal to the process group has ended Ray, too
            cause = str(row).strip().rsplit("\n", 1)[-1]
            raise WorkError(f"Predicting on Ray failed: {cause}", "the same command goes on from the last part") from row
        yield row


def _prediction(fields: Mapping[str, Any]) -> Prediction:
    return Prediction(fields["image"], tuple(fields["labels"]), tuple(fields["probabilities"]), fields["error"])


def _absolute(name: str | Path) -> str:
    """Makes an existing path absolute: workers have another working directory."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
