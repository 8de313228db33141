"""Finds the unreadable images of a data set, before training starts or on request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from deit.data.sources import ImageSource, check_image, subset
from deit.data.splits import Splits
from deit.errors import DataError, ImageError
from deit.system.progress import Progress

MAX_HEADER_CHECKS = 50_000  # larger splits are checked only by `deit data check`, not before every training


def check_images(source: ImageSource, decode: bool) -> dict[int, ImageError]:
    """Checks every image of a source.

    Args:
        source: the images.
        decode: decode the images; otherwise only their headers are read.

    Returns:
        index -> error, for each unreadable image.
    """

    def find_error(index: int) -> ImageError | None:
        try:
            if decode:
                source.load(index)
            else:
                check_image(source, index)
        except ImageError as error:
            return error
        return None

    errors = {}
    with Progress("Checking images", len(source.labels)) as progress, ThreadPoolExecutor() as pool:
        for index, error in enumerate(pool.map(find_error, range(len(source.labels)))):
            if error is not None:
                errors[index] = error
            progress.advance(1)
    return errors


def without_unreadable(splits: Splits, skip: bool) -> tuple[Splits, int]:
    """Checks the header of every file before training starts.

    Args:
        splits: the data set.
        skip: leave out unreadable files and count them, instead of raising an error.

    Returns:
        The splits without unreadable images, and the number of images left out.

    Raises:
        ImageError: a file is unreadable, unless ``skip``.
        DataError: a split, or a class of the training split, has no readable image.
    """
    sources = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    skipped = 0
    for name, source in sources.items():
        if source is None or len(source.labels) > MAX_HEADER_CHECKS:
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
    return replace(splits, train=train, validation=validation, test=sources["test"]), skipped


def _check_classes(source: ImageSource) -> None:
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if not counts.all():
        name = source.classes[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(f"No readable image of the class {name!r} is left for training", "add images or remove the class")
