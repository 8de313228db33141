"""Opens a data set by path or name: a folder, a manifest, a saved Hugging Face data set, a known name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deit.data.datasets.folders import folder_splits, unlabeled_splits
from deit.data.datasets.hub_datasets import (
    PREFIX,
    hub_splits,
    hub_unlabeled,
    is_parquet,
    is_saved,
    parquet_splits,
    parquet_unlabeled,
    saved_splits,
    saved_unlabeled,
)
from deit.data.datasets.manifest import is_manifest, manifest_splits, metadata_splits, unlabeled_manifest
from deit.data.datasets.named import DIGITS, NAMED, digits_splits, named_reference, named_splits
from deit.data.datasets.shards import is_packed, packed_splits
from deit.data.splits import VALIDATION_FRACTION, DatasetSplits, Splits, make_splits, without_labels
from deit.errors import DataError, did_you_mean


def read_splits(data: str | Path, known_classes: Sequence[str] = ()) -> DatasetSplits:
    """Reads the splits that a data set comes with, whether it can be trained on or not.

    Args:
        data: as in :func:`open_data`.
        known_classes: classes of the model that the data is for, if any, which tell a folder of one class from a folder that
            holds a data set.

    Raises:
        DataError: as in :func:`open_data`, but for data that cannot be trained on: see :attr:`DatasetSplits.obstacle`.
        MissingExtraError: as in :func:`open_data`.
    """
    text, path = str(data), Path(data)
    if text == DIGITS:
        return digits_splits()
    if reference := named_reference(text):
        return named_splits(reference)
    if text.startswith(PREFIX):
        return hub_splits(text)
    if is_packed(text):
        return packed_splits(text)
    if is_manifest(path):
        return manifest_splits(path)
    if is_saved(path):
        return saved_splits(path)
    if is_parquet(path):
        return parquet_splits(path)
    _check_name(path)
    return metadata_splits(path) or folder_splits(path, known_classes)


def open_data(data: str | Path, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION) -> Splits:
    """Opens a data set for training.

    Args:
        data: a folder (``train/CLASS/image`` and ``val/CLASS/image``, or ``CLASS/image``, which is split by the seed); a
            manifest, ``.csv``, ``.tsv`` or ``.jsonl``; a packed data set (:mod:`deit.data.datasets.shards`), also at an
            address such as ``s3://bucket/photos``; Parquet files with a column of images; a directory that Hugging Face's
            ``save_to_disk`` wrote;
            ``hf:owner/name`` on the hub; ``digits``; or a name in :data:`NAMED`, with ``:FOLDER`` appended if it is not in
            ``$DEIT_DATA``.
        seed: seed of the split, if a split is missing.
        validation_fraction: fraction of each class that is set aside if the validation split is missing and the data set does
            not define one.

    Raises:
        DataError: there is no such data set, it has no images, one class or an empty class, or a class is in one split only.
        MissingExtraError: it is a Hugging Face data set and the library is not installed.
    """
    dataset = read_splits(data)
    if dataset.obstacle is not None:
        raise dataset.obstacle
    return make_splits(dataset, seed, validation_fraction)


def open_unlabeled(data: str | Path, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION) -> Splits:
    """Opens a data set for training without labels: a training and a validation split with a single class.

    Args:
        data: any data set of :func:`open_data`, whose labels are ignored; or a folder of images at any depth, a manifest or a
            table without labels.
        seed: as in :func:`open_data`.
        validation_fraction: as in :func:`open_data`.

    Raises:
        DataError: as in :func:`open_data`, or there are fewer than two images.
    """
    text, path = str(data), Path(data)
    if text == DIGITS or named_reference(text):
        return without_labels(open_data(data, seed, validation_fraction))
    if text.startswith(PREFIX):
        dataset = DatasetSplits(hub_unlabeled(text), unsplit=True)
    elif is_packed(text):
        return without_labels(make_splits(packed_splits(text), seed, validation_fraction))
    elif is_manifest(path):
        dataset = unlabeled_manifest(path)
    elif is_saved(path):
        dataset = DatasetSplits(saved_unlabeled(path), unsplit=True)
    elif is_parquet(path):
        dataset = DatasetSplits(parquet_unlabeled(path), unsplit=True)
    else:
        _check_name(path)
        dataset = unlabeled_splits(path)
    return make_splits(dataset, seed, validation_fraction)


def absolute_name(data: str | Path) -> str:
    """Returns a name of a data set that is valid in any working directory: an absolute path, or the name unchanged."""
    text = str(data)
    if text == DIGITS or text.startswith(PREFIX):
        return text
    if reference := named_reference(text):
        return f"{reference.name}:{reference.root.resolve()}" if ":" in text else text
    return str(Path(data).resolve()) if Path(data).exists() else text


def short_name(data: str | Path) -> str:
    """Returns a short name of a data set, for directories and headings: ``photos`` for ``/data/photos`` or ``photos.csv``."""
    text = str(data)
    if reference := named_reference(text):
        return reference.name
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX).partition(":")[0].partition("@")[0].rpartition("/")[2]
    path = Path(data)
    return path.stem if is_manifest(path) else path.name


def _check_name(path: Path) -> None:
    """Checks that a folder exists, and suggests a data set of a similar name otherwise."""
    if path.is_dir():
        return
    suggestion = did_you_mean(str(path).partition(":")[0], [DIGITS, *NAMED], cutoff=0.75)
    remedy = suggestion or "pass a folder, a manifest, hf:owner/name, or a name from `deit data list`"
    raise DataError(f"{path} is not a folder", remedy)
