"""Predicts any number of images into a table, in parts: a program that is killed goes on where it was.

A part is written when its images are predicted, and the table when all parts are there. Memory holds the names of all images,
and the predictions of one part. An :class:`Engine` predicts the parts: :func:`predict_here`, or many machines
(:mod:`deit.inference.ray_engine`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

import numpy as np

from deit.data.datasets.shards import packed_splits
from deit.data.sources import ImageSource, image_content
from deit.errors import InterruptedWorkError, UserError
from deit.inference.prediction_table import TableFormat, table_format
from deit.inference.predictor import Prediction, Predictor
from deit.system.files import check_writable, new_file, read_json, write_bytes, write_json
from deit.system.locking import locked
from deit.system.progress import Progress
from deit.system.replacing import clean_up, shortened
from deit.system.signals import check_stop, stop_on_signals

if TYPE_CHECKING:
    from deit.inference.inputs import ImageLike

PART_IMAGES = 64, 4096  # at least and at most
PARTS = 64  # that are not larger than necessary, so that several machines have some each
PARTS_ENDING = ".parts"
JOB_NAME = "job.json"
TOLERANCE = 0.01  # of the logits of one model on the same machine, relative to the largest
MAX_FOLDER_BYTES = 200  # of the name of a class folder


@dataclass(frozen=True)
class PredictedTable:
    """A finished table.

    Attributes:
        path: the table.
        images: its rows.
        unreadable: rows with an error.
        resumed: rows that a program before had predicted.
        seconds: duration.
    """

    path: Path
    images: int
    unreadable: int
    resumed: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a table.

    Attributes:
        number: counted from 0.
        indices: of its images.
    """

    number: int
    indices: range


class Images(Protocol):
    """Images to predict: :class:`ImageFiles` or :class:`PackedImages`.

    Attributes:
        names: of the images, in the order of the rows.
    """

    names: Sequence[str]

    def open(self, index: int) -> ImageLike:
        """Returns an image, as :meth:`Predictor.stream` takes it."""


class Engine(Protocol):
    """Predicts the parts of a table, in any order."""

    def __call__(
        self, images: Images, parts: Sequence[Part], top: int, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Prediction]]]:
        """Yields the number of each part with its predictions, in the order of its images.

        Args:
            images: all images of the table.
            parts: the parts to predict.
            top: number of classes per image.
            advance: is called with the number of images that were predicted since the call before.

        Raises:
            InterruptedWorkError: a signal was received.
        """


