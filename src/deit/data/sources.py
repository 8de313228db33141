"""Image sources: an index in, an RGB image and a label out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from deit.data.class_names import class_indices
from deit.images.conversion import ValueRange
from deit.images.decoding import Decodable, DecodedImage, EncodedImage, check_header, open_image

NAMES_PER_HASH = 10_000  # names are hashed in blocks, which is several times faster than one by one
UNLABELED = ("image",)  # the only class of unlabeled images


class ImageSource(Protocol):
    """Labeled images by index. What is loaded depends only on the index."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""

    @property
    def labels(self) -> np.ndarray:
        """Class index of each image, (n,) int64."""

    def load(self, index: int) -> Image.Image:
        """Returns an image, upright and RGB.

        Raises:
            ImageError: the image is unreadable.
        """

    def name(self, index: int) -> str:
        """Returns the name of an image for messages: its path."""


@runtime_checkable
class Checkable(Protocol):
    """A source that can check an image without decoding it."""

    def check(self, index: int) -> None:
        """Checks the header of an image.

        Raises:
            ImageError: it is not an image, or too large.
        """


@runtime_checkable
class WithContent(Protocol):
    """A source that can return an image as it is stored."""

    def content(self, index: int) -> Path | bytes:
        """Returns the path of an image file, or its bytes; of images in memory, the bytes of shape and pixels.

        Raises:
            ImageError: the image is unreadable.
        """


@runtime_checkable
class EncodedFiles(Protocol):
    """A source of encoded images, which it decodes."""

    def content(self, index: int) -> Path | bytes:
        """Returns the path or the content of the file of an image.

        Raises:
            ImageError: there is none.
        """

    def open(self, index: int) -> EncodedImage:
        """Reads the header of an image.

        Raises:
            ImageError: the image is unreadable.
        """

    def with_value_range(self, value_range: ValueRange) -> ImageSource:
        """Returns the same images, converted to 8 bits by a range."""


