"""Keeps decoded images, where decoding costs more than everything else that makes a sample.

A training image is kept as a pyramid (:mod:`deit.images.pyramid`). Its finest level is the one that the smallest crop of the
recipe needs: 1.5 times the crop's pixels per side, as in reduced JPEG decoding. Crops are drawn in the coordinates of the
original, with or without a cache, and each is taken from the level that it needs. A validation image is kept as the image
processor returns it.

The pixels of a sample depend on the file and the settings only, not on what is kept: without a store, or where an image is not
in it, the same pyramid is computed from the file. Files of the store are named by the content of the image and what decides its
pixels, so that runs share them whatever their images are named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from types import TracebackType

import numpy as np
import PIL
from PIL import features
from torch.utils.data import get_worker_info

from deit.data.file_info import UNREADABLE
from deit.data.image_store import DamagedFileError, ImageStore, StoredPyramid
from deit.data.sources import ImageSource, open_encoded
from deit.data.transforms.crops import Box, crop_scale, reduced_box
from deit.data.workers import print_note_once
from deit.images.limits import max_pixels
from deit.images.pyramid import Pyramid, PyramidShape, build_pyramid, coarsest_reduction, reduction_for
from deit.images.sniffing import reads_heic

TRAINING = "training"  # what a pyramid is kept for; an image for validation has the settings of its processor instead

SmallestScale = Callable[[int, int], float]  # (width, height) -> pixels of the image per pixel of the smallest crop and side


@dataclass(frozen=True)
class ImageCache:
    """The decoded images of a source.

    Attributes:
        keys: hash of the content of each image, (n,) uint64; 0 if unreadable.
        decoding: what else decides the pixels of a decoded image.
        store: where images are kept; None keeps nothing.
        reduces: whether training samples are made from pyramids.
        measured: images that stand for all others while the speed is measured, so that decoding each once is not measured.
    """

    keys: np.ndarray
    decoding: str
    store: ImageStore | None
    reduces: bool
    measured: tuple[int, ...] = ()

    def name(self, index: int, use: str) -> str:
        """Returns the name of the file of an image in the store."""
        content = f"{int(self.keys[index]):016x} {use} {self.decoding}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def open(self, source: ImageSource, index: int, smallest_scale: SmallestScale) -> CachedImage:
        """Opens an image for training, from the store or from its file.

        Args:
            source: the images.
            index: of the image.
            smallest_scale: of the transform, see :meth:`deit.data.transforms.augment.TrainTransform.smallest_scale`.

        Raises:
            ImageError: the image is unreadable.
        """
        index = self.measured[index % len(self.measured)] if self.measured else index
        base_of = partial(finest_reduction, smallest_scale)
        name = self.name(index, TRAINING) if self._keeps(index) else ""

        def build() -> Pyramid:
            pyramid = build_pyramid(lambda: open_encoded(source, index), base_of)
            self._keep(name, pyramid)
            return pyramid

        stored = self.store.open(name) if self.store is not None and name else None
        if stored is not None and stored.shape.base > _finest(stored.shape, base_of):
            stored.__exit__(None, None, None)
            stored = None
        return CachedImage(stored, build, base_of)

    def pixels(self, index: int, processor: str, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns an image for validation, from the store or by ``load``: (height, width, C).

        Args:
            index: of the image.
            processor: settings of the image processor.
            load: loads and preprocesses the image.

        Raises:
            ImageError: the image is unreadable.
        """
        if self.store is None or not self._keeps(index):
            return load()
        name = self.name(index, processor)
        stored = self.store.open(name)
        if stored is not None:
            with stored:
                try:
                    return stored.rows(1, 0, stored.shape.height)[0]
                except DamagedFileError:
                    pass
        pixels = load()
        if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
            self._keep(name, Pyramid.from_pixels(pixels))
        return pixels

    def for_measuring(self, count: int) -> ImageCache:
        """Returns a cache whose images are ``count`` evenly spaced ones, whichever is asked for."""
        spaced = np.unique(np.linspace(0, len(self.keys) - 1, min(count, len(self.keys))).astype(int))
        return replace(self, measured=tuple(spaced.tolist()))

    def _keeps(self, index: int) -> bool:
        return self.store is not None and int(self.keys[index]) != UNREADABLE

    def _keep(self, name: str, pyramid: Pyramid) -> None:
        if self.store is None or not name:
            return
        try:
            self.store.write(name, pyramid)
        except OSError as error:
            self.store.close()
            worker = get_worker_info()
            if worker is None or worker.id == 0:  # the others run into the same
                print_note_once(f"Decoded images are not kept in {self.store.directory} any more: {error.strerror}")


class CachedImage(AbstractContextManager["CachedImage"]):
    """An image of which crops are taken.

    Args:
        stored: the image in the store; None if it is not there.
        build: decodes the image.
        base_of: (width, height) -> reduction of the finest level that crops are taken from.

    Attributes:
        width: of the image at full size, in pixels.
        height: of the image at full size, in pixels.
    """

    def __init__(self, stored: StoredPyramid | None, build: Callable[[], Pyramid], base_of: Callable[[int, int], int]) -> None:
        self._stored, self._build = stored, build
        self._pyramid = build() if stored is None else None
        shape = self._levels.shape
        self.width, self.height = shape.width, shape.height
        self._finest, self._coarsest = _finest(shape, base_of), shape.reductions[-1]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stored is not None:
            self._stored.__exit__(kind, error, trace)

    def crop(self, box: Box, height: int, width: int) -> tuple[np.ndarray, Box]:
        """Returns pixels that contain a crop, at the size that it needs, and the box of the crop in them.

        Args:
            box: in the image at full size.
            height: of the crop, in pixels.
            width: of the crop, in pixels.

        Raises:
            ImageError: the image is unreadable.
        """
        reduction = min(max(reduction_for(crop_scale(box, height, width)), self._finest), self._coarsest)
        left, top, right, bottom = reduced_box(box, reduction)
        is_whole = box == (0, 0, self.width, self.height)
        rows = (0, self._levels.shape.size(reduction)[0]) if is_whole else (top, bottom)
        try:
            pixels, first = self._levels.rows(reduction, *rows)
        except DamagedFileError:
            self._pyramid = self._build()
            pixels, first = self._pyramid.rows(reduction, *rows)
        return pixels, (left, top - first, right, bottom - first)

    @property
    def _levels(self) -> Pyramid | StoredPyramid:
        if self._pyramid is not None:
            return self._pyramid
        assert self._stored is not None
        return self._stored


def decoding_settings(value_range: object) -> str:
    """Returns what decides the pixels of a decoded image besides its content.

    Args:
        value_range: black and white of images with more than 8 bits, or None.
    """
    versions = [PIL.__version__, *(str(features.version(name)) for name in ("libjpeg_turbo", "webp", "avif"))]
    if reads_heic():
        versions.append(version("pillow-heif"))
    return f"{versions} {max_pixels()} {value_range}"


def finest_reduction(smallest_scale: SmallestScale, width: int, height: int) -> int:
    """Returns the reduction of the finest level that crops of an image need."""
    return min(reduction_for(smallest_scale(width, height)), coarsest_reduction(width, height))


def _finest(shape: PyramidShape, base_of: Callable[[int, int], int]) -> int:
    """Returns the reduction of the finest level that crops are taken from, whatever finer ones are kept."""
    return max(base_of(shape.width, shape.height), shape.least)
