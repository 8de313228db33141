"""Packs a data set into WebDataset tar files with an index of byte ranges, see :mod:`deit.data.datasets.shards`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.data.datasets.shards import ENTRY, FORMAT, MANIFEST_NAME
from deit.data.file_info import depth_of, short_hash
from deit.data.opening import absolute_name, read_splits
from deit.data.sources import ImageSource, encoded_file
from deit.data.value_range import find_value_range, with_value_range
from deit.errors import DataError, ImageError, UserError
from deit.images.decoding import ImageHeader, read_header
from deit.images.sniffing import ending_of, has_image_ending
from deit.rng import RngStream, generator
from deit.system.files import check_writable, new_directory, write_json
from deit.system.hardware import cores
from deit.system.progress import Progress, print_status
from deit.system.replacing import is_empty_directory
from deit.system.threads import ordered_map

MB = 10**6
SHARD_MB = 256
QUALITY = 90
BLOCK = 512  # bytes, of a tar file
KEY_DIGITS = 10


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        path: the folder.
        images: images per split.
        shards: number of tar files.
        image_bytes: size of all images together.
        skipped: unreadable images that were left out.
    """

    path: Path
    images: dict[str, int]
    shards: int
    image_bytes: int
    skipped: int


@dataclass(frozen=True)
class _Packable:
    """An image as it is packed: its content, the ending of its name, and its header."""

    content: bytes
    ending: str
    header: ImageHeader


def pack(
    data: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    quality: int = QUALITY,
    shard_mb: float = SHARD_MB,
    skip_unreadable: bool = False,
) -> Packed:
    """Packs a data set, with its splits, into a new folder.

    Images are in a random order within the shards, as programs that read whole shards need them. The index has the order of the
    data set.

    Args:
        data: a data set, as :func:`deit.data.opening.open_data` takes it.
        out: the folder, which does not exist yet.
        size: shorter side in pixels that larger images are reduced to, as JPEG; None keeps the files as they are.
        quality: of the JPEG files, in 1..100.
        shard_mb: a shard is closed at this size, in megabytes.
        skip_unreadable: leave out unreadable images and count them.

    Raises:
        DataError: there is no such data set.
        ImageError: an image is unreadable, unless ``skip_unreadable``.
        UserError: the folder exists, or a value is out of range.
    """
    path = Path(out)
    if path.exists() and not is_empty_directory(path):
        raise UserError(f"{path} exists already", "pass another --out")
    if size is not None and size < 1:
        raise UserError(f"--size {size} is no size", "pass the pixels of the shorter side, such as 256")
    if not 1 <= quality <= 100 or not shard_mb > 0:
        raise UserError("--quality is in 1 to 100, and --shard-mb above 0", "correct them")
    check_writable(path.parent)
    dataset = read_splits(data)
    for note in dataset.all_notes:
        print_status(f"Note: {note}.")
    value_range = find_value_range(next(iter(dataset.sources.values()))) if size is not None else None
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "data": absolute_name(data),
        "files": "original" if size is None else {"size": size, "quality": quality},
        "classes": list(next(iter(dataset.sources.values())).classes),
        "unsplit": dataset.unsplit,
        "origin": dataset.origin,
        "holdout": dict(dataset.holdout),
        "splits": {},
    }
    images, shards, total, skipped = {}, 0, 0, 0
    with new_directory(path) as draft:
        for name, source in dataset.sources.items():
            prepare = partial(_prepare, with_value_range(source, value_range), size=size, quality=quality)
            writer = _SplitWriter(draft, name, int(shard_mb * MB))
            skipped += writer.write(source, prepare, skip_unreadable)
            if not writer.images:
                raise DataError(f"No image of the split {name} is readable", "`deit data check` lists the unreadable files")
            manifest["splits"][name] = {"images": writer.images, "shards": writer.shards}
            images[name], shards, total = writer.images, shards + len(writer.shards), total + writer.bytes
        write_json(draft / MANIFEST_NAME, manifest)
    return Packed(path, images, shards, total, skipped)