@runtime_checkable
class WithRecordedInfo(Protocol):
    """A source that was checked when it was made, and that keeps what was found."""

    def recorded_info(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns hashes, sizes and depths of some images, as :class:`deit.data.file_info.FileInfo` has them."""


@dataclass(frozen=True)
class FileSource:
    """Image files below a folder.

    Attributes:
        root: the folder.
        names: paths of the files, absolute or relative to ``root``.
        classes: class names.
        labels: class index of each file, (n,) int64.
        value_range: black and white of images with more than 8 bits, see :mod:`deit.data.value_range`.
    """

    root: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    value_range: ValueRange | None = None

    def path(self, index: int) -> Path:
        """Returns the path of a file."""
        return self.root / self.names[index]

    def load(self, index: int) -> Image.Image:
        return open_image(self.path(index), value_range=self.value_range)

    def open(self, index: int) -> EncodedImage:
        return EncodedImage(self.path(index), value_range=self.value_range)

    def with_value_range(self, value_range: ValueRange) -> FileSource:
        return replace(self, value_range=value_range)

    def check(self, index: int) -> None:
        check_header(self.path(index))

    def content(self, index: int) -> Path:
        return self.path(index)

    def name(self, index: int) -> str:
        return self.names[index]


@dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
        images: (n, height, width) or (n, height, width, 3), uint8.
        classes: class names.
        labels: class index of each image, (n,) int64.
        noun: prefix of the names: ``digit`` gives ``digit 7``.
    """

    images: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    noun: str

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def check(self, index: int) -> None:
        """Does nothing: pixels in memory are readable."""

    def content(self, index: int) -> bytes:
        return _pixel_content(self.images[index])

    def name(self, index: int) -> str:
        return f"{self.noun} {index}"


@dataclass(frozen=True)
class Subset:
    """A subset of another source, possibly with other labels."""

    base: ImageSource
    indices: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return self.base.load(int(self.indices[index]))

    def check(self, index: int) -> None:
        check_image(self.base, int(self.indices[index]))

    def content(self, index: int) -> Path | bytes:
        return image_content(self.base, int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.base.name(int(self.indices[index]))


@dataclass(frozen=True)
class MultiLabelSource:
    """Images with one or more correct classes each; ``labels`` holds the first of them.

    Attributes:
        base: the images.
        correct: correct classes of each image, at least one.
        classes: class names.
    """

    base: ImageSource
    correct: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]

    @cached_property
    def labels(self) -> np.ndarray:
        return np.asarray([classes[0] for classes in self.correct], np.int64)

    def load(self, index: int) -> Image.Image:
        return self.base.load(index)

    def check(self, index: int) -> None:
        check_image(self.base, index)

    def content(self, index: int) -> Path | bytes:
        return image_content(self.base, index)

    def name(self, index: int) -> str:
        return self.base.name(index)

    def correct_classes(self, indices: np.ndarray) -> np.ndarray:
        """Returns (len(indices), K) bool, True for each correct class."""
        correct = np.zeros((len(indices), len(self.classes)), bool)
        for row, index in enumerate(indices.tolist()):
            correct[row, list(self.correct[index])] = True
        return correct


def check_image(source: ImageSource, index: int) -> None:
    """Checks an image of a source: its header if the source supports that, otherwise by decoding it.

    Raises:
        ImageError: the image is unreadable.
    """
    if isinstance(source, Checkable):
        source.check(index)
    else:
        source.load(index)


def image_content(source: ImageSource, index: int) -> Path | bytes:
    """Returns an image as it is stored, see :class:`WithContent`; from any other source, the bytes of shape and pixels.

    Raises:
        ImageError: the image is unreadable.
    """
    return source.content(index) if isinstance(source, WithContent) else _pixel_content(np.asarray(source.load(index)))


def _pixel_content(pixels: np.ndarray) -> bytes:
    return f"{pixels.dtype} {pixels.shape} ".encode() + pixels.tobytes()


def select(source: ImageSource, indices: np.ndarray) -> ImageSource:
    """Returns some images of a source with their labels, of which an image may have several."""
    if len(indices) == len(source.labels):
        return source
    if isinstance(source, MultiLabelSource):
        correct = tuple(source.correct[index] for index in indices)
        return MultiLabelSource(subset(source.base, indices), correct, source.classes)
    return subset(source, indices)


def subset(base: ImageSource, indices: Iterable[int]) -> Subset:
    """Returns the images of ``base`` at ``indices``, in that order."""
    selected = np.asarray(list(indices), dtype=np.int64)
    return Subset(base, selected, base.classes, base.labels[selected])


def open_encoded(source: ImageSource, index: int) -> AbstractContextManager[Decodable]:
    """Opens an image of a source, so that its size is known before it is decoded.

    Images that are not encoded are loaded at once.

    Raises:
        ImageError: the image is unreadable.
    """
    if isinstance(source, Subset):
        return open_encoded(source.base, int(source.indices[index]))
    if isinstance(source, MultiLabelSource):
        return open_encoded(source.base, index)
    if isinstance(source, EncodedFiles):
        return source.open(index)
    return nullcontext(DecodedImage(source.load(index)))


def encoded_file(source: ImageSource, index: int) -> Path | bytes | None:
    """Returns the path or the content of the file of an image; None if the source does not come from files.

    Raises:
        ImageError: the file is missing.
    """
    if isinstance(source, Subset):
        return encoded_file(source.base, int(source.indices[index]))
    if isinstance(source, MultiLabelSource):
        return encoded_file(source.base, index)
    return source.content(index) if isinstance(source, EncodedFiles) else None


def unwrapped(source: ImageSource) -> tuple[ImageSource, np.ndarray]:
    """Returns the source that a source takes its images from, and the index of each image in it, (n,) int64."""
    indices = np.arange(len(source.labels))
    while isinstance(source, Subset | MultiLabelSource):
        indices = source.indices[indices] if isinstance(source, Subset) else indices
        source = source.base
    return source, indices


def unlabeled(base: ImageSource) -> Subset:
    """Returns the same images with a single class."""
    count = len(base.labels)
    return Subset(base, np.arange(count), UNLABELED, np.zeros(count, np.int64))


def relabeled(source: ImageSource, classes: tuple[str, ...]) -> ImageSource:
    """Returns the same images, labeled by the indices of a model's ``classes``; see :func:`class_indices`.

    Raises:
        DataError: the source has a class that ``classes`` lacks.
    """
    if source.classes == classes:
        return source
    indices = class_indices(source.classes, classes)
    if isinstance(source, MultiLabelSource):
        return MultiLabelSource(
            source.base, tuple(tuple(indices[list(correct)].tolist()) for correct in source.correct), classes
        )
    return Subset(source, np.arange(len(source.labels)), classes, indices[source.labels])


def fingerprint(*sources: ImageSource) -> str:
    """Returns a hash of the images' names and labels, which changes with every file, class and order."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source.classes).encode())
        labels = source.labels.tolist()
        for start in range(0, len(labels), NAMES_PER_HASH):
            block = enumerate(labels[start : start + NAMES_PER_HASH], start)
            digest.update(
                "".join(f"{label}\t{source.name(index)}\n" for index, label in block).encode(errors="surrogateescape")
            )
    return digest.hexdigest()
