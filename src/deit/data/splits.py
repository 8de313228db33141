"""Training, validation and test splits: as a data set comes, and as training uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deit.data.sources import ImageSource, Subset, fingerprint, subset, unlabeled
from deit.errors import CheckpointError, DataError
from deit.images.conversion import ValueRange
from deit.images.listing import LeftOut
from deit.rng import RngStream, generator
from deit.system.files import RECORD_NAME, read_json

if TYPE_CHECKING:
    from deit.data.image_cache import ImageCache

VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class DatasetSplits:
    """The splits that a data set comes with.

    Attributes:
        train_or_none: the training split, or all images if there are no splits; None if there are only other splits.
        validation: the validation split, if any.
        test: the test split, if any.
        unsplit: the data set has no splits and may be evaluated as a whole.
        origin: where the splits come from, for the user; empty if unsplit.
        holdout: fractions of the training split that the data set itself sets aside, by split; if empty and there is no
            validation split, the user's fraction is set aside.
        notes: remarks on how the data was read, for the user.
        left_out: what is beside the images and not read.
        obstacle: the error that training on the data raises; None if it can be trained on.
    """

    train_or_none: ImageSource | None
    validation: ImageSource | None = None
    test: ImageSource | None = None
    unsplit: bool = False
    origin: str = ""
    holdout: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    obstacle: DataError | None = None

    @property
    def train(self) -> ImageSource:
        """The training split, or all images if there are no splits.

        Raises:
            DataError: there are only other splits.
        """
        if self.train_or_none is None:
            raise self.obstacle or DataError("The data set has no training split", "evaluate on --split validation or test")
        return self.train_or_none

    @property
    def sources(self) -> dict[str, ImageSource]:
        """The splits that exist, by name."""
        splits = {"train": self.train_or_none, "validation": self.validation, "test": self.test}
        return {name: source for name, source in splits.items() if source is not None}

    @property
    def all_notes(self) -> list[str]:
        """Remarks for the user, including one on what is not read."""
        return all_notes(self.notes, self.left_out)


@dataclass(frozen=True)
class Splits:
    """The splits that training uses.

    Attributes:
        train: for training.
        validation: for selecting checkpoints.
        test: for the report; None if the data set has no test split.
        origin: where the splits come from, one sentence for the user.
        fingerprint: fingerprint of the whole data set, see :func:`deit.data.sources.fingerprint`.
        notes: remarks on how the data was read, for the user.
        left_out: what is beside the images and not read.
        value_range: black and white of images with more than 8 bits; None if there are none.
        train_cache: decoded training images; None decodes every image anew.
        validation_cache: the same of the validation split.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    origin: str
    fingerprint: str
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    value_range: ValueRange | None = None
    train_cache: ImageCache | None = None
    validation_cache: ImageCache | None = None

    @property
    def all_notes(self) -> list[str]:
        """Remarks for the user, including one on what is not read."""
        return all_notes(self.notes, self.left_out)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.train.classes

    @property
    def held_out(self) -> tuple[str, ImageSource]:
        """Name and images of the split to report on: test, or validation if there is none."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


@dataclass(frozen=True)
class DataRecord:
    """What a saved model records about its data, so that it is not evaluated on its training images by mistake.

    Attributes:
        fingerprint: fingerprint of the whole data set.
        split_seed: seed by which a missing split was set aside.
        validation_fraction: fraction of each class that was set aside.
    """

    fingerprint: str
    split_seed: int
    validation_fraction: float

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DataRecord:
        """Reads the record from JSON.

        Raises:
            CheckpointError: a value is missing or invalid.
        """
        try:
            return cls(str(content["fingerprint"]), int(content["split_seed"]), float(content["validation_fraction"]))
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{RECORD_NAME} has a missing or invalid value: {error}", "remove it or train again"
            ) from error


def all_notes(notes: Sequence[str], left_out: LeftOut) -> list[str]:
    """Returns remarks on a data set, and one on what is not read, if anything."""
    found = left_out.describe()
    return [*notes, f"Not read: {found}"] if found else list(notes)


def read_record(model: Path) -> DataRecord | None:
    """Reads the record next to a model directory or file; returns None if there is none."""
    path = (model if model.is_dir() else model.parent) / RECORD_NAME
    return DataRecord.from_dict(read_json(path)) if path.is_file() else None


def stratified_split(source: ImageSource, seed: int, fractions: Sequence[float]) -> list[Subset]:
    """Splits a source into subsets with the given fractions of every class, and the rest.

    A class with at least as many images as there are subsets has at least one image in each.
    """
    subsets: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    order = np.argsort(source.labels, kind="stable")
    ends = np.cumsum(np.bincount(source.labels, minlength=len(source.classes)))
    for label, in_order in enumerate(np.split(order, ends[:-1])):
        indices = in_order[generator(seed, RngStream.SPLIT, index=label).permutation(len(in_order))]
        start = 0
        for position, fraction in enumerate(fractions):
            limit = len(indices) - start - (len(fractions) - position)  # leaves one image for each further subset
            count = min(max(round(fraction * len(indices)), 1), limit) if len(indices) > len(fractions) else 0
            subsets[position].extend(indices[start : start + count].tolist())
            start += count
        subsets[-1].extend(indices[start:].tolist())
    return [subset(source, sorted(rows)) for rows in subsets]


def make_splits(dataset: DatasetSplits, seed: int, fraction: float) -> Splits:
    """Makes the splits for training: missing ones are set aside from the training split.

    Args:
        dataset: the splits that the data set comes with.
        seed: seed of the split, if one is missing.
        fraction: fraction of each class that is set aside for validation, unless the data set defines its own.

    Raises:
        DataError: there is no training split, or no class has two images, so that nothing can be set aside.
    """
    train_images = dataset.train
    dataset_fingerprint = fingerprint(*dataset.sources.values())
    remarks = (dataset.notes, dataset.left_out)
    if dataset.validation is not None:
        return Splits(train_images, dataset.validation, dataset.test, dataset.origin, dataset_fingerprint, *remarks)
    holdout = dict(dataset.holdout) or {"validation": fraction}
    *held_out, train = stratified_split(train_images, seed, tuple(holdout.values()))
    if not all(len(source.labels) for source in held_out):
        raise DataError("The data has one image per class", "each class needs an image for validation, too")
    if list(holdout) == ["validation"]:
        text = f"no validation split: {holdout['validation']:.0%} of each class set aside by seed {seed}"
    else:
        fractions = " and ".join(f"{share:.0%} for {name}" for name, share in holdout.items())
        text = f"{fractions} set aside from each class by seed {seed}"
    origin = f"{dataset.origin}; {text}" if dataset.origin else text
    splits = dict(zip(holdout, held_out, strict=True))
    return Splits(train, splits["validation"], splits.get("test", dataset.test), origin, dataset_fingerprint, *remarks)


def without_labels(splits: Splits) -> Splits:
    """Returns the training and validation splits with a single class, and without a test split."""
    train, validation = unlabeled(splits.train), unlabeled(splits.validation)
    return replace(splits, train=train, validation=validation, test=None, fingerprint=fingerprint(train, validation))
