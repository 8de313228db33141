"""Matches class names of data sets and models, and knows the names of ImageNet's classes.

ImageNet's folders are named by WordNet ID (``n01440764``), published models have descriptions (``tench, Tinca tinca``) or no
names; all share the same order. Two of the 1,000 descriptions are equal: ``crane``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np

from deit.errors import DataError
from deit.system.files import MAX_JSON_BYTES, json_text

IMAGENET_CLASSES = 1000
BY_ORDER = "--match-classes order of deit evaluate, --teacher-classes order of deit train and deit teacher cache"
Matching = Literal["name", "order"]
_PLACEHOLDER = re.compile(r"(?:label|class)?[ _-]?([0-9]{1,7})", re.ASCII | re.IGNORECASE)
BYTES_PER_CLASS = 40  # in JSON, besides the name
MAX_JSON_SHARE = 0.75  # of the largest JSON file, for the class names; the rest of evaluation.json takes at most 3 MB
MIN_MATCHES = 0.9  # of the descriptions, since their spelling differs slightly between publishers


def check_class_names(classes: Sequence[str]) -> None:
    """Checks that the files of a model and its evaluation, which hold each name twice, are not larger than can be read.

    Raises:
        DataError: the names are too many or too long.
    """
    size = 2 * len(json_text(list(classes)).encode()) + BYTES_PER_CLASS * len(classes)
    if size > MAX_JSON_SHARE * MAX_JSON_BYTES:
        raise DataError(
            f"The names of the {len(classes):,} classes take {size / 2**20:.0f} MiB in the files of a model",
            f"the limit is {MAX_JSON_SHARE * MAX_JSON_BYTES / 2**20:.0f} MiB; shorten them",
        )


@lru_cache(maxsize=1)
def imagenet_ids() -> tuple[str, ...]:
    """Returns the WordNet IDs of ImageNet's 1,000 classes, in the order of the logits of all published models."""
    return _lines("imagenet_synsets.txt")


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """Returns the descriptions of ImageNet's classes, with the WordNet ID appended to those that are not unique."""
    from timm.data.imagenet_info import ImageNetInfo

    names = list(ImageNetInfo().label_descriptions())
    return tuple(
        name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, imagenet_ids(), strict=True)
    )


def imagenet_subset(letter: str) -> tuple[int, ...]:
    """Returns the 200 class indices of ImageNet-A (``a``) or ImageNet-R (``r``), as their authors list them."""
    indices = {wnid: index for index, wnid in enumerate(imagenet_ids())}
    return tuple(indices[wnid] for wnid in _lines(f"imagenet_{letter}_synsets.txt"))


def reassessed_labels() -> list[list[int]]:
    """Returns the ReaL labels (Beyer et al., arXiv 2006.07159).

    Returns:
        All correct classes of each of the 50,000 validation images; some images have none.
    """
    content: list[list[int]] = json.loads(_info("imagenet_real_labels.json"))
    return content


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether a model's classes are the 1,000 of ImageNet in their order, under any of their names."""
    if len(classes) != IMAGENET_CLASSES:
        return False
    numbered = (tuple(map(str, range(IMAGENET_CLASSES))), placeholder_names(IMAGENET_CLASSES))
    if tuple(classes) in (*numbered, imagenet_ids()):
        return True
    matches = sum(_first_synonym(a) == _first_synonym(b) for a, b in zip(classes, imagenet_names(), strict=True))
    return matches >= MIN_MATCHES * IMAGENET_CLASSES


def placeholder_names(count: int) -> tuple[str, ...]:
    """Returns the names of classes that have none, as transformers writes them: ``LABEL_0``, ``LABEL_1``, ..."""
    return tuple(f"LABEL_{index}" for index in range(count))


def are_placeholders(classes: Sequence[str]) -> bool:
    """Whether class names only number the classes from 0 or 1: ``LABEL_0``, ``class 1``, ``2``."""
    numbers = [_PLACEHOLDER.fullmatch(name) for name in classes]
    return bool(numbers) and any(
        all(match is not None and int(match[1]) == index for index, match in enumerate(numbers, start)) for start in (0, 1)
    )


