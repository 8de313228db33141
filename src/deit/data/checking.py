"""Checks a data set: finds its unreadable images, before training starts or on request, and counts what it has."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deit.data.datasets.named import named_reference
from deit.data.file_info import UNREADABLE, file_info
from deit.data.image_hashes import content_hashes
from deit.data.opening import read_splits
from deit.data.sources import ImageSource, WithContent, check_image, image_content, subset
from deit.data.splits import VALIDATION_FRACTION, DatasetSplits, Splits, make_splits
from deit.data.value_range import find_value_range, range_notes, splits_with_value_range, with_value_range
from deit.errors import DataError, ImageError, ImageTooLargeError
from deit.images.decoding import has_more_frames
from deit.images.listing import LeftOut, OtherKind, examples
from deit.system.hardware import cores
from deit.system.progress import Progress
from deit.system.threads import ordered_map

IMAGES_PER_TASK = 16


@dataclass(frozen=True)
class Copies:
    """Images whose files are equal, each pair as "a.jpg and b.jpg".

    Attributes:
        in_two_classes: labels contradict each other.
        in_two_splits: the accuracy on one split is measured on images of another.
        repeated: in one class of one split.
    """

    in_two_classes: list[str]
    in_two_splits: list[str]
    repeated: list[str]

    def notes(self) -> list[str]:
        """Returns a remark on each kind of copies that there is."""
        texts = {
            "Equal images in two classes, which contradict each other": self.in_two_classes,
            "Equal images in two splits": self.in_two_splits,
            "Equal images within a class": self.repeated,
        }
        return [f"{text}: {len(pairs):,} ({examples(pairs)})" for text, pairs in texts.items() if pairs]


@dataclass(frozen=True)
class DataCheck:
    """What a data set has.

    Attributes:
        origin: where its splits come from.
        sources: the images by split.
        damaged: a message for each image that cannot be decoded.
        too_large: a message for each image above the limits of pixels, memory or time.
        notes: remarks on how the data was read.
        left_out: what is beside the images and not read.
        copies: images whose files are equal.
        animations: images with several frames or pages, of which the first is used.
        obstacle: why it cannot be trained on, if so.
    """

    origin: str
    sources: dict[str, ImageSource]
    damaged: list[str]
    too_large: list[str]
    notes: tuple[str, ...]
    left_out: LeftOut
    copies: Copies
    animations: list[str]
    obstacle: str = ""

    @property
    def complete(self) -> bool:
        """Whether every image and folder can be read."""
        unopened = {OtherKind.DENIED, OtherKind.DENIED_FILE} & set(self.left_out.counts)
        return not (self.damaged or self.too_large or unopened)

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Number of images: class -> split -> count."""
        counts = {split: np.bincount(source.labels, minlength=len(source.classes)) for split, source in self.sources.items()}
        names = next(iter(self.sources.values())).classes
        return {name: {split: int(count[label]) for split, count in counts.items()} for label, name in enumerate(names)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "origin": self.origin,
            "classes": self.class_counts,
            "unreadable": self.damaged,
            "too_large": self.too_large,
            "not_read": [
                {"kind": kind.value, "count": count, "examples": self.left_out.examples[kind]}
                for kind, count in self.left_out.counts.items()
            ],
            "copies": asdict(self.copies),
            "animations": self.animations,
            "notes": list(self.notes),
            "trainable": not self.obstacle,
            "obstacle": self.obstacle,
        }


def check_data(data: str | Path) -> DataCheck:
    """Decodes every image of a data set, whether it can be trained on or not.

    Args:
        data: a data set, as :func:`deit.data.opening.open_data` takes it, or one for evaluation only.

    Raises:
        DataError: there is no such data set, or it has no images.
    """
    reference = named_reference(str(data))
    if reference is not None and reference.data.read is None and reference.data.evaluate is not None:
        dataset = DatasetSplits(None, test=reference.data.evaluate(reference.root))
        origin, obstacle = f"{reference.name} is for evaluation only", "it is for evaluation only"
        sources = dataset.sources
    else:
        dataset = read_splits(data)
        origin, sources, obstacle = _split(dataset)
    hashes = {split: content_hashes(source, fresh=True) for split, source in sources.items()}
    value_range = find_value_range(next(iter(sources.values())))
    errors: list[ImageError] = []
    for split, source in sources.items():
        unreadable = check_images(with_value_range(source, value_range), decode=True)
        errors += unreadable.values()
        hashes[split][list(unreadable)] = UNREADABLE
    return DataCheck(
        origin=origin,
        sources=sources,
        damaged=[str(error) for error in errors if not isinstance(error, ImageTooLargeError)],
        too_large=[str(error) for error in errors if isinstance(error, ImageTooLargeError)],
        notes=(*dataset.notes, *range_notes(value_range)),
        left_out=dataset.left_out,
        copies=_find_copies(sources, hashes),
        animations=[source.name(index) for source in sources.values() for index in _find_animations(source)],
        obstacle=obstacle,
    )


