"""ImageNet (ILSVRC 2012) as its users have it on disk, and its sisters: V2, ReaL, A and R."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deit.data.class_names import IMAGENET_CLASSES, imagenet_ids, imagenet_names, imagenet_subset, reassessed_labels
from deit.data.datasets.download import Remote, ensure, unpack
from deit.data.datasets.folders import images_below
from deit.data.datasets.mat_files import read_mat
from deit.data.sources import FileSource, MultiLabelSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
IMAGENET_A = Remote(f"{_HENDRYCKS}/imagenet-a.tar", "c3e55429088dc681f30d81f4726b6595", 687_552_512, "imagenet-a")
IMAGENET_R = Remote(f"{_HENDRYCKS}/imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337", 2_200_000_000, "imagenet-r")
IMAGENET_V2 = Remote(
    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
    None,
    1_260_000_000,
    "imagenetv2-matched-frequency-format-val",
)
DEVKIT = "ILSVRC2012_devkit_t12"
KAGGLE = "ILSVRC/Data/CLS-LOC"
KAGGLE_LABELS = "LOC_val_solution.csv"
REAL_NAME = "real.json"
MAX_LABEL_BYTES = 64 * 2**20
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})$")
GET_IT = (
    "image-net.org gives it to those who register: put train/ and val/ there, or ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"
)


def imagenet_parts(root: Path) -> DatasetSplits:
    """The training images, and the 50,000 validation images that the literature reports on.

    ``train/n01440764/...`` and ``val`` likewise, or ``val/ILSVRC2012_val_00000001.JPEG`` with the development kit or Kaggle's
    ``LOC_val_solution.csv`` beside it; Kaggle's folders; or the archives as they are downloaded, which are unpacked first.

    Raises:
        DataError: it is not there, or holds classes that ImageNet lacks.
    """
    folder = _folder(root, "train")
    train = _by_folder(folder, _present(folder))
    validation = _validation(root, [imagenet_names().index(name) for name in train.classes])
    return DatasetSplits(train, validation, origin="the training part of ImageNet, and its validation part")


def imagenet_validation(root: Path) -> FileSource:
    """The validation images alone, for which no training images need be there.

    Raises:
        DataError: as :func:`imagenet_parts`.
    """
    return _validation(root, None)


def imagenet_real(root: Path) -> MultiLabelSource:
    """The validation images with all the labels of Beyer et al. (arXiv 2006.07159); images without any are left out.

    Args:
        root: ImageNet's; a ``real.json`` in it is taken in place of the copy that timm carries.

    Raises:
        DataError: as :func:`imagenet_parts`, or a ``real.json`` that does not fit.
    """
    source = _validation(root, range(IMAGENET_CLASSES))
    labels = _real_labels(root / REAL_NAME) if (root / REAL_NAME).is_file() else reassessed_labels()
    numbers = [_number(name) for name in source.names]
    if max(numbers) > len(labels):
        raise DataError(f"{root} has validation images beyond the {len(labels)} with labels", "copy real.json again")
    kept = [place for place, number in enumerate(numbers) if labels[number - 1]]
    if not kept:
        raise DataError(f"No validation image in {root} has a label", "copy real.json again")
    names = tuple(source.names[place] for place in kept)
    right = tuple(tuple(labels[numbers[place] - 1]) for place in kept)
    return MultiLabelSource(FileSource(source.root, names, source.classes, source.labels[kept]), right, source.classes)


def imagenet_v2(root: Path) -> FileSource:
    """The matched-frequency images of Recht et al. (arXiv 1902.10811), in folders numbered as the classes are.

    Raises:
        DataError: no network and no data.
    """
    numbered = {str(place): place for place in range(IMAGENET_CLASSES)}
    return _by_folder(_sister(root, "ImageNet-V2", IMAGENET_V2), range(IMAGENET_CLASSES), numbered)


def imagenet_a(root: Path) -> FileSource:
    """The adversarially filtered photographs of 200 classes (Hendrycks et al., arXiv 1907.07174).

    Raises:
        DataError: no network and no data.
    """
    return _by_folder(_sister(root, "ImageNet-A", IMAGENET_A), imagenet_subset("a"))


def imagenet_r(root: Path) -> FileSource:
    """The renditions of 200 classes (Hendrycks et al., arXiv 2006.16241).

    Raises:
        DataError: no network and no data.
    """
    return _by_folder(_sister(root, "ImageNet-R", IMAGENET_R), imagenet_subset("r"))


def _sister(root: Path, name: str, remote: Remote) -> Path:
    """The folder of class folders: below the data set's folder as the archive makes it, or that folder itself."""
    if not (root / remote.holds).is_dir() and root.is_dir() and any(_is_class(child) for child in root.iterdir()):
        return root
    ensure(root, name, remote)
    return root / remote.holds


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and (folder.name.isdigit() or folder.name in imagenet_ids())


def _present(folder: Path) -> list[int]:
    """The classes, by their places, that a folder of WordNet ids has; a copy of a part of ImageNet is a data set too."""
    places = {wnid: place for place, wnid in enumerate(imagenet_ids())}
    return sorted(places[child.name] for child in folder.iterdir() if child.is_dir() and child.name in places)


