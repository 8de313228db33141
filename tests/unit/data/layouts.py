"""Writes small data sets to disk in the layouts of the real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from deit.data.class_names import imagenet_ids
from tests.helpers import pattern

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def image_files(folder: Path, count: int) -> None:
    """Writes ``000.png``, ``001.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pattern(9, 7, seed=number).save(folder / f"{number:03}.png")


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern(40, 30, seed=seed).save(path, format="JPEG")


def names(source: Any) -> list[str]:
    return [source.name(index) for index in range(len(source.labels))]


def cifar_records(labels: list[int], classes: int, seed: int = 0) -> bytes:
    """Returns images whose brightness grows with their label, so that a model can learn them."""
    rng = np.random.default_rng(seed)
    records = []
    for label in labels:
        pixels = rng.integers(0, 40, (3, 32, 32)) + label * 200 // classes
        records.append(bytes([*([7] if classes == 100 else []), label]) + pixels.astype(np.uint8).tobytes())
    return b"".join(records)


def cifar10(root: Path, per_batch: int = 10) -> Path:
    """Writes five batches and a test batch, with the classes in turn, and returns ``root``."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    for number, name in enumerate([*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]):
        labels = [index % 10 for index in range(per_batch)]
        (folder / f"{name}.bin").write_bytes(cifar_records(labels, 10, seed=number))
    return root


def cifar100(root: Path) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "fine_label_names.txt").write_text("\n".join(f"thing_{index:02}" for index in range(100)))
    (folder / "train.bin").write_bytes(cifar_records([index % 100 for index in range(300)], 100))
    (folder / "test.bin").write_bytes(cifar_records(list(range(100)), 100, seed=1))
    return root


def idx(array: np.ndarray) -> bytes:
    """Returns the content of an IDX file of bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def mnist(root: Path, train: int = 40, test: int = 20) -> Path:
    """Writes the four files of MNIST, with the classes in turn, and returns ``root``. A darker image has a lower label."""
    root.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = np.random.default_rng(count).integers(0, 20, (count, 28, 28)) + 20 * labels[:, None, None]
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (root / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return root


def flowers(root: Path) -> Path:
    """Writes three images per split; the classes are 1, 2, 102, 1, ..."""
    for number in range(1, 10):
        photo(root / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 2, 102] * 3], np.uint8)})
    savemat(
        root / "setid.mat", {"trnid": np.array([[1, 2, 3]]), "valid": np.array([[6, 4, 5]]), "tstid": np.array([[7, 8, 9]])}
    )
    return root


def cars(root: Path, per_split: int = 6) -> Path:
    (root / "devkit").mkdir(parents=True)
    cells = np.empty((1, 3), object)
    cells[0] = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells})
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.zeros((1, per_split), [("bbox_x1", object), ("class", object), ("fname", object)])
        for number in range(per_split):
            photo(root / f"cars_{split}" / f"{number + 1:05d}.jpg", number)
            rows[0, number] = (3, number % 3 + 1, f"{number + 1:05d}.jpg")
        savemat(root / file, {"annotations": rows})
    return root


def inaturalist(root: Path, year: int, named: bool = True) -> Path:
    """Writes three species whose numbers are not in the order of their names."""
    categories = [{"id": number, "name": str(number), "supercategory": "Aves"} for number in (2, 0, 5)]
    number = 0
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for category in (0, 2, 5):
            for _ in range(count):
                number += 1
                name = f"train_val{year}/Aves/{category}/{number:04}.jpg"
                photo(root / name, number)
                images.append({"id": number, "file_name": name, "width": 40, "height": 30})
                annotations.append({"id": number, "image_id": number, "category_id": category})
        content = {"images": images, "categories": categories, "annotations": annotations}
        (root / f"{split}{year}.json").write_text(json.dumps(content))
    if named:
        species = [{"id": 0, "name": "Turdus merula"}, {"id": 2, "name": "Larus fuscus"}, {"id": 5, "name": "Anas acuta"}]
        (root / "categories.json").write_text(json.dumps(species))
    return root


WNIDS = tuple(imagenet_ids()[index] for index in (0, 134, 517))  # a tench and the two cranes


def imagenet_train(root: Path, count: int = 3) -> Path:
    for label, wnid in enumerate(WNIDS):
        for number in range(count):
            photo(root / "train" / wnid / f"{wnid}_{number}.JPEG", label)
    return root


def imagenet_flat(folder: Path, count: int = 6) -> None:
    """Writes validation images as published, in one folder; their classes are crane, crane, tench (see :func:`devkit`)."""
    for number in range(1, count + 1):
        photo(folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)


FLAT_WNIDS = [WNIDS[index] for index in (2, 1, 0, 2, 1, 0)]


def devkit(root: Path) -> None:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    order = [2, 0, 1]  # the development kit numbers the classes differently from the models
    rows = np.zeros((3, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)])
    for number, index in enumerate(order, 1):
        rows[number - 1, 0] = (number, WNIDS[index], "a fish, or a crane", 0)
    savemat(data / "meta.mat", {"synsets": rows})
    numbers = {WNIDS[index]: number for number, index in enumerate(order, 1)}
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for wnid in FLAT_WNIDS))
