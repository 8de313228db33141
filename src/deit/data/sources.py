"""Where images and labels come from: an index in, an RGB image and a class out."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from deit.draws import Stream, generator
from deit.errors import CheckpointError, DataError, ImageError
from deit.files import RECORD_NAME
from deit.images import Reduction, check_header, is_image_name, open_image
from deit.progress import Progress

DIGITS = "digits"
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_NAME = "test"
VALIDATION_FRACTION = 0.2
HEADERS_CHECKED = 50_000  # a larger data set is checked by `deit data check`, not before each training


class ImageSource(Protocol):
    """Labelled images by number. Loading one depends on nothing but its index."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""

    @property
    def labels(self) -> np.ndarray:
        """(n,), int64."""

    def load(self, index: int) -> Image.Image:
        """The image, upright and RGB.

        Raises:
            ImageError: the file is unreadable.
        """

    def name(self, index: int) -> str:
        """What a person calls the image: its path."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below one folder a class."""

    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return open_image(self.files[index])

    def name(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))


@dataclass(frozen=True)
class DigitsSource:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (from the UCI repository)."""

    images: np.ndarray  # (n, 8, 8), uint8
    classes: tuple[str, ...]
    labels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def name(self, index: int) -> str:
        return f"digit {index}"


@dataclass(frozen=True)
class Subset:
    """Some of another source's images."""

    base: ImageSource
    indices: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return self.base.load(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.base.name(int(self.indices[index]))


@dataclass(frozen=True)
class Splits:
    """A data set as training uses it.

    Attributes:
        train: what is learned from.
        validation: what checkpoints are chosen by.
        test: what the report is about; None where the data set has no third part.
        origin: one sentence on how the parts came about, for the user.
        fingerprint: of the whole data set, see :func:`fingerprint`.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    origin: str
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.train.classes

    @property
    def held_out(self) -> tuple[str, ImageSource]:
        """The part that was least looked at, and its name."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


@dataclass(frozen=True)
class DataRecord:
    """What a saved model remembers of its data, so that it is never evaluated on images it learned from by mistake.

    Attributes:
        fingerprint: of the whole data set.
        split_seed: by which a missing part was set aside.
        validation_fraction: how much of each class that was.
    """

    fingerprint: str
    split_seed: int
    validation_fraction: float

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DataRecord:
        """Read it from JSON.

        Raises:
            CheckpointError: a value is missing or garbled.
        """
        try:
            return cls(str(content["fingerprint"]), int(content["split_seed"]), float(content["validation_fraction"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{RECORD_NAME} lacks or garbles {error}", "remove it or train again") from error


def subset(base: ImageSource, indices: Iterable[int]) -> Subset:
    """The images of ``base`` at ``indices``, in that order."""
    chosen = np.asarray(list(indices), dtype=np.int64)
    return Subset(base, chosen, base.classes, base.labels[chosen])


def load_reduced(source: ImageSource, index: int, reduction: Reduction) -> Image.Image:
    """An image that may be smaller than its file says, where its format offers that.

    Args:
        reduction: is told height and width of the whole image, and answers how many times smaller it may be.

    Raises:
        ImageError: as :meth:`ImageSource.load`.
    """
    if isinstance(source, Subset):
        return load_reduced(source.base, int(source.indices[index]), reduction)
    if isinstance(source, FolderSource):
        return open_image(source.files[index], reduction=reduction)
    image = source.load(index)
    reduction(image.height, image.width)
    return image


def relabelled(source: ImageSource, classes: tuple[str, ...]) -> ImageSource:
    """The same images, labelled by the place of their class's name among ``classes``.

    Raises:
        DataError: the source has a class that ``classes`` lacks.
    """
    if source.classes == classes:
        return source
    missing = [name for name in source.classes if name not in classes]
    if missing:
        raise DataError(
            f"The data has {len(missing)} classes that the model does not know, such as {missing[0]!r}",
            "evaluate it on data with the classes it was trained on",
        )
    if double := [name for name in source.classes if classes.count(name) > 1]:
        raise DataError(f"The model has several classes called {double[0]!r}", "give its classes names of their own: id2label")
    places = np.asarray([classes.index(name) for name in source.classes], np.int64)
    return Subset(source, np.arange(len(source.labels)), classes, places[source.labels])


def fingerprint(*sources: ImageSource) -> str:
    """A hash of the images' names and labels: another file, class or order gives another one."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source.classes).encode())
        for index, label in enumerate(source.labels.tolist()):
            digest.update(f"{label}\t{source.name(index)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def has_parts(data: str | Path) -> bool:
    """Whether a data set comes with a training part of its own, and is no plain folder of classes."""
    train = Path(data) / "train"
    return str(data) == DIGITS or (train.is_dir() and any(child.is_dir() for child in train.iterdir()))


def open_data(data: str | Path, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION) -> Splits:
    """A data set by its folder or name.

    A folder holds ``train/CLASS/image`` and ``val/CLASS/image`` (also ``valid``, ``validation``, ``test``), or
    ``CLASS/image``, in which case a part of each class is set aside by the seed. Images may lie deeper within a class.

    Args:
        data: a folder, or ``digits``.
        seed: of the split, where one has to be made.
        validation_fraction: share of each class that is set aside, where it has to be.

    Raises:
        DataError: no such folder, no images, one class, an empty class, or a class that only one part has.
    """
    if str(data) == DIGITS:
        return _digits(seed)
    root = Path(data)
    folders = {name: root / name for name in ("train", *VALIDATION_NAMES, TEST_NAME) if (root / name).is_dir()}
    if has_parts(root):
        return _from_splits(folders, seed, validation_fraction)
    return _set_aside(folder_source(root), seed, validation_fraction)


def folder_source(root: Path, classes: Sequence[str] | None = None) -> FolderSource:
    """``root/CLASS/.../image``.

    Args:
        classes: names and order to follow, those of the training part; a folder of another name is an error. By default
            the folders' own names, sorted.

    Raises:
        DataError: as :func:`open_data` says.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder", "pass the folder of your data set, or `digits`")
    found: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):  # two Unicode forms of one name are one class
            found.setdefault(unicodedata.normalize("NFC", folder.name), []).extend(_images_below(folder))
    files = dict(sorted(found.items()))
    if classes is None:
        _check_classes(root, files)
        classes = tuple(files)
    elif unknown := sorted(files.keys() - set(classes)):
        raise DataError(f"{root} has a class {unknown[0]!r} that the training part lacks", "rename or remove its folder")
    paths = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    if not paths:
        raise DataError(f"{root} holds no images", "put them into one folder a class")
    return FolderSource(
        root, tuple(path for path, _ in paths), tuple(classes), np.asarray([label for _, label in paths], np.int64)
    )


def split(source: ImageSource, seed: int, fractions: Sequence[float]) -> list[Subset]:
    """Cut a source into parts with the same share of each class; the last part gets the rest.

    A class with at least as many images as there are parts has one in each.
    """
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for label in range(len(source.classes)):
        own = np.flatnonzero(source.labels == label)
        own = own[generator(seed, Stream.SPLIT, index=label).permutation(len(own))]
        start = 0
        for part, fraction in enumerate(fractions):
            most = len(own) - start - (len(fractions) - part)  # one is left for each part to come
            count = min(max(round(fraction * len(own)), 1), most) if len(own) > len(fractions) else 0
            parts[part].extend(own[start : start + count].tolist())
            start += count
        parts[-1].extend(own[start:].tolist())
    return [subset(source, sorted(part)) for part in parts]


def check_images(source: ImageSource, whole: bool) -> dict[int, ImageError]:
    """Try every image of a source.

    Args:
        whole: decode every pixel; otherwise look at the files' headers alone.

    Returns:
        index -> what is wrong with it, for each unreadable image.
    """
    files = source.files if isinstance(source, FolderSource) else None
    if isinstance(source, Subset) and isinstance(source.base, FolderSource):
        files = tuple(source.base.files[index] for index in source.indices)

    def problem(index: int) -> ImageError | None:
        try:
            if whole or files is None:
                source.load(index)
            else:
                check_header(files[index])
        except ImageError as error:
            return error
        return None

    problems = {}
    with Progress("Checking images", len(source.labels)) as progress, ThreadPoolExecutor() as pool:
        for index, error in enumerate(pool.map(problem, range(len(source.labels)))):
            if error is not None:
                problems[index] = error
            progress.advance(1)
    return problems


def without_unreadable(splits: Splits, skip: bool) -> tuple[Splits, int]:
    """Look at every file's header before training starts.

    Args:
        skip: leave unreadable files out and count them, instead of an error.

    Returns:
        The splits without them, and how many were left out.

    Raises:
        ImageError: an unreadable file, unless ``skip``.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    skipped = 0
    for name, source in parts.items():
        if source is None or len(source.labels) > HEADERS_CHECKED:
            continue
        problems = check_images(source, whole=False)
        if problems and not skip:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            first = next(iter(problems.values())).problem
            raise ImageError(f"{first}{more}", "replace or remove it, or pass --skip-unreadable to leave such files out")
        if problems:
            parts[name] = subset(source, (i for i in range(len(source.labels)) if i not in problems))
            skipped += len(problems)
    for name, source in parts.items():
        if source is not None and not len(source.labels):
            raise DataError(f"No readable image of the {name} part is left", "replace the unreadable files")
    train, validation = parts["train"], parts["validation"]
    assert train is not None
    assert validation is not None
    _check_filled(train)
    return replace(splits, train=train, validation=validation, test=parts["test"]), skipped


def _digits(seed: int) -> Splits:
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    source = DigitsSource(pixels, tuple(str(name) for name in raw.target_names), raw.target.astype(np.int64))
    validation, test, train = split(source, seed, (0.2, 0.2))
    origin = f"scikit-learn's digits, cut 60 / 20 / 20 within each class by seed {seed}"
    return Splits(train, validation, test, origin, fingerprint(source))


def _from_splits(folders: dict[str, Path], seed: int, validation_fraction: float) -> Splits:
    train = folder_source(folders["train"])
    validation_name = next((name for name in VALIDATION_NAMES if name in folders), None)
    test = folder_source(folders[TEST_NAME], train.classes) if TEST_NAME in folders else None
    if validation_name is None:
        splits = _set_aside(train, seed, validation_fraction)
        mark = splits.fingerprint if test is None else fingerprint(train, test)
        return replace(splits, test=test, fingerprint=mark)
    validation = folder_source(folders[validation_name], train.classes)
    parts = [part for part in (train, validation, test) if part is not None]
    names = ", ".join(part.root.name for part in parts)
    return Splits(train, validation, test, f"the folder's own parts: {names}", fingerprint(*parts))


def _set_aside(source: FolderSource, seed: int, fraction: float) -> Splits:
    validation, train = split(source, seed, (fraction,))
    if not len(validation.labels):
        raise DataError(f"{source.root} has one image a class", "a part of each class must be left for validation")
    origin = f"no validation folder: {fraction:.0%} of each class set aside by seed {seed}"
    return Splits(train, validation, None, origin, fingerprint(source))


def _images_below(folder: Path) -> list[Path]:
    images: list[Path] = []
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .ipynb_checkpoints
        images.extend(Path(directory) / name for name in names if is_image_name(Path(name)))
    return sorted(images)


def _check_classes(root: Path, files: dict[str, list[Path]]) -> None:
    if not files:
        raise DataError(f"{root} has no folders in it", "make one folder a class and put its images there")
    if len(files) == 1:
        raise DataError(f"{root} has one class, {next(iter(files))!r}", "a classifier needs two or more")
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise DataError(f"The class {empty[0]!r} in {root} holds no images", "add images or remove its folder")


def _check_filled(source: ImageSource) -> None:
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if not counts.all():
        name = source.classes[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(f"No readable image of the class {name!r} is left for training", "add images or remove the class")
