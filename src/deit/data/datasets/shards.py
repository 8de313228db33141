"""Packed data sets: WebDataset tar files with an index of byte ranges, in a folder or at any address that fsspec opens.

``deit data pack`` writes them (:mod:`deit.data.packing`). A folder has:

- ``shards.json``: the format, the class names, and for each split its number of images and the names and sizes of its shards;
- ``SPLIT-000000.tar`` and so on: two files per image, ``KEY.jpg`` (or another ending) and ``KEY.cls``, its class index;
- ``SPLIT.index``: one :data:`ENTRY` per image, in the order of the data set that was packed;
- ``SPLIT.names``: the names of the images, each as JSON on a line.

An image is read by its byte range, so that any process reads any sample, and the order of samples, their augmentation, and
where training resumes are those of any other data set. With the original files, a packed data set makes the same samples as
the one that was packed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.data.splits import DatasetSplits
from deit.errors import CheckpointError, DataError, ImageError, LoadingError, MissingExtraError
from deit.images.conversion import ValueRange
from deit.images.decoding import MAX_FILE_BYTES, EncodedImage, open_image
from deit.system.files import MAX_JSON_BYTES, json_object

FORMAT = 1
MANIFEST_NAME = "shards.json"
SPLITS = ("train", "validation", "test")
MAX_IMAGES = 2**28
MAX_NAMES_BYTES = 2**34
ENTRY = np.dtype(
    [
        ("shard", "<u4"),
        ("label", "<u4"),
        ("offset", "<u8"),  # of the image in its shard, in bytes
        ("bytes", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("depth", "<u1"),  # deit.data.file_info.Depth
        ("hash", "<u8"),  # the first 8 bytes of the SHA-256 of the image
    ]
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHARD_NAME = re.compile(r"[\w-]+\.tar")


@dataclass(frozen=True)
class ShardStorage:
    """Where the files of a packed data set are.

    Attributes:
        root: a folder, or an address such as ``s3://bucket/photos``.
    """

    root: str
    _file_systems: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)  # by process

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_file_systems": {}}

    def read(self, name: str, limit: int) -> bytes:
        """Returns the content of a file of at most ``limit`` bytes.

        Raises:
            DataError: it cannot be read, or is larger.
        """
        try:
            if is_address(self.root):
                size, path = self._file_system.size(self._path(name)), self._path(name)
                content = b"" if size > limit else self._file_system.cat_file(path)
            else:
                with Path(self.root, name).open("rb") as file:
                    content = file.read(limit + 1)
                size = len(content)
        except Exception as error:  # each file system of fsspec raises errors of its own
            if isinstance(error, MissingExtraError):
                raise
            raise DataError(
                f"{self.root} has no readable {name} ({_short(error)})", "check the address, or pack again"
            ) from error
        if size > limit:
            raise DataError(f"{name} in {self.root} is larger than {limit:,} bytes", "pack the data again")
        return bytes(content)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns a range of a file.

        Raises:
            LoadingError: it cannot be read, so that the image may be intact.
        """
        try:
            if is_address(self.root):
                return bytes(self._file_system.cat_file(self._path(name), start=offset, end=offset + length))
            with Path(self.root, name).open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)
        except Exception as error:
            if isinstance(error, MissingExtraError):
                raise
            problem = f"{name} in {self.root} cannot be read ({_short(error)})"
            raise LoadingError(problem, "check that it is there and can be reached") from error

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @property
    def _file_system(self) -> Any:
        """The file system of this process: connections do not survive a fork."""
        process = os.getpid()
        if process not in self._file_systems:
            try:
                import fsspec
            except ImportError:
                raise MissingExtraError(f"The address {self.root}", "data") from None
            protocol = self.root.partition("://")[0]
            self._file_systems[process] = fsspec.filesystem(protocol, skip_instance_cache=True)
        return self._file_systems[process]


