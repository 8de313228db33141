"""Any data set by what a person calls it: a folder, a manifest, a saved table, a name."""

from __future__ import annotations

import difflib
from pathlib import Path

from deit.data.datasets.folders import folder_parts, has_part_folders, unlabeled_source
from deit.data.datasets.hub_datasets import PREFIX, hub_parts, hub_unlabeled, is_saved, saved_parts, saved_unlabeled
from deit.data.datasets.manifest import is_manifest, manifest_parts, unlabeled_manifest
from deit.data.datasets.named import DIGITS, NAMED, digits_parts, named_parts, named_reference
from deit.data.sources import ImageSource
from deit.data.splits import VALIDATION_FRACTION, DatasetSplits, Splits, make_splits, without_labels
from deit.errors import DataError


def read_splits(data: str | Path) -> DatasetSplits:
    """A data set as it comes; see :func:`open_data`.

    Raises:
        DataError: as :func:`open_data`.
    """
    text, path = str(data), Path(data)
    if text == DIGITS:
        return digits_parts()
    if reference := named_reference(text):
        return named_parts(reference)
    if text.startswith(PREFIX):
        return hub_parts(text)
    if is_manifest(path):
        return manifest_parts(path)
    if is_saved(path):
        return saved_parts(path)
    _check_name(path)
    return folder_parts(path)


def open_data(data: str | Path, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION) -> Splits:
    """A data set for training, by its folder or name.

    Args:
        data: a folder (``train/CLASS/image`` and ``val/CLASS/image``, or ``CLASS/image``, of which a part of each class is set
            aside by the seed); a manifest, ``.csv`` or ``.jsonl``; a folder that ``save_to_disk`` of Hugging Face wrote;
            ``hf:owner/name`` on its hub; ``digits``; or a name of :data:`NAMED`, with ``:FOLDER`` behind it where it lies
            elsewhere than in ``$DEIT_DATA``.
        seed: of the split, where one has to be made.
        validation_fraction: share of each class that is set aside, where it has to be and the data set itself does not say
            how much.

    Raises:
        DataError: nothing of this name, no images, one class, an empty class, or a class that only one part has.
        MissingExtraError: a data set of Hugging Face, whose library is not installed.
    """
    return make_splits(read_splits(data), seed, validation_fraction)


def open_unlabeled(data: str | Path, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION) -> Splits:
    """Images to learn from without labels: training and validation part of a single class.

    Args:
        data: as for :func:`open_data`, whose training and validation part are taken and whose labels are not looked at; or a
            folder of images at any depth, a manifest without labels, or a table without them.
        seed: of the split, where one has to be made.
        validation_fraction: as for :func:`open_data`.

    Raises:
        DataError: as :func:`open_data`, or fewer than two images.
    """
    text, path = str(data), Path(data)
    source: ImageSource
    if text == DIGITS or named_reference(text):
        return without_labels(open_data(data, seed, validation_fraction))
    if text.startswith(PREFIX):
        source = hub_unlabeled(text)
    elif is_manifest(path):
        source = unlabeled_manifest(path)
    elif is_saved(path):
        source = saved_unlabeled(path)
    elif has_part_folders(path):
        return without_labels(open_data(path, seed, validation_fraction))
    else:
        _check_name(path)
        source = unlabeled_source(path)
    return make_splits(DatasetSplits(source, plain=True), seed, validation_fraction)


def lasting(data: str | Path) -> str:
    """The name of a data set as it is found from any folder: a path in full, a name as it is."""
    text = str(data)
    if text == DIGITS or text.startswith(PREFIX):
        return text
    if reference := named_reference(text):
        return f"{reference.name}:{reference.root.resolve()}" if ":" in text else text
    return str(Path(data).resolve()) if Path(data).exists() else text


def title(data: str | Path) -> str:
    """A word for a data set, for a folder's name or a heading: ``photos`` of ``/home/me/photos`` or ``photos.csv``."""
    text = str(data)
    if reference := named_reference(text):
        return reference.name
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX).partition(":")[0].partition("@")[0].rpartition("/")[2]
    path = Path(data)
    return path.stem if is_manifest(path) else path.name


def _check_name(path: Path) -> None:
    """Whether there is such a folder; where there is none, perhaps a name is meant."""
    if path.is_dir():
        return
    known = [DIGITS, *NAMED]
    near = difflib.get_close_matches(str(path).partition(":")[0], known, n=1, cutoff=0.75)
    remedy = f"did you mean {near[0]}" if near else "pass a folder, a manifest, hf:owner/name, or a name of `deit data list`"
    raise DataError(f"{path} is no folder", remedy)
