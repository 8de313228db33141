"""Where images and labels come from: an index in, an RGB image and a class out. And how a data set is cut into parts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from deit.data.class_names import places_among
from deit.draws import Stream, generator
from deit.errors import CheckpointError, DataError
from deit.files import RECORD_NAME
from deit.images import Reduction, check_header, open_image

VALIDATION_FRACTION = 0.2
HASHED_AT_ONCE = 10_000  # names: hashing them one by one takes several times as long
UNLABELLED = ("image",)  # the classes of images whose labels are not known, or of no interest


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


@runtime_checkable
class Checkable(Protocol):
    """A source that can tell much of what is wrong with an image without decoding it."""

    def check(self, index: int) -> None:
        """Look at the image's header alone.

        Raises:
            ImageError: it is none, or too large.
        """


@dataclass(frozen=True)
class FileSource:
    """Image files below one folder.

    Attributes:
        names: of the files, relative to ``root``; or absolute.
    """

    root: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray

    def path(self, index: int) -> Path:
        """Where the file is."""
        return self.root / self.names[index]

    def load(self, index: int) -> Image.Image:
        return open_image(self.path(index))

    def check(self, index: int) -> None:
        check_header(self.path(index))

    def name(self, index: int) -> str:
        return self.names[index]


@dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
        images: (n, height, width) or (n, height, width, 3), uint8.
        noun: what one is called: ``digit`` makes ``digit 7``.
    """

    images: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    noun: str

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def check(self, index: int) -> None:
        """Pixels are always readable."""

    def name(self, index: int) -> str:
        return f"{self.noun} {index}"


@dataclass(frozen=True)
class Subset:
    """Some of another source's images."""

    base: ImageSource
    indices: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return self.base.load(int(self.indices[index]))

    def check(self, index: int) -> None:
        check_one(self.base, int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.base.name(int(self.indices[index]))


@dataclass(frozen=True)
class ManyLabels:
    """Images with several right classes each; ``labels`` holds the first of them.

    Attributes:
        right: for each image, at least one class.
    """

    base: ImageSource
    right: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]

    @cached_property
    def labels(self) -> np.ndarray:
        return np.asarray([classes[0] for classes in self.right], np.int64)

    def load(self, index: int) -> Image.Image:
        return self.base.load(index)

    def check(self, index: int) -> None:
        check_one(self.base, index)

    def name(self, index: int) -> str:
        return self.base.name(index)

    def right_classes(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices), K), bool: which classes are right."""
        right = np.zeros((len(indices), len(self.classes)), bool)
        for row, index in enumerate(indices.tolist()):
            right[row, list(self.right[index])] = True
        return right


@dataclass(frozen=True)
class Parts:
    """A data set as it comes, before anything is set aside.

    Attributes:
        train: all of it where it has no parts.
        validation: None where it has no such part; likewise ``test``.
        plain: one pile of labelled images, which may be evaluated as a whole.
        origin: what the parts are, for the user; empty for a plain one.
        shares: of ``train``, to be set aside for other parts, by their names; where there are none and validation is missing,
            the user's own share is.
    """

    train: ImageSource
    validation: ImageSource | None = None
    test: ImageSource | None = None
    plain: bool = False
    origin: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)


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


def check_one(source: ImageSource, index: int) -> None:
    """As :meth:`Checkable.check`; a source that cannot do that decodes the image.

    Raises:
        ImageError: it is unreadable.
    """
    if isinstance(source, Checkable):
        source.check(index)
    else:
        source.load(index)


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
    if isinstance(source, ManyLabels):
        return load_reduced(source.base, index, reduction)
    if isinstance(source, FileSource):
        return open_image(source.path(index), reduction=reduction)
    image = source.load(index)
    reduction(image.height, image.width)
    return image


def unlabelled(base: ImageSource) -> Subset:
    """The same images, all of one class."""
    count = len(base.labels)
    return Subset(base, np.arange(count), UNLABELLED, np.zeros(count, np.int64))


def relabelled(source: ImageSource, classes: tuple[str, ...]) -> ImageSource:
    """The same images, labelled by the place of their class among a model's ``classes``; see :func:`places_among`.

    Raises:
        DataError: the source has a class that ``classes`` lacks.
    """
    if source.classes == classes:
        return source
    places = places_among(source.classes, classes)
    if isinstance(source, ManyLabels):
        return ManyLabels(source.base, tuple(tuple(places[list(right)].tolist()) for right in source.right), classes)
    return Subset(source, np.arange(len(source.labels)), classes, places[source.labels])


def fingerprint(*sources: ImageSource) -> str:
    """A hash of the images' names and labels: another file, class or order gives another one."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source.classes).encode())
        labels = source.labels.tolist()
        for start in range(0, len(labels), HASHED_AT_ONCE):
            some = enumerate(labels[start : start + HASHED_AT_ONCE], start)
            digest.update("".join(f"{label}\t{source.name(index)}\n" for index, label in some).encode(errors="surrogateescape"))
    return digest.hexdigest()


def split(source: ImageSource, seed: int, fractions: Sequence[float]) -> list[Subset]:
    """Cut a source into parts with the same share of each class; the last part gets the rest.

    A class with at least as many images as there are parts has one in each.
    """
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    order = np.argsort(source.labels, kind="stable")
    ends = np.cumsum(np.bincount(source.labels, minlength=len(source.classes)))
    for label, own in enumerate(np.split(order, ends[:-1])):
        own = own[generator(seed, Stream.SPLIT, index=label).permutation(len(own))]
        start = 0
        for part, fraction in enumerate(fractions):
            most = len(own) - start - (len(fractions) - part)  # one is left for each part to come
            count = min(max(round(fraction * len(own)), 1), most) if len(own) > len(fractions) else 0
            parts[part].extend(own[start : start + count].tolist())
            start += count
        parts[-1].extend(own[start:].tolist())
    return [subset(source, sorted(part)) for part in parts]


def splits_of(parts: Parts, seed: int, fraction: float) -> Splits:
    """A data set for training: what it lacks is set aside from its training part.

    Args:
        seed: of the split, where one has to be made.
        fraction: share of each class that is set aside for validation, where the data set does not say so itself.

    Raises:
        DataError: no class has two images, so that nothing can be set aside.
    """
    mark = fingerprint(*(part for part in (parts.train, parts.validation, parts.test) if part is not None))
    if parts.validation is not None:
        return Splits(parts.train, parts.validation, parts.test, parts.origin, mark)
    shares = dict(parts.shares) or {"validation": fraction}
    *aside, train = split(parts.train, seed, tuple(shares.values()))
    found = dict(zip(shares, aside, strict=True))
    if not all(len(part.labels) for part in aside):
        raise DataError("The data has one image a class", "a part of each class must be left for validation")
    if list(shares) == ["validation"]:
        text = f"no validation part: {shares['validation']:.0%} of each class set aside by seed {seed}"
    else:
        each = " and ".join(f"{share:.0%} for {name}" for name, share in shares.items())
        text = f"of each class {each} set aside by seed {seed}"
    origin = f"{parts.origin}; {text}" if parts.origin else text
    return Splits(train, found["validation"], found.get("test", parts.test), origin, mark)


def without_labels(splits: Splits) -> Splits:
    """Training and validation part with a single class; a test part stays unseen."""
    train, validation = unlabelled(splits.train), unlabelled(splits.validation)
    return replace(splits, train=train, validation=validation, test=None, fingerprint=fingerprint(train, validation))


def path_key(path: str) -> str:
    """The key by which files are sorted: folder by folder, as paths compare."""
    return path.replace(os.sep, "\0")
