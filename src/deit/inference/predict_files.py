"""Predicts any number of images into a table, in parts: a program that is killed goes on where it was.

A part is written when its images are predicted, and the table when all parts are there. Memory holds the names of all images,
and the predictions of one part.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from deit.data.datasets.shards import packed_splits
from deit.data.sources import ImageSource, image_content
from deit.errors import InterruptedWorkError, UserError
from deit.inference.prediction_table import TableFormat, table_format
from deit.inference.predictor import Prediction, Predictor
from deit.system.files import check_writable, read_json, write_bytes, write_json
from deit.system.locking import locked
from deit.system.progress import Progress
from deit.system.replacing import clean_up, draft_name, shortened, sync
from deit.system.signals import check_stop, stop_on_signals

if TYPE_CHECKING:
    from deit.inference.inputs import ImageLike

PART_IMAGES = 4096
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


def predict_files(
    predictor: Predictor,
    images: Sequence[str],
    out: str | Path,
    top: int = 5,
    *,
    opened: Callable[[int], ImageLike] | None = None,
    sort_into: str | Path | None = None,
    part_images: int = PART_IMAGES,
) -> PredictedTable:
    """Predicts images into a table, with one row per image, in their order.

    The same call after a kill, a signal or an error goes on after the last part. No row is lost or doubled.

    Args:
        predictor: the model.
        images: names of the images, by default the paths of their files.
        out: the table, which does not exist yet: ``.parquet``, ``.csv`` or ``.jsonl``.
        top: number of classes per image.
        opened: returns an image by its index, as :meth:`Predictor.stream` takes it; None takes the file of its name.
        sort_into: a new folder that gets a folder per predicted class, with symbolic links to the files.
        part_images: images per part.

    Raises:
        MissingExtraError: Parquet, without pyarrow.
        UserError: the table exists already, or an unfinished one is of other images, settings or another model.
        InterruptedWorkError: a signal was received; the finished parts are kept.
    """
    start, path = time.monotonic(), Path(out)
    top = min(top, len(predictor.classes))
    table = table_format(path, top)
    check_new_table(path)
    folder = None if sort_into is None else Path(sort_into).resolve()
    parts = path.with_name(path.name + PARTS_ENDING)
    with locked(parts, "wait until it has finished, or pass another --out"), stop_on_signals():
        clean_up(parts)
        settings = {"top": top, "part_images": part_images, "sort_into": None if folder is None else str(folder)}
        _start_job(parts, predictor, images, settings, folder)
        files = [parts / f"part-{number:08d}" for number in range(-(-len(images) // part_images))]
        done = next((number for number, file in enumerate(files) if not file.exists()), len(files))
        sorter = None if folder is None else ClassFolders(folder, predictor.classes)
        unreadable = _count_unreadable(parts, done)
        resumed = min(done * part_images, len(images))
        with Progress("Predicting", len(images) - resumed) as progress:
            try:
                remaining = range(resumed, len(images))
                contents = (Path(images[index]) if opened is None else opened(index) for index in remaining)
                predictions = predictor.stream(contents, top, (images[index] for index in remaining))
                for file in files[done:]:
                    unreadable += _write_part(file, table, predictions, part_images, sorter, progress)
            except InterruptedWorkError as error:
                saved = sum(file.exists() for file in files) * part_images
                problem = f"Stopped, with the predictions of {min(saved, len(images)):,} of {len(images):,} images saved"
                raise InterruptedWorkError(problem, "the same command goes on from there", error.exit_code) from None
        _publish(table, files, path)
        shutil.rmtree(parts, ignore_errors=True)
    return PredictedTable(path, len(images), unreadable, resumed, time.monotonic() - start)


def check_new_table(path: Path) -> None:
    """Checks that a table can be written.

    Raises:
        UserError: it exists already, or its folder cannot be written to.
    """
    if path.exists():
        raise UserError(f"{path} exists already", "pass another --out, or remove it")
    check_writable(path.parent)


class PackedImages:
    """The images of all splits of a packed data set, one after the other.

    Args:
        data: a folder or address, as :func:`deit.data.datasets.shards.packed_splits` takes it.

    Attributes:
        names: of the images.
    """

    def __init__(self, data: str) -> None:
        self._sources = list(packed_splits(data).sources.values())
        self._ends = np.cumsum([len(source.labels) for source in self._sources])
        self.names = [source.name(index) for source in self._sources for index in range(len(source.labels))]

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
    logits = _probe(predictor)
    path = parts / JOB_NAME
    if not path.exists():
        if sort_into is not None and sort_into.exists() and (not sort_into.is_dir() or any(sort_into.iterdir())):
            raise UserError(f"{sort_into} exists already", "pass a new folder for --sort-into")
        write_json(path, {**job, "logits": logits.tolist()})
        return
    before = read_json(path)
    known = np.asarray(before.pop("logits", []), np.float64)
    same_model = known.shape == logits.shape and np.abs(known - logits).max() <= TOLERANCE * np.abs(logits).max()
    if before != job or not same_model:
        what = "other images or settings" if before != job else "another model"
        raise UserError(f"{parts} holds unfinished predictions of {what}", "pass another --out, or remove it")


def _probe(predictor: Predictor) -> np.ndarray:
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


def _write_part(
    file: Path,
    table: TableFormat,
    predictions: Iterable[Prediction],
    size: int,
    sorter: ClassFolders | None,
    progress: Progress,
) -> int:
    """Writes the next part. Returns how many of its images are unreadable."""
    rows: list[Prediction] = []
    for prediction in predictions:
        check_stop()
        rows.append(prediction)
        progress.advance(1)
        if len(rows) == size:
            break
    if sorter is not None:
        for prediction in rows:
            sorter.add(prediction)
    unreadable = sum(bool(prediction.error) for prediction in rows)
    write_bytes(file.with_suffix(".unreadable"), str(unreadable).encode())
    write_bytes(file, table.part(rows))
    return unreadable


def _count_unreadable(parts: Path, done: int) -> int:
    return sum(int((parts / f"part-{number:08d}.unreadable").read_text()) for number in range(done))


def _publish(table: TableFormat, parts: Sequence[Path], path: Path) -> None:
    """Writes the table of all parts atomically."""
    draft = path.with_name(draft_name(path))
    try:
        with draft.open("xb") as file:
            table.join(parts, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        sync(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