def _by_folder(folder: Path, among: Sequence[int], names: Mapping[str, int] | None = None) -> FileSource:
    """``folder/NAME/image``.

    Args:
        among: places of the classes that the data set has.
        names: of the folders -> the class's place; WordNet ids when None.
    """
    names = names or {wnid: place for place, wnid in enumerate(imagenet_ids())}
    labels = {place: label for label, place in enumerate(among)}
    files: list[str] = []
    found: list[int] = []
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            continue
        if names.get(child.name) not in labels:
            raise DataError(f"{folder} has a folder {child.name!r} that is none of its {len(labels)} classes", "remove it")
        own = images_below(folder, child.name)
        files.extend(own)
        found.extend([labels[names[child.name]]] * len(own))
    if not files:
        raise DataError(f"{folder} holds no images", "copy the data set again")
    classes = tuple(imagenet_names()[place] for place in among)
    return FileSource(folder, tuple(files), classes, np.asarray(found, np.int64))


def _folder(root: Path, part: str) -> Path:
    """Where the images of a part are; unpacked from the archive if need be."""
    if not root.is_dir():
        raise DataError(f"ImageNet is not in {root}", GET_IT)
    places = (root / part, root / KAGGLE / part)
    if found := next((place for place in places if place.is_dir()), None):
        return found
    archive = root / f"ILSVRC2012_img_{part}.tar"
    if not archive.is_file():
        raise DataError(f"ImageNet has no {part} in {root}", GET_IT)
    if part == "val":
        unpack(archive, root, part, flat=True)
    else:
        _unpack_train(archive, root)
    return root / part


def _unpack_train(archive: Path, root: Path) -> None:
    """An archive of an archive for each class; what was unpacked before an interruption stays."""
    inner, classes = root / "train.archives", root / "train.classes"
    if not inner.is_dir():
        unpack(archive, root, inner.name, flat=True)
    classes.mkdir(exist_ok=True)
    for file in sorted(inner.glob("*.tar")):
        if not (classes / file.stem).is_dir():
            unpack(file, classes, file.stem, flat=True)
        file.unlink()
    classes.rename(root / "train")
    inner.rmdir()


def _validation(root: Path, among: Sequence[int] | None) -> FileSource:
    """The validation images of the classes at ``among``; by default of those that there are."""
    folder = _folder(root, "val")
    if any(child.is_dir() and child.name in imagenet_ids() for child in folder.iterdir()):
        return _by_folder(folder, _present(folder) if among is None else among)
    files = images_below(folder)
    if not files:
        raise DataError(f"{folder} holds no images", GET_IT)
    known = {wnid: place for place, wnid in enumerate(imagenet_ids())}
    wnids = _validation_ids(root)
    try:
        places = [known[wnids[_number(name)]] for name in files]
    except KeyError as error:
        raise DataError(f"{root} has no label for a validation image ({error})", "copy the labels again") from error
    among = sorted(set(places)) if among is None else among
    labels = {place: label for label, place in enumerate(among)}
    if (other := next((place for place in places if place not in labels), None)) is not None:
        raise DataError(f"{folder} has a class {imagenet_names()[other]!r} that the training part lacks", "add it there")
    classes = tuple(imagenet_names()[place] for place in among)
    return FileSource(folder, tuple(files), classes, np.asarray([labels[place] for place in places], np.int64))


def _validation_ids(root: Path) -> dict[int, str]:
    """Number of a validation image -> its WordNet id, from Kaggle's table or the development kit."""
    table = root / KAGGLE_LABELS
    if table.is_file():
        rows = csv.reader(_text(table).splitlines()[1:])
        return {_number(row[0]): row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    if not (root / DEVKIT).is_dir():
        archive = root / f"{DEVKIT}.tar.gz"
        if not archive.is_file():
            raise DataError(f"The validation images in {root} have no labels", f"put {archive.name} or {KAGGLE_LABELS} there")
        unpack(archive, root, DEVKIT)
    file = root / DEVKIT / "data" / "meta.mat"
    synsets = np.atleast_1d(read_mat(file, "synsets"))
    truth = root / DEVKIT / "data" / "ILSVRC2012_validation_ground_truth.txt"
    lines = _text(truth).split()
    try:
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return {place: wnids[int(line)] for place, line in enumerate(lines, 1)}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} and {truth.name} do not fit each other ({error})", "unpack the development kit again"
        ) from error


def _number(name: str) -> int:
    """``n01440764/ILSVRC2012_val_00000293.JPEG`` -> 293."""
    match = _NUMBER.search(Path(name).stem)
    if match is None or not int(match[1]):
        raise DataError(f"{name} is no validation image of ImageNet", "they are called ILSVRC2012_val_00000001.JPEG and so on")
    return int(match[1])


def _real_labels(path: Path) -> list[list[int]]:
    text = _text(path)
    try:
        labels = [[int(label) for label in row] for row in json.loads(text)]
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no list of lists of classes", "copy it again") from error
    if any(not 0 <= label < IMAGENET_CLASSES for row in labels for label in row):
        raise DataError(f"{path} has labels beyond the thousand classes", "copy it again")
    return labels


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise DataError(f"{path} is larger than {MAX_LABEL_BYTES >> 20} MiB", "it is no file of labels")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text", "copy it again") from error
