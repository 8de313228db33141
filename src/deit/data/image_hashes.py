"""Content hashes of the images that a model was trained on, so that an evaluation finds them whatever they are named.

A model directory holds them in ``training_images.bin``: 8 bytes per image, 10 MB for ImageNet. An image is recognized if the
bytes of its file are the same, in any folder, manifest, table or split; an image that was saved again is not. Of 1.3 million
training images and 50,000 others, the expected number of false matches is 4e-9.

Format, little-endian: the 8 bytes ``DEITIMG1``, the number of training images and of validation images (uint64), and the sorted
hashes of each (uint64).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit.data.file_info import UNREADABLE, file_info, hash_file, short_hash
from deit.data.sources import ImageSource, image_content, select
from deit.errors import CheckpointError, ImageError
from deit.system.files import IMAGE_HASHES_NAME, RECORD_NAME, read_json, write_bytes, write_json
from deit.system.hardware import cores
from deit.system.progress import Progress
from deit.system.threads import ordered_map

MAGIC = b"DEITIMG1"
HEADER_BYTES = len(MAGIC) + 16
MAX_IMAGES = 2**25  # 256 MiB; of more images, no hashes are kept
IMAGES_PER_TASK = 16


@dataclass(frozen=True)
class SeenImages:
    """How many images of an evaluated data set the training of the model saw.

    Attributes:
        left_out: images that the model was trained on, and that were left out.
        measured: images that the model was trained on, and that were evaluated nevertheless.
        validation: evaluated images that selected the checkpoint, on which the accuracy is slightly optimistic.
    """

    left_out: int
    measured: int
    validation: int


@dataclass(frozen=True)
class ImageHashes:
    """Content hashes of training and validation images.

    Attributes:
        train: sorted hashes without duplicates, (n,) uint64.
        validation: the same, of the images that the checkpoint was selected on.
    """

    train: np.ndarray
    validation: np.ndarray

    @classmethod
    def of(cls, train: ImageSource, validation: ImageSource) -> ImageHashes:
        """Returns the hashes of two splits."""
        hashes = [np.unique(content_hashes(source)) for source in (train, validation)]
        return cls(*(values[values != UNREADABLE] for values in hashes))

    def with_training_images(self, other: ImageHashes | None) -> ImageHashes:
        """Returns the hashes with the training images of a model that training started from."""
        return self if other is None else ImageHashes(np.union1d(self.train, other.train), self.validation)

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)

    @property
    def copies(self) -> int:
        """Number of validation images that are also training images."""
        return len(np.intersect1d(self.train, self.validation, assume_unique=True))

    def to_bytes(self) -> bytes:
        """Returns the content of the file."""
        counts = np.asarray([len(self.train), len(self.validation)], "<u8")
        return b"".join((MAGIC, counts.tobytes(), self.train.astype("<u8").tobytes(), self.validation.astype("<u8").tobytes()))

    @classmethod
    def from_file(cls, path: Path) -> ImageHashes:
        """Reads a file that :meth:`to_bytes` describes.

        Raises:
            CheckpointError: it is not such a file, or damaged.
        """
        problem = CheckpointError(f"{path} is damaged", "copy it again, or remove it to evaluate without a check")
        try:
            is_record = HEADER_BYTES <= path.stat().st_size <= HEADER_BYTES + 8 * MAX_IMAGES
            content = path.read_bytes() if is_record else b""
        except OSError as error:
            raise CheckpointError(f"Cannot read {path}", error.strerror or "check the path") from error
        if len(content) < HEADER_BYTES:
            raise problem
        train, validation = np.frombuffer(content, "<u8", 2, len(MAGIC)).tolist()
        if content[: len(MAGIC)] != MAGIC or len(content) != HEADER_BYTES + 8 * (train + validation):
            raise problem
        hashes = cls(*np.split(np.frombuffer(content, "<u8", offset=HEADER_BYTES).astype(np.uint64), [train]))
        if any((values[1:] <= values[:-1]).any() for values in (hashes.train, hashes.validation)):
            raise problem
        return hashes


def read_image_hashes(model: Path) -> ImageHashes | None:
    """Reads the hashes beside a model directory or file; returns None if there are none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = (model if model.is_dir() else model.parent) / IMAGE_HASHES_NAME
    return ImageHashes.from_file(path) if path.is_file() else None


def copy_data_record(model: Path, directory: Path) -> None:
    """Copies what a model keeps of its data, ``training.json`` and the hashes, to another directory, if it has them.

    Raises:
        CheckpointError: a file is damaged.
    """
    folder = model if model.is_dir() else model.parent
    if (folder / RECORD_NAME).is_file():
        write_json(directory / RECORD_NAME, read_json(folder / RECORD_NAME))
    if (hashes := read_image_hashes(folder)) is not None:
        write_bytes(directory / IMAGE_HASHES_NAME, hashes.to_bytes())


def leave_out_seen(
    source: ImageSource, found: np.ndarray, hashes: ImageHashes, keep: bool = False
) -> tuple[ImageSource, SeenImages]:
    """Leaves out the images that a model was trained on.

    Args:
        source: the images to evaluate on.
        found: their hashes, from :func:`content_hashes`.
        hashes: of the training and validation images of the model.
        keep: only count them.

    Returns:
        The other images, and the counts.
    """
    seen, validation = np.isin(found, hashes.train), np.isin(found, hashes.validation)
    if keep:
        return source, SeenImages(0, int(seen.sum()), int((validation & ~seen).sum()))
    return select(source, np.flatnonzero(~seen)), SeenImages(int(seen.sum()), 0, int((validation & ~seen).sum()))


def content_hashes(source: ImageSource, fresh: bool = False) -> np.ndarray:
    """Returns a hash of the content of each image, (n,) uint64; see :func:`content_hash`.

    Files that are unchanged since an earlier run are not read again (:mod:`deit.data.file_info`), unless ``fresh``.
    """
    if (info := file_info(source, fresh)) is not None:
        return info.hashes
    total = len(source.labels)

    def hash_some(start: int) -> list[int]:
        return [content_hash(source, index) for index in range(start, min(start + IMAGES_PER_TASK, total))]

    hashes: list[int] = []
    with Progress("Hashing images", total) as progress:
        for block in ordered_map(hash_some, range(0, total, IMAGES_PER_TASK), cores()):
            hashes += block
            progress.advance(len(block))
    return np.asarray(hashes, np.uint64)


def content_hash(source: ImageSource, index: int) -> int:
    """Returns the first 8 bytes of the SHA-256 of an image's file, or of its pixels if it has none; 0 if it is unreadable."""
    try:
        content = image_content(source, index)
    except ImageError:
        return UNREADABLE
    return short_hash(hashlib.sha256(content).digest()) if isinstance(content, bytes) else hash_file(content)