@dataclass(frozen=True)
class ShardSource:
    """The images of a split of a packed data set.

    Attributes:
        storage: where its files are.
        shards: names of its shards.
        entries: (n,) :data:`ENTRY`.
        names: names of the images.
        classes: class names.
        value_range: black and white of images with more than 8 bits, see :mod:`deit.data.value_range`.
    """

    storage: ShardStorage
    shards: tuple[str, ...]
    entries: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    value_range: ValueRange | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        return self.entries["label"].astype(np.int64)

    def content(self, index: int) -> bytes:
        entry = self.entries[index]
        shard, length = self.shards[entry["shard"]], int(entry["bytes"])
        content = self.storage.read_range(shard, int(entry["offset"]), length)
        if len(content) != length:
            raise ImageError(f"{self.name(index)} is cut off at the end of {shard}", "copy the shard again")
        return content

    def open(self, index: int) -> EncodedImage:
        return EncodedImage(self.content(index), self.name(index), self.value_range)

    def load(self, index: int) -> Image.Image:
        return open_image(self.content(index), self.name(index), self.value_range)

    def check(self, index: int) -> None:
        """Does nothing: the header was checked when the image was packed."""

    def name(self, index: int) -> str:
        return self.names[index]

    def with_value_range(self, value_range: ValueRange) -> ShardSource:
        return replace(self, value_range=value_range)

    def recorded_info(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns hashes, sizes and depths, as :class:`deit.data.file_info.FileInfo` has them."""
        entries = self.entries[indices]
        sizes = np.stack((entries["width"], entries["height"]), axis=1).astype(np.int64)
        return entries["hash"].astype(np.uint64), sizes, entries["depth"].copy()


def is_address(text: str) -> bool:
    """Whether a text is an address such as ``s3://bucket/photos``, and not a path or a name."""
    return _ADDRESS.match(text) is not None


def is_packed(data: str) -> bool:
    """Whether data is a packed data set: an address, or a folder with its manifest."""
    return is_address(data) or Path(data, MANIFEST_NAME).is_file()


def packed_splits(data: str) -> DatasetSplits:
    """Reads a packed data set.

    Raises:
        DataError: it is not one, or damaged.
        MissingExtraError: an address, without fsspec.
    """
    storage = ShardStorage(data)
    where = f"{MANIFEST_NAME} in {data}"
    try:
        manifest = json_object(storage.read(MANIFEST_NAME, MAX_JSON_BYTES), where)
    except CheckpointError as error:
        raise DataError(error.problem, "pack the data again") from error
    if manifest.get("format") != FORMAT:
        raise DataError(f"{where} has format {manifest.get('format')!r}", f"this version reads {FORMAT}")
    classes, splits = manifest.get("classes"), manifest.get("splits")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _damaged(where)
    if not isinstance(splits, dict) or not splits or set(splits) - set(SPLITS):
        raise _damaged(where)
    sources = {name: _read_split(storage, name, content, tuple(classes)) for name, content in splits.items()}
    holdout, origin = manifest.get("holdout", {}), manifest.get("origin", "")
    if not isinstance(holdout, dict) or not all(isinstance(value, float) for value in holdout.values()):
        raise _damaged(where)
    return DatasetSplits(
        sources.get("train"),
        sources.get("validation"),
        sources.get("test"),
        unsplit=manifest.get("unsplit") is True,
        origin=str(origin),
        holdout=holdout,
    )


def _read_split(storage: ShardStorage, split: str, content: Any, classes: tuple[str, ...]) -> ShardSource:
    """Reads the index of a split, and checks every value before any is used.

    Raises:
        DataError: it is damaged.
    """
    damaged = _damaged(f"The index of the split {split} in {storage.root}")
    if not isinstance(content, Mapping) or not isinstance(content.get("shards"), list):
        raise damaged
    count, shards = content.get("images"), content["shards"]
    if type(count) is not int or not 0 < count <= MAX_IMAGES or not all(_is_shard(shard) for shard in shards):
        raise damaged
    raw = storage.read(f"{split}.index", count * ENTRY.itemsize)
    if len(raw) != count * ENTRY.itemsize:
        raise damaged
    entries = np.frombuffer(raw, ENTRY)
    if entries["shard"].max() >= len(shards) or entries["label"].max() >= len(classes):
        raise damaged
    ends = np.asarray([shard["bytes"] for shard in shards], np.uint64)[entries["shard"]]
    too_long = (entries["bytes"] > MAX_FILE_BYTES).any() or (entries["offset"] > ends).any()
    if too_long or (entries["bytes"] > ends - entries["offset"]).any():
        raise damaged
    lines = storage.read(f"{split}.names", MAX_NAMES_BYTES).splitlines()
    try:
        names = tuple(json.loads(line) for line in lines)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise damaged
    return ShardSource(storage, tuple(shard["name"] for shard in shards), entries, names, classes)


def _is_shard(shard: Any) -> bool:
    """Whether an entry of the manifest is a plain file name and a size."""
    if not isinstance(shard, Mapping):
        return False
    name, size = shard.get("name"), shard.get("bytes")
    return isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None and type(size) is int and 0 <= size < 2**63


def _damaged(what: str) -> DataError:
    return DataError(f"{what} is damaged", "copy it again, or pack the data again")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
