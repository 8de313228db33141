"""Where images and labels come from: an index in, an RGB image and a class out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from deit.data.class_names import places_among
from deit.images.decoding import Decodable, DecodedImage, EncodedImage, check_header, open_image

HASHED_AT_ONCE = 10_000  # names: hashing them one by one takes several times as long
UNLABELED = ("image",)  # the classes of images whose labels are not known, or of no interest


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


def open_encoded(source: ImageSource, index: int) -> AbstractContextManager[Decodable]:
    """Opens an image of a source, so that its size is known before it is decoded.

    Images that do not come from files of a :class:`FileSource` are decoded at once.

    Raises:
        ImageError: the image is unreadable.
    """
    if isinstance(source, Subset):
        return open_encoded(source.base, int(source.indices[index]))
    if isinstance(source, ManyLabels):
        return open_encoded(source.base, index)
    if isinstance(source, FileSource):
        return EncodedImage(source.path(index))
    return nullcontext(DecodedImage(source.load(index)))


def unlabeled(base: ImageSource) -> Subset:
    """The same images, all of one class."""
    count = len(base.labels)
    return Subset(base, np.arange(count), UNLABELED, np.zeros(count, np.int64))


def relabeled(source: ImageSource, classes: tuple[str, ...]) -> ImageSource:
    """The same images, labeled by the place of their class among a model's ``classes``; see :func:`places_among`.

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


def path_key(path: str) -> str:
    """The key by which files are sorted: folder by folder, as paths compare."""
    return path.replace(os.sep, "\0")