def class_indices(names: Sequence[str], model_classes: Sequence[str], match: Matching = "name") -> np.ndarray:
    """Returns the index of each name among a model's classes.

    Args:
        names: class names of a data set.
        model_classes: class names of a model.
        match: ``name`` matches by name, also without regard to case where that is unique; if the model has ImageNet's classes,
            WordNet IDs and descriptions match as well. ``order`` matches the first class with the first, and so on, for a model
            without class names.

    Returns:
        (len(names),) int64.

    Raises:
        DataError: the model lacks a class, several of its classes have the same name, or, by order, it has another number of
            classes or some of the names in another order.
    """
    if match == "order":
        return _indices_by_order(names, model_classes)
    if tuple(names) == tuple(model_classes):
        return np.arange(len(model_classes))
    if is_imagenet(model_classes):
        imagenet = {**_index(imagenet_names()), **_index(imagenet_ids())}
        if all(name in imagenet for name in names):
            return np.asarray([imagenet[name] for name in names], np.int64)
    counts = Counter(model_classes)
    if ambiguous := [name for name in names if counts[name] > 1]:
        raise DataError(f"The model has several classes named {ambiguous[0]!r}", "give its classes unique names: id2label")
    lookup = ClassLookup(model_classes)
    indices = [lookup.find(name) for name in names]
    missing = [name for name, index in zip(names, indices, strict=True) if index is None]
    if missing and len(names) == len(model_classes) and are_placeholders(model_classes):
        raise DataError(
            f"The model's classes have no names, only {model_classes[0]!r} to {model_classes[-1]!r}",
            f"if they are in the order of the data's, {names[0]!r} to {names[-1]!r}, request it: {BY_ORDER}",
        )
    if missing:
        raise DataError(
            f"The data has {len(missing)} classes that the model does not have, such as {missing[0]!r}",
            "evaluate it on data with the classes it was trained on",
        )
    return np.asarray(indices, np.int64)


def class_key(name: str) -> str:
    """Returns a class name without the differences between file systems and people: Unicode form, case, spaces at the ends."""
    return unicodedata.normalize("NFC", name).casefold().strip()


class ClassLookup:
    """Finds classes by name, also under another spelling; see :func:`class_key`.

    Args:
        classes: class names, in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        keys = [class_key(name) for name in classes]
        counts = Counter(keys)
        self._exact = {name: index for index, name in enumerate(classes)}
        self._loose = {key: index for index, key in enumerate(keys) if counts[key] == 1}

    def find(self, name: str) -> int | None:
        """Returns the index of the class of that name, or else of the only one that is spelled similarly, if any."""
        return self._exact.get(name, self._loose.get(class_key(name)))


def similar_names_note(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns a remark if two classes differ only in what :func:`class_key` leaves out."""
    counts = Counter(map(class_key, classes))
    same = [name for name in classes if counts[class_key(name)] > 1]
    return (f"The classes {same[0]} and {same[1]} differ only in upper and lower case",) if same else ()


def _indices_by_order(names: Sequence[str], model_classes: Sequence[str]) -> np.ndarray:
    if len(names) != len(model_classes):
        raise DataError(
            f"The data has {len(names)} classes and the model {len(model_classes)}",
            "classes are matched by order only one to one",
        )
    positions = {} if are_placeholders(model_classes) else _index(model_classes)
    for index, name in enumerate(names):
        if positions.get(name, index) != index:
            raise DataError(
                f"Class {name!r} is number {index} in the data and {positions[name]} in the model", "match the classes by name"
            )
    return np.arange(len(names))


def _index(names: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


def _first_synonym(name: str) -> str:
    """``tench, Tinca tinca`` -> ``tench``."""
    return name.partition(",")[0].partition(" (n")[0].strip().lower()


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_info(name).split())


def _info(name: str) -> str:
    return (files("timm.data") / "_info" / name).read_text(encoding="utf-8")