def _prepare(source: ImageSource, index: int, *, size: int | None, quality: int) -> _Packable | ImageError:
    """Returns an image as it is packed, or why it is unreadable."""
    try:
        if size is not None:
            return _reduced(source.load(index), size, quality)
        file = encoded_file(source, index)
        if file is None:  # pixels in memory
            return _encoded(source.load(index), "PNG", "png")
        content = file if isinstance(file, bytes) else file.read_bytes()
        header = read_header(content, source.name(index))
        ending = ending_of(source.name(index)) if has_image_ending(source.name(index)) else "img"
        return _Packable(content, ending, header)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"{source.name(index)} cannot be read", error.strerror or "check the file")


def _reduced(image: Image.Image, size: int, quality: int) -> _Packable:
    scale = size / min(image.size)
    if scale < 1:
        width, height = (max(round(side * scale), 1) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _encoded(image, "JPEG", "jpg", quality=quality)


def _encoded(image: Image.Image, image_format: str, ending: str, **options: Any) -> _Packable:
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return _Packable(content.getvalue(), ending, ImageHeader(image.mode, *image.size))


class _SplitWriter:
    """Writes the shards and the index of a split.

    Args:
        folder: where.
        split: its name.
        shard_bytes: a shard is closed at this size.

    Attributes:
        images: number of images.
        bytes: their size.
        shards: name and size of each shard, as in the manifest.
    """

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self.images, self.bytes = 0, 0
        self.shards: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None

    def write(self, source: ImageSource, prepare: partial[_Packable | ImageError], skip_unreadable: bool) -> int:
        """Writes all images. Returns how many were unreadable and left out.

        Raises:
            ImageError: an image is unreadable, unless ``skip_unreadable``.
        """
        labels = source.labels
        order = generator(0, RngStream.ORDER, 0).permutation(len(labels)).tolist()
        entries = np.zeros(len(labels), ENTRY)
        is_packed = np.zeros(len(labels), bool)
        with Progress(f"Packing {self._split}", len(labels)) as progress:
            try:
                for index, image in zip(order, ordered_map(prepare, order, cores()), strict=True):
                    if isinstance(image, _Packable):
                        entries[index] = self._add(index, image, int(labels[index]))
                        is_packed[index] = True
                    elif not skip_unreadable:
                        remedy = "replace or remove it, or pass --skip-unreadable to leave such files out"
                        raise ImageError(image.problem, remedy)
                    progress.advance(1)
            finally:
                self._close()
        self.images = int(is_packed.sum())
        entries[is_packed].tofile(self._folder / f"{self._split}.index")
        with (self._folder / f"{self._split}.names").open("w", encoding="ascii") as file:
            file.writelines(f"{json.dumps(source.name(index))}\n" for index in np.flatnonzero(is_packed).tolist())
        return len(labels) - self.images

    def _add(self, index: int, image: _Packable, label: int) -> tuple[int, ...]:
        """Adds an image, and returns its entry of the index."""
        if self._tar is not None and self._tar.offset + len(image.content) > self._shard_bytes:
            self._close()
        if self._tar is None:
            name = f"{self._split}-{len(self.shards):06d}.tar"
            self._tar = tarfile.open(self._folder / name, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by _close
            self.shards.append({"name": name, "bytes": 0})
        key = f"{index:0{KEY_DIGITS}d}"
        self._add_file(f"{key}.{image.ending}", image.content)
        length = len(image.content)
        offset = self._tar.offset - -(-length // BLOCK) * BLOCK
        self._add_file(f"{key}.cls", str(label).encode())
        self.bytes += length
        mode, width, height = image.header
        digest = short_hash(hashlib.sha256(image.content).digest())
        return len(self.shards) - 1, label, offset, length, width, height, depth_of(mode), digest

    def _add_file(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def _close(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        self.shards[-1]["bytes"] = (self._folder / self.shards[-1]["name"]).stat().st_size
