"""CIFAR's binary files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.datasets.cifar import read_batch
from deit.data.opening import open_data
from deit.data.sources import ArraySource
from deit.errors import DataError
from tests.unit.data.layouts import CIFAR10_NAMES, cifar10, cifar100, cifar_records


def test_cifar10_validates_on_a_tenth_of_train_and_keeps_its_test_split(tmp_path: Path) -> None:
    splits = open_data(f"cifar10:{cifar10(tmp_path / 'my data', 20)}", seed=3)
    assert splits.classes == CIFAR10_NAMES
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [90, 10, 20]
    assert np.bincount(splits.validation.labels).tolist() == [1] * 10
    assert splits.origin == (
        "the training and test splits of CIFAR-10; no validation split: 10% of each class set aside by seed 3"
    )
    assert splits.held_out[0] == "test"
    image = splits.test.load(9)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert splits.test.name(9) == "test image 9"
    assert np.asarray(image).mean() == pytest.approx(9 * 200 // 10 + 20, abs=2)


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    splits = open_data(f"cifar100:{cifar100(tmp_path)}")
    assert len(splits.classes) == 100
    assert splits.test is not None
    assert splits.test.labels.tolist() == list(range(100))
    assert splits.classes[7] == "thing_07"


def test_pixels_are_stored_in_planes(tmp_path: Path) -> None:
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[0, 1, 2], pixels[1, 3, 4], pixels[2, 31, 0] = 10, 20, 30
    (tmp_path / "a.bin").write_bytes(bytes([4]) + pixels.tobytes())
    images, labels = read_batch(tmp_path / "a.bin", 1, 10)
    assert labels.tolist() == [4]
    assert images.shape == (1, 32, 32, 3)
    assert [images[0, 1, 2, 0], images[0, 3, 4, 1], images[0, 31, 0, 2], images.sum()] == [10, 20, 30, 60]


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from([10, 100]), st.integers(-5, 5), st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_valid_files_are_read_and_others_are_errors(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], classes: int, extra: int, seed: int
) -> None:
    content = cifar_records(labels, classes if classes == 100 else 10, seed) if max(labels) < 100 else b""
    content = content[:extra] if extra < 0 else content + bytes(extra)
    path = tmp_path_factory.mktemp("cifar") / "batch.bin"
    path.write_bytes(content)
    label_bytes = 2 if classes == 100 else 1
    if extra or max(labels) >= classes:
        with pytest.raises(DataError):
            read_batch(path, label_bytes, classes)
        return
    images, found = read_batch(path, label_bytes, classes)
    assert found.tolist() == labels
    planes = np.frombuffer(content, np.uint8).reshape(len(labels), -1)[:, label_bytes:]
    assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(len(labels), -1), planes)


@given(st.binary(max_size=7000))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_a_one_line_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("cifar") / "batch.bin"
    path.write_bytes(content)
    try:
        images, labels = read_batch(path, 1, 10)
    except DataError:
        return
    assert len(images) == len(labels) == len(content) // 3073


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_batch_3.bin", None, "not a file of 3073-byte images"),
        ("data_batch_3.bin", b"", "not a file of 3073-byte images"),
        ("test_batch.bin", b"x" * 3072, "not a file of 3073-byte images"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "has a label 10, but there are 10 classes"),
        ("batches.meta.txt", None, "Cannot read"),
        ("batches.meta.txt", b"\xff\xfe", "Cannot read"),
        ("batches.meta.txt", b"cat\ndog\ncat\n", "names 2 classes instead of 10"),
    ],
)
def test_damaged_file_is_an_error(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = cifar10(tmp_path) / "cifar-10-batches-bin" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(f"cifar10:{tmp_path}")
    assert file in str(caught.value)


def test_data_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_DATA", str(tmp_path))
    cifar10(tmp_path / "cifar10")
    assert isinstance(open_data("cifar10").test, ArraySource)
