"""Which of a model's classes is meant by a name, and what the thousand classes of ImageNet are called.

A folder of ImageNet bears a WordNet id (``n01440764``), a published model a human name (``tench, Tinca tinca``), or none at
all; what they share is the order. And two of the thousand are called ``crane``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np

from deit.errors import DataError

IMAGENET_CLASSES = 1000
RECOGNISED = 0.9  # of the names at their places: spellings differ a little between publishers


@lru_cache(maxsize=1)
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's thousand classes, in the order of every published model's answers."""
    return _lines("imagenet_synsets.txt")


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """Their names for people, with the WordNet id behind a name that two of them bear."""
    from timm.data.imagenet_info import ImageNetInfo

    names = list(ImageNetInfo().label_descriptions())
    return tuple(
        name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, imagenet_ids(), strict=True)
    )


def imagenet_subset(letter: str) -> tuple[int, ...]:
    """The 200 of the thousand that ImageNet-A (``a``) or ImageNet-R (``r``) has images of, as their authors list them."""
    places = {wnid: place for place, wnid in enumerate(imagenet_ids())}
    return tuple(places[wnid] for wnid in _lines(f"imagenet_{letter}_synsets.txt"))


def reassessed_labels() -> list[list[int]]:
    """ReaL (Beyer et al., arXiv 2006.07159): all right classes of each of the 50,000 validation images; none for some."""
    content: list[list[int]] = json.loads(_info("imagenet_real_labels.json"))
    return content


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether a model's classes are ImageNet's thousand in their order, whatever they are called."""
    if len(classes) != IMAGENET_CLASSES:
        return False
    numbered = (tuple(map(str, range(IMAGENET_CLASSES))), tuple(f"LABEL_{place}" for place in range(IMAGENET_CLASSES)))
    if tuple(classes) in (*numbered, imagenet_ids()):
        return True
    same = sum(_first(name) == _first(own) for name, own in zip(classes, imagenet_names(), strict=True))
    return same >= RECOGNISED * IMAGENET_CLASSES


def places_among(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Where each of ``names`` stands among a model's classes.

    By the name itself; where the model knows ImageNet's thousand and ``names`` are WordNet ids, or all of
    :func:`imagenet_names`, by their order.

    Returns:
        (len(names),), int64.

    Raises:
        DataError: a name that the model does not know, or that several of its classes bear.
    """
    if tuple(names) == tuple(known):
        return np.arange(len(known))
    if is_imagenet(known):
        own = {**_by_place(imagenet_names()), **_by_place(imagenet_ids())}
        if all(name in own for name in names):
            return np.asarray([own[name] for name in names], np.int64)
    counts: dict[str, int] = {}
    for name in known:
        counts[name] = counts.get(name, 0) + 1
    places = {name: place for place, name in enumerate(known) if counts[name] == 1}
    missing = [name for name in names if name not in places and name not in counts]
    if missing:
        raise DataError(
            f"The data has {len(missing)} classes that the model does not know, such as {missing[0]!r}",
            "evaluate it on data with the classes it was trained on",
        )
    if double := [name for name in names if name not in places]:
        raise DataError(f"The model has several classes called {double[0]!r}", "give its classes names of their own: id2label")
    return np.asarray([places[name] for name in names], np.int64)


def _by_place(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _first(name: str) -> str:
    """``tench, Tinca tinca`` -> ``tench``."""
    return name.partition(",")[0].partition(" (n")[0].strip().lower()


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_info(name).split())


def _info(name: str) -> str:
    return (files("timm.data") / "_info" / name).read_text(encoding="utf-8")
