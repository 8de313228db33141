"""MNIST and Fashion-MNIST: gray images and labels in the authors' IDX files, gzipped or not."""

from __future__ import annotations

import math
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit.data.datasets.download import Remote, ensure
from deit.data.sources import ArraySource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

SIDE = 28
MAX_BYTES = 2**28  # of a file, compressed or not; the largest one has 47 MB
BLOCK = 2**20
GZIP_MAGIC = b"\x1f\x8b"
GZIP_BITS = 31  # zlib's code of the gzip format
UNSIGNED_BYTES = 8  # the type of the values in the header of a file
VALIDATION_FRACTION = 0.1  # 6,000 of the 60,000 training images; test images must not select checkpoints


@dataclass(frozen=True)
class Mnist:
    """One of the two data sets.

    Attributes:
        title: name for messages.
        subfolder: folder in which torchvision keeps the files.
        classes: class names.
        remotes: the gzipped files: images and labels for training, then for the test.
    """

    title: str
    subfolder: str
    classes: tuple[str, ...]
    remotes: tuple[Remote, Remote, Remote, Remote]


def _remotes(url: str, *files: tuple[str, str, int]) -> tuple[Remote, Remote, Remote, Remote]:
    train_images, train_labels, test_images, test_labels = (
        Remote(f"{url}/{name}-ubyte.gz", md5, size, f"{name}-ubyte.gz") for name, md5, size in files
    )
    return train_images, train_labels, test_images, test_labels


MNIST = Mnist(
    "MNIST",
    "MNIST/raw",
    tuple(str(digit) for digit in range(10)),
    _remotes(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
)
FASHION_MNIST = Mnist(
    "Fashion-MNIST",
    "FashionMNIST/raw",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    _remotes(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
)


def mnist_splits(mnist: Mnist, root: Path) -> DatasetSplits:
    """Reads the training images, of which a tenth is to be set aside, and the test images.

    Raises:
        DataError: the data is missing and cannot be downloaded, or a file is invalid.
    """
    ensure(root, mnist.title, *(remote for remote in mnist.remotes if _find(mnist, root, remote) is None))
    paths = [_find(mnist, root, remote) or root / remote.file for remote in mnist.remotes]
    train = _read_split(mnist, paths[0], paths[1], "training image")
    test = _read_split(mnist, paths[2], paths[3], "test image")
    origin = f"the training and test splits of {mnist.title}"
    return DatasetSplits(train, test=test, origin=origin, holdout={"validation": VALIDATION_FRACTION})


def _find(mnist: Mnist, root: Path, remote: Remote) -> Path | None:
    """Returns a file, gzipped or not, in the folder or where torchvision keeps it; None if it is missing."""
    plain = remote.file.removesuffix(".gz")
    names = (plain, plain.replace("-idx", ".idx"), remote.file)  # Kaggle writes a dot
    candidates = (folder / name for folder in (root, root / mnist.subfolder) for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _read_split(mnist: Mnist, images_path: Path, labels_path: Path, noun: str) -> ArraySource:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    remedy = "copy or download the data set again"
    if images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise DataError(f"{images_path} has {len(images)} images of {images.shape[2]} x {images.shape[1]} pixels", remedy)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images):,} images, and {labels_path} {len(labels):,} labels", remedy)
    if labels.max() >= len(mnist.classes):
        raise DataError(f"{labels_path} has a label {labels.max()}, but there are {len(mnist.classes)} classes", remedy)
    return ArraySource(images, mnist.classes, labels.astype(np.int64), noun)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an array of unsigned bytes from an IDX file, which may be gzipped.

    The format, big-endian: two zero bytes, the type of the values, the number of dimensions, the size of each dimension
    (uint32), and the values.

    Args:
        path: the file.
        dimensions: number of dimensions that it must have.

    Raises:
        DataError: the file is missing, damaged, too large, or of another type or number of dimensions.
    """
    remedy = "copy or download the data set again"
    header_bytes = 4 + 4 * dimensions
    content = bytearray()
    expected = header_bytes
    shape: tuple[int, ...] = ()
    try:
        for block in _blocks(path):
            content += block
            if not shape and len(content) >= header_bytes:
                if content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
                    break
                shape = tuple(np.frombuffer(content[4:header_bytes], ">u4").tolist())
                expected = header_bytes + math.prod(shape)
            if shape and (len(content) > expected or expected > MAX_BYTES):
                break
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})", remedy) from error
    if not shape:
        raise DataError(f"{path} is not an IDX file of bytes in {dimensions} dimensions", remedy)
    size = " x ".join(map(str, shape))
    if expected > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes, and at most {MAX_BYTES >> 20} MiB are read", remedy)
    if len(content) != expected:
        raise DataError(f"{path} has another size than its header says, {size} bytes", remedy)
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yields the content of a file, unzipped, in blocks of at most 1 MiB. What follows the first gzip stream is ignored."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise OSError(f"not a file of at most {MAX_BYTES >> 20} MiB")
    with path.open("rb") as file:
        is_zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if not is_zipped:
            while block := file.read(BLOCK):
                yield block
            return
        stream = zlib.decompressobj(GZIP_BITS)
        while not stream.eof:
            compressed = stream.unconsumed_tail or file.read(BLOCK)
            block = stream.decompress(compressed, BLOCK)
            if not compressed and not block:
                raise EOFError("its end is missing")
            yield block
