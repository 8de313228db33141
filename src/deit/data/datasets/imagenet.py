"""ImageNet (ILSVRC 2012) in its common layouts on disk, and the evaluation sets ImageNet-V2, ReaL, -A and -R."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deit.data.class_names import IMAGENET_CLASSES, imagenet_ids, imagenet_names, imagenet_subset, reassessed_labels
from deit.data.datasets.download import Remote, ensure, unpack
from deit.data.datasets.folders import list_images
from deit.data.datasets.mat_files import read_mat
from deit.data.sources import FileSource, MultiLabelSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError
from deit.system.files import locked_draft

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
REMEDY = (
    "register at image-net.org to download it: put train/ and val/ there, or ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"
)


def imagenet_splits(root: Path) -> DatasetSplits:
    """Reads the training images, and the 50,000 validation images that papers report on.

    Layouts: ``train/n01440764/...`` and ``val/n01440764/...``; ``val/ILSVRC2012_val_00000001.JPEG`` next to the development kit
    or Kaggle's ``LOC_val_solution.csv``; Kaggle's folders; or the downloaded archives, which are unpacked first.

    Raises:
        DataError: ImageNet is missing, or there are classes that it does not have.
    """
    folder = _split_folder(root, "train")
    train = _by_folder(folder, _existing_classes(folder))
    validation = _validation(root, [imagenet_names().index(name) for name in train.classes])
    return DatasetSplits(train, validation, origin="the training and validation splits of ImageNet")


def imagenet_validation(root: Path) -> FileSource:
    """Reads the validation images. The training images are not needed.

    Raises:
        DataError: as in :func:`imagenet_splits`.
    """
    return _validation(root, None)


def imagenet_real(root: Path) -> MultiLabelSource:
    """Reads the validation images with the ReaL labels (arXiv 2006.07159); images without labels are left out.

    Args:
        root: folder of ImageNet; a ``real.json`` in it is used instead of the copy in timm.

    Raises:
        DataError: as in :func:`imagenet_splits`, or ``real.json`` is inconsistent.
    """
    source = _validation(root, range(IMAGENET_CLASSES))
    labels = _real_labels(root / REAL_NAME) if (root / REAL_NAME).is_file() else reassessed_labels()
    numbers = [_number(name) for name in source.names]
    if max(numbers) > len(labels):
        raise DataError(f"{root} has validation images beyond the {len(labels)} with labels", "copy real.json again")
    kept = [index for index, number in enumerate(numbers) if labels[number - 1]]
    if not kept:
        raise DataError(f"No validation image in {root} has a label", "copy real.json again")
    names = tuple(source.names[index] for index in kept)
    correct = tuple(tuple(labels[numbers[index] - 1]) for index in kept)
    return MultiLabelSource(FileSource(source.root, names, source.classes, source.labels[kept]), correct, source.classes)


def imagenet_v2(root: Path) -> FileSource:
    """Reads the matched-frequency images of ImageNet-V2 (arXiv 1902.10811), in folders named by class index.

    Raises:
        DataError: the data is missing and cannot be downloaded.
    """
    numbered = {str(index): index for index in range(IMAGENET_CLASSES)}
    return _by_folder(_class_folders(root, "ImageNet-V2", IMAGENET_V2), range(IMAGENET_CLASSES), numbered)


def imagenet_a(root: Path) -> FileSource:
    """Reads ImageNet-A, adversarially filtered photos of 200 classes (arXiv 1907.07174).

    Raises:
        DataError: the data is missing and cannot be downloaded.
    """
    return _by_folder(_class_folders(root, "ImageNet-A", IMAGENET_A), imagenet_subset("a"))


def imagenet_r(root: Path) -> FileSource:
    """Reads ImageNet-R, renditions of 200 classes (arXiv 2006.16241).

    Raises:
        DataError: the data is missing and cannot be downloaded.
    """
    return _by_folder(_class_folders(root, "ImageNet-R", IMAGENET_R), imagenet_subset("r"))


def _class_folders(root: Path, name: str, remote: Remote) -> Path:
    """Returns the folder of the class folders: the archive's own folder in ``root``, or ``root`` itself."""
    if not (root / remote.holds).is_dir() and root.is_dir() and any(_is_class(child) for child in root.iterdir()):
        return root
    ensure(root, name, remote)
    return root / remote.holds


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and (folder.name.isdigit() or folder.name in imagenet_ids())


def _existing_classes(folder: Path) -> list[int]:
    """Returns the class indices of the folders named by WordNet ID. A subset of the classes is allowed."""
    indices = {wnid: index for index, wnid in enumerate(imagenet_ids())}
    return sorted(indices[child.name] for child in folder.iterdir() if child.is_dir() and child.name in indices)


