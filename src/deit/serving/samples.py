"""Images of a model's data, which the page offers to try the model on."""

from __future__ import annotations

import io
import threading
from http import HTTPStatus
from pathlib import Path

import numpy as np
from PIL import Image

from deit.data.opening import open_data
from deit.data.sources import ImageSource
from deit.data.splits import VALIDATION_FRACTION, read_record
from deit.errors import DeiTError
from deit.inference.bundle import is_bundle, open_bundle
from deit.serving.problems import Problem
from deit.system.files import BEST_NAME, LAST_NAME, RUN_NAME, read_json
from deit.system.progress import print_status

MAX_SAMPLES = 12
MAX_SIDE = 512  # pixels; larger images are reduced
OFF, AUTO = "off", "auto"


class Samples:
    """A few held-out images of a data set, one per class.

    Args:
        model: path or name of the model.
        data: the data set; ``auto`` is the one that the model's run was trained on, which is opened when its images are asked
            for; ``off`` is none.

    Raises:
        DeiTError: the data set is named, and cannot be opened.
    """

    def __init__(self, model: str, data: str) -> None:
        self._model, self._data = model, data
        self._lock = threading.Lock()
        self._opened: tuple[list[int], ImageSource | None] | None = None
        if data not in (AUTO, OFF):
            self._opened = _chosen(held_out_images(model, data))

    def entries(self) -> list[tuple[int, str, str]]:
        """Returns number, name and class of each image; none if there is no data set, or it cannot be opened."""
        indices, source = self._open()
        if source is None:
            return []
        classes, labels = source.classes, source.labels
        return [(number, Path(source.name(index)).name, classes[labels[index]]) for number, index in enumerate(indices)]

    def load(self, number: int) -> bytes:
        """Returns an image as a PNG file.

        Raises:
            ImageError: it is not readable.
            Problem: there is no such image.
        """
        indices, source = self._open()
        if source is None or number >= len(indices):
            raise Problem(HTTPStatus.NOT_FOUND, f"There is no sample {number}: /v1/samples lists them")
        image = source.load(indices[number])
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, "PNG")
        return content.getvalue()

    def _open(self) -> tuple[list[int], ImageSource | None]:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = _chosen(held_out_images(self._model, self._data))
                except (DeiTError, OSError) as error:
                    print_status(f"The page has no examples: {error}")
                    self._opened = [], None
            return self._opened


def held_out_images(model: str, data: str) -> ImageSource | None:
    """Returns the test or validation images of a data set; None if there is none.

    Args:
        model: path or name of a model, a run or a bundle.
        data: as in :class:`Samples`.

    Raises:
        DeiTError: the data set cannot be opened.
    """
    if data == OFF:
        return None
    path = _trained_model(model)
    run = path.parent if path.name in (BEST_NAME, LAST_NAME) else path
    if data == AUTO:
        data = str(read_json(run / RUN_NAME).get("data", "")) if (run / RUN_NAME).is_file() else ""
    if not data:
        return None
    best = run / BEST_NAME
    record = read_record(best if best.is_dir() else path) if path.exists() else None
    seed, fraction = (record.split_seed, record.validation_fraction) if record else (0, VALIDATION_FRACTION)
    return open_data(data, seed, fraction).held_out[1]


def _trained_model(model: str) -> Path:
    """Returns the path of a model: of a bundle, the model that it was exported from."""
    source = open_bundle(model).metadata.report.get("source") if is_bundle(model) else None
    return Path(source if isinstance(source, str) else model)


def _chosen(source: ImageSource | None) -> tuple[list[int], ImageSource | None]:
    """Returns the index of the first image of each of :data:`MAX_SAMPLES` classes, evenly spaced, and the images."""
    if source is None:
        return [], None
    _, first = np.unique(source.labels, return_index=True)
    classes = np.unique(np.linspace(0, len(first) - 1, min(MAX_SAMPLES, len(first))).round().astype(int))
    return [int(index) for index in first[classes]], source