def predict_files(
    predictor: Predictor,
    images: Images | Sequence[str],
    out: str | Path,
    top: int = 5,
    *,
    engine: Engine | None = None,
    sort_into: str | Path | None = None,
    part_images: int | None = None,
) -> PredictedTable:
    """Predicts images into a table, with one row per image, in their order.

    The same call after a kill, a signal or an error goes on after the last part. No row is lost or doubled.

    Args:
        predictor: the model.
        images: paths of image files, or a packed data set.
        out: the table, which does not exist yet: ``.parquet``, ``.csv`` or ``.jsonl``.
        top: number of classes per image.
        engine: predicts the parts; None predicts them in this process.
        sort_into: a new folder that gets a folder per predicted class, with symbolic links to the files.
        part_images: images per part; None chooses it by the number of images.

    Raises:
        MissingExtraError: Parquet, without pyarrow.
        UserError: the table exists already, or an unfinished one is of other images, settings or another model.
        InterruptedWorkError: a signal was received; the finished parts are kept.
    """
    start, path = time.monotonic(), Path(out)
    if isinstance(images, Sequence):
        images = ImageFiles(images)
    if part_images is None:
        part_images = min(max(-(-len(images.names) // PARTS), PART_IMAGES[0]), PART_IMAGES[1])
    top = min(top, len(predictor.classes))
    table = table_format(path, top)
    check_new_table(path)
    folder = None if sort_into is None else Path(sort_into).resolve()
    parts = path.with_name(path.name + PARTS_ENDING)
    with locked(parts, "wait until it has finished, or pass another --out"), stop_on_signals():
        clean_up(parts)
        settings = {"top": top, "part_images": part_images, "sort_into": None if folder is None else str(folder)}
        _start_job(parts, predictor, images.names, settings, folder)
        count = len(images.names)
        rows = [range(first, min(first + part_images, count)) for first in range(0, count, part_images)]
        files = [parts / f"part-{number:08d}" for number in range(len(rows))]
        missing = [Part(number, rows[number]) for number, file in enumerate(files) if not file.exists()]
        sorter = None if folder is None else ClassFolders(folder, predictor.classes)
        left = sum(len(part.indices) for part in missing)
        engine = engine or partial(predict_here, predictor)
        with Progress("Predicting", left) as progress:
            try:
                for number, predictions in engine(images, missing, top, progress.advance):
                    _write_part(files[number], table, predictions, sorter)
            except InterruptedWorkError as error:
                saved = sum(len(indices) for indices, file in zip(rows, files, strict=True) if file.exists())
                problem = f"Stopped, with the predictions of {saved:,} of {count:,} images saved"
                raise InterruptedWorkError(problem, "the same command goes on from there", error.exit_code) from None
        unreadable = sum(int(_unreadable_file(file).read_text()) for file in files)
        with new_file(path) as draft, draft.open("xb") as file:
            table.join(files, file)
        shutil.rmtree(parts, ignore_errors=True)
    return PredictedTable(path, count, unreadable, count - left, time.monotonic() - start)


def predict_here(
    predictor: Predictor, images: Images, parts: Sequence[Part], top: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, list[Prediction]]]:
    """The :class:`Engine` of this process: yields the parts in their order."""
    indices = [part.indices for part in parts]
    contents = (images.open(index) for index in chain.from_iterable(indices))
    names = (images.names[index] for index in chain.from_iterable(indices))
    predictions = predictor.stream(contents, top, names)
    for part in parts:
        rows = []
        for prediction in islice(predictions, len(part.indices)):
            check_stop()
            rows.append(prediction)
            advance(1)
        yield part.number, rows


def check_new_table(path: Path) -> None:
    """Checks that a table can be written.

    Raises:
        UserError: it exists already, or its folder cannot be written to.
    """
    if path.exists():
        raise UserError(f"{path} exists already", "pass another --out, or remove it")
    check_writable(path.parent)


class ImageFiles:
    """Image files.

    Args:
        names: their paths.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def open(self, index: int) -> Path:
        """Returns the path of an image."""
        return Path(self.names[index])


class PackedImages:
    """The images of all splits of a packed data set, one after the other.

    Args:
        data: a folder or address, as :func:`deit.data.datasets.shards.packed_splits` takes it.

    Attributes:
        data: the folder or address.
        names: of the images.
    """

    def __init__(self, data: str) -> None:
        self.data = data
        self._sources = list(packed_splits(data).sources.values())
        self._ends = np.cumsum([len(source.labels) for source in self._sources])
        self.names: Sequence[str] = [source.name(index) for source in self._sources for index in range(len(source.labels))]

    def open(self, index: int) -> BinaryIO:
        """Returns an image as a file that is read when the predictor needs it, on one of its threads."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return cast(BinaryIO, _PackedImage(self._sources[number], index - start))


@dataclass(frozen=True)
class _PackedImage:
    source: ImageSource
    index: int

    @property
    def name(self) -> str:
        return self.source.name(self.index)

    def read(self, _size: int = -1) -> bytes:
        content = image_content(self.source, self.index)
        assert isinstance(content, bytes)
        return content


class ClassFolders:
    """Links images into one folder per class.

    Args:
        root: the folder of the class folders.
        classes: class names, any text.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._folders: dict[str, Path] = {}
        taken: set[str] = set()
        for name in classes:
            folder = _unused(_folder_name(name), taken)
            taken.add(folder.casefold())
            self._folders[name] = root / folder

    def add(self, prediction: Prediction) -> None:
        """Links an image into the folder of its most likely class. An unreadable one, or one that is there, is left out."""
        if not prediction.labels:
            return
        image, folder = Path(prediction.image).absolute(), self._folders[prediction.labels[0]]
        folder.mkdir(parents=True, exist_ok=True)
        mark = hashlib.sha256(os.fsencode(image)).hexdigest()[:12]
        for name in (image.name, f"{shortened(image.stem, MAX_FOLDER_BYTES)}-{mark}{image.suffix}"):
            link = folder / name
            if not link.is_symlink():
                link.symlink_to(image)
                return
            if link.readlink() == image:
                return


def _folder_name(name: str) -> str:
    """Returns the name of a class as that of a folder: no path, not hidden, not too long."""
    text = "".join("_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in name)
    text = shortened(text.strip().rstrip("."), MAX_FOLDER_BYTES)
    return f"_{text}" if not text or text.startswith(".") else text


def _unused(name: str, taken: set[str]) -> str:
    """Returns the name, with a number if another class has it, on file systems that ignore case, too."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(candidate for candidate in names if candidate.casefold() not in taken)


def _start_job(
    parts: Path, predictor: Predictor, images: Sequence[str], settings: Mapping[str, Any], sort_into: Path | None
) -> None:
    """Records what is predicted, or checks that it is the same as before.

    Raises:
        UserError: it is not.
    """
    job = {**settings, "images": _digest(images), "classes": _digest(predictor.classes)}
    logits = probe(predictor)
    path = parts / JOB_NAME
    if not path.exists():
        if sort_into is not None and sort_into.exists() and (not sort_into.is_dir() or any(sort_into.iterdir())):
            raise UserError(f"{sort_into} exists already", "pass a new folder for --sort-into")
        write_json(path, {**job, "logits": logits.tolist()})
        return
    before = read_json(path)
    known = np.asarray(before.pop("logits", []), np.float64)
    same_model = is_same_model(known, logits)
    if before != job or not same_model:
        what = "other images or settings" if before != job else "another model"
        raise UserError(f"{parts} holds unfinished predictions of {what}", "pass another --out, or remove it")


def is_same_model(logits: np.ndarray, others: np.ndarray) -> bool:
    """Whether two results of :func:`probe` are of the same model."""
    return logits.shape == others.shape and bool(np.abs(logits - others).max() <= TOLERANCE * np.abs(others).max())


def probe(predictor: Predictor) -> np.ndarray:
    """Returns the logits (K,) of a fixed image, by which the model is recognized, whatever its format."""
    height, width = predictor.processor.input_hw
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    logits = predictor.runtime(np.stack([predictor.preprocess(image)]))[predictor.runtime.heads[-1]]
    return np.asarray(logits[0], np.float64)


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{len(name)} {name}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write_part(file: Path, table: TableFormat, predictions: Sequence[Prediction], sorter: ClassFolders | None) -> None:
    if sorter is not None:
        for prediction in predictions:
            sorter.add(prediction)
    unreadable = sum(bool(prediction.error) for prediction in predictions)
    write_bytes(_unreadable_file(file), str(unreadable).encode())
    write_bytes(file, table.part(predictions))


def _unreadable_file(part: Path) -> Path:
    """Returns the file with the number of unreadable images of a part."""
    return part.with_suffix(".unreadable")
