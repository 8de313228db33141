"""Training, validation and test splits: as a data set comes, and as training uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deit.data.sources import ImageSource, Subset, fingerprint, subset, unlabeled
from deit.errors import CheckpointError, DataError
from deit.rng import RngStream, generator
from deit.system.files import RECORD_NAME, read_json

VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class DatasetSplits:
    """A data set as it comes, before anything is set aside.

    Attributes:
        train: all of it where it has no parts.
        validation: None where it has no such part; likewise ``test``.
        plain: one pile of labeled images, which may be evaluated as a whole.
        origin: what the parts are, for the user; empty for a plain one.
        shares: of ``train``, to be set aside for other parts, by their names; where there are none and validation is missing,
            the user's own share is.
    """

    train: ImageSource
    validation: ImageSource | None = None
    test: ImageSource | None = None
    plain: bool = False
    origin: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Splits:
    """A data set as training uses it.

    Attributes:
        train: what is learned from.
        validation: what checkpoints are chosen by.
        test: what the report is about; None where the data set has no third part.
        origin: one sentence on how the parts came about, for the user.
        fingerprint: of the whole data set, see :func:`fingerprint`.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    origin: str
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.train.classes

    @property
    def held_out(self) -> tuple[str, ImageSource]:
        """The part that was least looked at, and its name."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


@dataclass(frozen=True)
class DataRecord:
    """What a saved model remembers of its data, so that it is never evaluated on images it learned from by mistake.

    Attributes:
        fingerprint: of the whole data set.
        split_seed: by which a missing part was set aside.
        validation_fraction: how much of each class that was.
    """

    fingerprint: str
    split_seed: int
    validation_fraction: float

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DataRecord:
        """Read it from JSON.

        Raises:
            CheckpointError: a value is missing or garbled.
        """
        try:
            return cls(str(content["fingerprint"]), int(content["split_seed"]), float(content["validation_fraction"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{RECORD_NAME} lacks or garbles {error}", "remove it or train again") from error


def read_record(model: Path) -> DataRecord | None:
    """What stands beside a model, a directory or a file, of the data it learned from; None where nothing does."""
    path = (model if model.is_dir() else model.parent) / RECORD_NAME
    return DataRecord.from_dict(read_json(path)) if path.is_file() else None


def split(source: ImageSource, seed: int, fractions: Sequence[float]) -> list[Subset]:
    """Cut a source into parts with the same share of each class; the last part gets the rest.

    A class with at least as many images as there are parts has one in each.
    """
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    order = np.argsort(source.labels, kind="stable")
    ends = np.cumsum(np.bincount(source.labels, minlength=len(source.classes)))
    for label, own in enumerate(np.split(order, ends[:-1])):
        own = own[generator(seed, RngStream.SPLIT, index=label).permutation(len(own))]
        start = 0
        for part, fraction in enumerate(fractions):
            most = len(own) - start - (len(fractions) - part)  # one is left for each part to come
            count = min(max(round(fraction * len(own)), 1), most) if len(own) > len(fractions) else 0
            parts[part].extend(own[start : start + count].tolist())
            start += count
        parts[-1].extend(own[start:].tolist())
    return [subset(source, sorted(part)) for part in parts]


def make_splits(parts: DatasetSplits, seed: int, fraction: float) -> Splits:
    """A data set for training: what it lacks is set aside from its training part.

    Args:
        seed: of the split, where one has to be made.
        fraction: share of each class that is set aside for validation, where the data set does not say so itself.

    Raises:
        DataError: no class has two images, so that nothing can be set aside.
    """
    mark = fingerprint(*(part for part in (parts.train, parts.validation, parts.test) if part is not None))
    if parts.validation is not None:
        return Splits(parts.train, parts.validation, parts.test, parts.origin, mark)
    shares = dict(parts.shares) or {"validation": fraction}
    *aside, train = split(parts.train, seed, tuple(shares.values()))
    found = dict(zip(shares, aside, strict=True))
    if not all(len(part.labels) for part in aside):
        raise DataError("The data has one image a class", "a part of each class must be left for validation")
    if list(shares) == ["validation"]:
        text = f"no validation part: {shares['validation']:.0%} of each class set aside by seed {seed}"
    else:
        each = " and ".join(f"{share:.0%} for {name}" for name, share in shares.items())
        text = f"of each class {each} set aside by seed {seed}"
    origin = f"{parts.origin}; {text}" if parts.origin else text
    return Splits(train, found["validation"], found.get("test", parts.test), origin, mark)


def without_labels(splits: Splits) -> Splits:
    """Training and validation part with a single class; a test part stays unseen."""
    train, validation = unlabeled(splits.train), unlabeled(splits.validation)
    return replace(splits, train=train, validation=validation, test=None, fingerprint=fingerprint(train, validation))