def _find_animations(source: ImageSource) -> list[int]:
    """Returns the indices of the images with several frames or pages."""

    def has_frames(index: int) -> bool:
        try:
            return isinstance(source, WithContent) and has_more_frames(image_content(source, index))
        except ImageError:
            return False

    with Progress("Looking for animations", len(source.labels)) as progress, ThreadPoolExecutor() as pool:
        found = []
        for index, several in enumerate(pool.map(has_frames, range(len(source.labels)))):
            if several:
                found.append(index)
            progress.advance(1)
    return found


def _find_copies(sources: Mapping[str, ImageSource], hashes: Mapping[str, np.ndarray]) -> Copies:
    """Groups equal files, and counts those that are in two classes, in two splits, or repeated in one place."""
    first: dict[int, tuple[str, int]] = {}
    pairs: dict[str, list[str]] = {"classes": [], "splits": [], "same": []}
    for split, source in sources.items():
        for index, value in enumerate(hashes[split].tolist()):
            if value == UNREADABLE:
                continue
            earlier_split, earlier = first.setdefault(value, (split, index))
            if (earlier_split, earlier) == (split, index):
                continue
            other = sources[earlier_split]
            is_other_class = other.classes[other.labels[earlier]] != source.classes[source.labels[index]]
            kind = "classes" if is_other_class else "splits" if split != earlier_split else "same"
            pairs[kind].append(f"{other.name(earlier)} and {source.name(index)}")
    return Copies(pairs["classes"], pairs["splits"], pairs["same"])


def _split(dataset: DatasetSplits) -> tuple[str, dict[str, ImageSource], str]:
    """Returns the origin and the splits as training would use them, or as they come, and why they cannot be trained on."""
    try:
        if dataset.obstacle is not None:
            raise dataset.obstacle
        splits = make_splits(dataset, 0, VALIDATION_FRACTION)
    except DataError as error:
        return dataset.origin or "no splits", dataset.sources, str(error)
    sources = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return splits.origin, {name: source for name, source in sources.items() if source is not None}, ""


def check_images(source: ImageSource, decode: bool) -> dict[int, ImageError]:
    """Checks every image of a source.

    Args:
        source: the images.
        decode: decode the images; otherwise only their headers are checked, and those of unchanged files are not read again
            (:mod:`deit.data.file_info`).

    Returns:
        index -> error, for each unreadable image.
    """
    if not decode and (info := file_info(source)) is not None:
        return info.errors

    def find_error(index: int) -> ImageError | None:
        try:
            if decode:
                source.load(index)
            else:
                check_image(source, index)
        except ImageError as error:
            return error
        return None

    def find_some(start: int) -> list[ImageError | None]:
        return [find_error(index) for index in range(start, min(start + IMAGES_PER_TASK, total))]

    total = len(source.labels)
    found: list[ImageError | None] = []
    with Progress("Checking images", total) as progress:
        for block in ordered_map(find_some, range(0, total, IMAGES_PER_TASK), cores()):
            found += block
            progress.advance(len(block))
    return {index: error for index, error in enumerate(found) if error is not None}


def without_unreadable(splits: Splits, skip: bool) -> tuple[Splits, int]:
    """Checks the header of every file before training starts.

    Args:
        splits: the data set.
        skip: leave out unreadable files and count them, instead of raising an error.

    Returns:
        The splits without unreadable images, with the range of values of those of more than 8 bits, and the number of images
        left out.

    Raises:
        ImageError: a file is unreadable, unless ``skip``.
        DataError: a split, or a class of the training split, has no readable image.
    """
    sources = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    skipped = 0
    for name, source in sources.items():
        if source is None:
            continue
        errors = check_images(source, decode=False)
        if errors and not skip:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            first = next(iter(errors.values())).problem
            raise ImageError(f"{first}{more}", "replace or remove it, or pass --skip-unreadable to leave such files out")
        if errors:
            sources[name] = subset(source, (i for i in range(len(source.labels)) if i not in errors))
            skipped += len(errors)
    for name, source in sources.items():
        if source is not None and not len(source.labels):
            raise DataError(f"No readable image of the {name} split is left", "replace the unreadable files")
    train, validation = sources["train"], sources["validation"]
    assert train is not None
    assert validation is not None
    _check_classes(train)
    readable = replace(splits, train=train, validation=validation, test=sources["test"])
    return splits_with_value_range(readable), skipped


def _check_classes(source: ImageSource) -> None:
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if not counts.all():
        name = source.classes[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(f"No readable image of the class {name!r} is left for training", "add images or remove the class")