def _by_folder(folder: Path, among: Sequence[int], names: Mapping[str, int] | None = None) -> FileSource:
    """Reads ``folder/NAME/image``.

    Args:
        folder: the folder of the class folders.
        among: ImageNet class indices that the data set has.
        names: folder name -> ImageNet class index; None for WordNet IDs.
    """
    names = names or {wnid: index for index, wnid in enumerate(imagenet_ids())}
    labels = {index: label for label, index in enumerate(among)}
    files: list[str] = []
    file_labels: list[int] = []
    for name, child in list_images(folder).folders.items():
        if names.get(name) not in labels:
            raise DataError(f"{folder} has a folder {name!r} that is not one of its {len(labels)} classes", "move it elsewhere")
        images = child.image_paths()
        files.extend(images)
        file_labels.extend([labels[names[name]]] * len(images))
    if not files:
        raise DataError(f"{folder} holds no images", "copy the data set again")
    classes = tuple(imagenet_names()[index] for index in among)
    return FileSource(folder, tuple(files), classes, np.asarray(file_labels, np.int64))


def _split_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split, unpacked from the archive if necessary."""
    if not root.is_dir():
        raise DataError(f"ImageNet is not in {root}", REMEDY)
    candidates = (root / split, root / KAGGLE / split)
    if folder := next((path for path in candidates if path.is_dir()), None):
        return folder
    archive = root / f"ILSVRC2012_img_{split}.tar"
    if not archive.is_file():
        raise DataError(f"ImageNet has no {split} in {root}", REMEDY)
    if split == "val":
        unpack(archive, root, split, flat=True)
    else:
        _unpack_train(archive, root)
    return root / split


def _unpack_train(archive: Path, root: Path) -> None:
    """Unpacks an archive of one archive per class. Resumes after an interruption."""
    inner, classes, train = root / "train.archives", root / "train.classes", root / "train"
    with locked_draft(train):
        if train.exists():  # another program has unpacked it meanwhile
            return
        unpack(archive, root, inner.name, flat=True)
        classes.mkdir(exist_ok=True)
        for file in sorted(inner.glob("*.tar")):
            unpack(file, classes, file.stem, flat=True)
            file.unlink()
        classes.rename(train)
        inner.rmdir()


def _validation(root: Path, among: Sequence[int] | None) -> FileSource:
    """Reads the validation images of the classes ``among``; None for all that exist."""
    folder = _split_folder(root, "val")
    if any(child.is_dir() and child.name in imagenet_ids() for child in folder.iterdir()):
        return _by_folder(folder, _existing_classes(folder) if among is None else among)
    files = list_images(folder).image_paths()
    if not files:
        raise DataError(f"{folder} holds no images", REMEDY)
    known = {wnid: index for index, wnid in enumerate(imagenet_ids())}
    wnids = _validation_ids(root)
    try:
        indices = [known[wnids[_number(name)]] for name in files]
    except KeyError as error:
        raise DataError(f"{root} has no label for a validation image ({error})", "copy the labels again") from error
    among = sorted(set(indices)) if among is None else among
    labels = {index: label for label, index in enumerate(among)}
    if (other := next((index for index in indices if index not in labels), None)) is not None:
        raise DataError(f"{folder} has a class {imagenet_names()[other]!r} that the training split lacks", "add it there")
    classes = tuple(imagenet_names()[index] for index in among)
    return FileSource(folder, tuple(files), classes, np.asarray([labels[index] for index in indices], np.int64))


def _validation_ids(root: Path) -> dict[int, str]:
    """Returns validation image number -> WordNet ID, from Kaggle's table or the development kit."""
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
        return {number: wnids[int(line)] for number, line in enumerate(lines, 1)}
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{file} and {truth.name} do not match ({error})", "unpack the development kit again") from error


def _number(name: str) -> int:
    """``n01440764/ILSVRC2012_val_00000293.JPEG`` -> 293."""
    match = _NUMBER.search(Path(name).stem)
    if match is None or not int(match[1]):
        raise DataError(
            f"{name} is not a validation image of ImageNet", "they are named ILSVRC2012_val_00000001.JPEG and so on"
        )
    return int(match[1])


def _real_labels(path: Path) -> list[list[int]]:
    text = _text(path)
    try:
        labels = [[int(label) for label in row] for row in json.loads(text)]
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a list of lists of classes", "copy it again") from error
    if any(not 0 <= label < IMAGENET_CLASSES for row in labels for label in row):
        raise DataError(f"{path} has labels beyond the 1,000 classes", "copy it again")
    return labels


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise DataError(f"{path} is larger than {MAX_LABEL_BYTES >> 20} MiB", "it is not a label file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", "copy it again") from error
