"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.data.datasets.mnist import FASHION_MNIST, mnist_splits, read_idx
from deit.data.datasets.named import NAMED, named_reference
from deit.data.opening import open_data
from deit.errors import DataError
from tests.unit.data.layouts import idx, mnist

FILES = tuple(remote.file for remote in FASHION_MNIST.remotes)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_tenth_of_train_is_set_aside_and_the_test_split_is_kept(tmp_path: Path, name: str) -> None:
    splits = open_data(f"{name}:{mnist(tmp_path / 'my data', 100, 20)}", seed=3)
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [90, 10, 20]
    assert np.bincount(splits.validation.labels).tolist() == [1] * 10
    assert splits.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]
    assert "MNIST; no validation split: 10% of each class set aside by seed 3" in splits.origin
    image = splits.test.load(9)
    assert (image.mode, image.size) == ("RGB", (28, 28))
    assert np.asarray(image).mean() == pytest.approx(190, abs=2)
    assert splits.test.name(9) == "test image 9"


@pytest.mark.parametrize("layout", ["unzipped", "with a dot", "torchvision"])
def test_other_layouts_are_read(tmp_path: Path, layout: str) -> None:
    mnist(tmp_path / "FashionMNIST" / "raw" if layout == "torchvision" else tmp_path)
    for path in list(tmp_path.glob("*.gz")):
        name = path.stem.replace("-idx", ".idx") if layout == "with a dot" else path.stem
        path.with_name(name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(mnist_splits(FASHION_MNIST, tmp_path).train.labels) == 40


def test_folder_of_a_package_is_read_if_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mnist(tmp_path / "package", 40, 20)
    monkeypatch.setitem(NAMED, "fashion-mnist", replace(NAMED["fashion-mnist"], package_folder=package))
    monkeypatch.setenv("DEIT_DATA", str(tmp_path))
    assert named_reference("fashion-mnist") == ("fashion-mnist", package)
    assert named_reference("fashion-mnist:elsewhere") == ("fashion-mnist", Path("elsewhere"))
    assert open_data("fashion-mnist").test is not None
    mnist(tmp_path / "fashion-mnist", 60, 20)
    assert len(open_data("fashion-mnist").train.labels) == 50  # one of six images of each class is set aside


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mnist(tmp_path / "source")
    contents = {file: (source / file).read_bytes() for file in FILES}
    requested = []

    def urlopen(url: str, timeout: float) -> object:
        assert timeout > 0
        requested.append(url.rpartition("/")[2])
        response = io.BytesIO(contents[requested[-1]])
        response.headers = {}  # type: ignore[attr-defined]
        return response

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    root = tmp_path / "root"
    root.mkdir()
    (root / FILES[0].removesuffix(".gz")).write_bytes(gzip.decompress(contents[FILES[0]]))
    with pytest.raises(DataError, match="is truncated or another file"):
        mnist_splits(FASHION_MNIST, root)
    remotes = [
        replace(remote, md5=hashlib.md5(contents[remote.file]).hexdigest(), size=len(contents[remote.file]))
        for remote in FASHION_MNIST.remotes
    ]
    requested.clear()
    made = replace(FASHION_MNIST, remotes=(remotes[0], remotes[1], remotes[2], remotes[3]))
    for _ in range(2):
        assert len(mnist_splits(made, root).train.labels) == 40
    assert requested == list(FILES[1:])


ARRAY = np.arange(2 * 3 * 4).reshape(2, 3, 4)


def compressed(content: bytes) -> bytes:
    """Compresses without a time stamp: contents are part of the names of tests, which must be the same in all processes."""
    return gzip.compress(content, mtime=0)


ZIPPED = compressed(idx(ARRAY))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of bytes in 3 dimensions"),
        (idx(ARRAY)[:15], "is not an IDX file of bytes in 3 dimensions"),
        (idx(ARRAY[0]), "is not an IDX file of bytes in 3 dimensions"),
        (b"\0\0\x0d\3" + idx(ARRAY)[4:], "is not an IDX file of bytes in 3 dimensions"),
        (idx(ARRAY)[:-1], "another size than its header says, 2 x 3 x 4 bytes"),
        (idx(ARRAY) + b"x", "another size than its header says"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *(2**32 - 1,) * 3), "and at most 256 MiB are read"),
        (compressed(struct.pack(">4B3I", 0, 0, 8, 3, 2**10, 2**10, 2**10)), "and at most 256 MiB are read"),
        (compressed(idx(ARRAY) + bytes(10**7)), "another size than its header says"),
        (ZIPPED[:-9], "cannot be read"),
        (ZIPPED[:-8] + bytes(8), "cannot be read"),
        (b"\x1f\x8b" + bytes(30), "cannot be read"),
    ],
)
def test_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path, 3)


def test_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_bytes(idx(ARRAY))
    (tmp_path / "zipped").write_bytes(compressed(idx(np.zeros((2, 100, 100)))))
    assert read_idx(tmp_path / "zipped", 3).shape == (2, 100, 100)
    monkeypatch.setattr("deit.data.datasets.mnist.MAX_BYTES", 39)
    with pytest.raises(DataError, match="not a file of at most"):
        read_idx(tmp_path / "plain", 3)
    monkeypatch.setattr("deit.data.datasets.mnist.MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="are read"):
        read_idx(tmp_path / "zipped", 3)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.booleans(), st.integers(-3, 3))
def test_valid_files_are_read_and_others_are_errors(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], is_zipped: bool, extra: int
) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    content = idx(array)[:extra] if extra < 0 else idx(array) + bytes(extra)
    path = tmp_path_factory.getbasetemp() / "array.idx"
    path.write_bytes(compressed(content) if is_zipped else content)
    if extra:
        with pytest.raises(DataError):
            read_idx(path, len(shape))
    else:
        assert np.array_equal(read_idx(path, len(shape)), array)


@given(st.binary(max_size=100), st.sampled_from([b"", b"\0\0\x08\1", b"\x1f\x8b\x08"]), st.integers(1, 3))
def test_random_bytes_are_a_one_line_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes, dimensions: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.idx"
    path.write_bytes(start + content)
    try:
        array = read_idx(path, dimensions)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert array.ndim == dimensions


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-images-idx3-ubyte.gz", np.zeros((0, 28, 28)), "has 0 images"),
        ("train-images-idx3-ubyte.gz", np.zeros((40, 28, 32)), "of 32 x 28 pixels"),
        ("train-images-idx3-ubyte.gz", np.zeros((39, 28, 28)), "has 39 images, and .* 40 labels"),
        ("t10k-labels-idx1-ubyte.gz", np.full(20, 10), "has a label 10, but there are 10 classes"),
    ],
)
def test_files_that_do_not_fit_are_an_error(tmp_path: Path, file: str, array: np.ndarray, message: str) -> None:
    (mnist(tmp_path) / file).write_bytes(compressed(idx(array)))
    with pytest.raises(DataError, match=message):
        open_data(f"mnist:{tmp_path}")
