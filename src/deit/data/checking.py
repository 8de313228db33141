"""Which images of a data set are unreadable, found before training starts or on request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from deit.data.sources import ImageSource, check_one, subset
from deit.data.splits import Splits
from deit.errors import DataError, ImageError
from deit.system.progress import Progress

HEADERS_CHECKED = 50_000  # a larger data set is checked by `deit data check`, not before each training


def check_images(source: ImageSource, whole: bool) -> dict[int, ImageError]:
    """Try every image of a source.

    Args:
        whole: decode every pixel; otherwise look at the files' headers alone.

    Returns:
        index -> what is wrong with it, for each unreadable image.
    """

    def problem(index: int) -> ImageError | None:
        try:
            if whole:
                source.load(index)
            else:
                check_one(source, index)
        except ImageError as error:
            return error
        return None

    problems = {}
    with Progress("Checking images", len(source.labels)) as progress, ThreadPoolExecutor() as pool:
        for index, error in enumerate(pool.map(problem, range(len(source.labels)))):
            if error is not None:
                problems[index] = error
            progress.advance(1)
    return problems


def without_unreadable(splits: Splits, skip: bool) -> tuple[Splits, int]:
    """Look at every file's header before training starts.

    Args:
        skip: leave unreadable files out and count them, instead of an error.

    Returns:
        The splits without them, and how many were left out.

    Raises:
        ImageError: an unreadable file, unless ``skip``.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    skipped = 0
    for name, source in parts.items():
        if source is None or len(source.labels) > HEADERS_CHECKED:
            continue
        problems = check_images(source, whole=False)
        if problems and not skip:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            first = next(iter(problems.values())).problem
            raise ImageError(f"{first}{more}", "replace or remove it, or pass --skip-unreadable to leave such files out")
        if problems:
            parts[name] = subset(source, (i for i in range(len(source.labels)) if i not in problems))
            skipped += len(problems)
    for name, source in parts.items():
        if source is not None and not len(source.labels):
            raise DataError(f"No readable image of the {name} part is left", "replace the unreadable files")
    train, validation = parts["train"], parts["validation"]
    assert train is not None
    assert validation is not None
    _check_filled(train)
    return replace(splits, train=train, validation=validation, test=parts["test"]), skipped


def _check_filled(source: ImageSource) -> None:
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if not counts.all():
        name = source.classes[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(f"No readable image of the class {name!r} is left for training", "add images or remove the class")
