"""Content hashes of images, and their file."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.data.image_hashes import ImageHashes, content_hash, content_hashes, copy_data_record, read_image_hashes
from deit.data.sources import ArraySource, FileSource, MultiLabelSource, subset
from deit.errors import CheckpointError
from tests.helpers import MemorySource, pattern

LABELS = np.zeros(3, np.int64)
HASH_LISTS = st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=9)


def files(root: Path, *names: str) -> FileSource:
    return FileSource(root, names, ("a",), np.zeros(len(names), np.int64))


def test_hash_depends_on_the_content_only(tmp_path: Path) -> None:
    pattern(9, 9).save(tmp_path / "one.png")
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "one.png").read_bytes())
    pattern(9, 9, 1).save(tmp_path / "other.png")
    one, copy, other = content_hashes(files(tmp_path, "one.png", "copy.jpg", "other.png"))
    assert one == copy != other
    source = files(tmp_path, "one.png", "other.png")
    assert content_hash(subset(source, [1]), 0) == other
    assert content_hash(MultiLabelSource(source, ((0,), (0,)), ("a",)), 1) == other


def test_images_in_memory_are_hashed_by_shape_and_pixels() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    flat = ArraySource(pixels.reshape(3, 2, 8), ("a",), LABELS, "digit")
    square = ArraySource(pixels, ("a",), LABELS, "digit")
    assert len({*content_hashes(flat).tolist(), *content_hashes(square).tolist()}) == 6
    assert content_hash(square, 1) == content_hash(ArraySource(pixels[1:], ("b",), LABELS[1:], "number"), 0)


def test_file_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    source = files(tmp_path, "missing.png", "folder.png", "pipe.png")
    assert content_hashes(source).tolist() == [0, 0, 0]
    assert not len(ImageHashes.of(source, MemorySource(3, broken=frozenset({0, 1, 2}))))


@given(HASH_LISTS, HASH_LISTS)
def test_file_keeps_the_hashes(tmp_path_factory: pytest.TempPathFactory, train: list[int], validation: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "hashes.bin"
    hashes = ImageHashes(np.sort(np.asarray(train, np.uint64)), np.sort(np.asarray(validation, np.uint64)))
    path.write_bytes(hashes.to_bytes())
    assert path.stat().st_size == 24 + 8 * (len(train) + len(validation))
    read = ImageHashes.from_file(path)
    assert (read.train.tolist(), read.validation.tolist()) == (sorted(train), sorted(validation))
    assert hashes.copies == len(set(train) & set(validation))
    union = hashes.with_training_images(ImageHashes(hashes.validation, hashes.train))
    assert (union.train.tolist(), union.validation.tolist()) == (sorted({*train, *validation}), sorted(validation))


VALID = b"DEITIMG1" + struct.pack("<QQ", 2, 1) + struct.pack("<QQQ", 5, 9, 7)
DAMAGED = {
    "empty": b"",
    "short": VALID[:-1],
    "long": VALID + b"\0",
    "name": b"X" + VALID[1:],
    "unsorted": VALID[:24] + struct.pack("<QQQ", 9, 5, 7),
    "twice": VALID[:24] + struct.pack("<QQQ", 9, 9, 7),
    "huge": VALID[:8] + struct.pack("<QQ", 2**63, 2**63 + 3) + VALID[24:],
    "negative": VALID[:8] + struct.pack("<qq", -1, 4) + VALID[24:],
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "training_images.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_image_hashes(tmp_path)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.bin"
    path.write_bytes(b"DEITIMG1" + content)
    with contextlib.suppress(CheckpointError):
        assert len(ImageHashes.from_file(path)) <= len(content) / 8


def test_file_larger_than_any_record_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "training_images.bin").open("wb") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(CheckpointError, match="is damaged"):
        read_image_hashes(tmp_path)


def test_record_is_copied_with_its_model(tmp_path: Path) -> None:
    for name in ("model", "copy", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "training_images.bin").write_bytes(VALID)
    (tmp_path / "model" / "training.json").write_text('{"split_seed": 3}')
    copy_data_record(tmp_path / "model" / "model.safetensors", tmp_path / "copy")
    assert (tmp_path / "copy" / "training_images.bin").read_bytes() == VALID
    assert (tmp_path / "copy" / "training.json").read_text() == '{\n  "split_seed": 3\n}\n'
    copy_data_record(tmp_path / "nothing", tmp_path / "nothing")
    assert not list((tmp_path / "nothing").iterdir())
