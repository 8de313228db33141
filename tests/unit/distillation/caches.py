"""Builds and uses small caches, for the tests of this package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deit.checkpoints.run_log import read_log
from deit.distillation.build_cache import build_cache_on
from deit.distillation.cache_builder import CacheResult
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training.run import train_on
from tests.helpers import MemorySource, MemorySplits, memory_splits, randomized

CLASSES = ("a", "b", "c")
COUNT = 75  # two steps of 32 and a remainder that is dropped


def recipe(**fields: Any) -> Recipe:
    """A tiny recipe with the paper's repeated augmentation, mixing and stochastic depth."""
    return get_recipe("deit-distilled").tiny().replace(**{"epochs": 3, **fields})


SOFT: dict[str, Any] = {"distillation": {"mode": "soft"}}


def build(directory: Path, teacher: str, distilled: Recipe | None = None, **options: Any) -> CacheResult:
    run = RunSettings("memory", teacher=teacher, skip_unreadable=options.pop("skip_unreadable", False))
    splits = options.pop("splits", None) or memory_splits(COUNT)
    return build_cache_on(splits, distilled or recipe(), run, directory, device="cpu", **{"workers": 0, **options})


def losses(directory: Path, teacher: str | Path, distilled: Recipe, workers: int = 0, **options: Any) -> list[float]:
    run = RunSettings("memory", teacher=str(teacher), skip_unreadable=options.pop("skip_unreadable", False))
    train_on(options.get("splits") or memory_splits(COUNT), distilled, run, directory, device="cpu", workers=workers)
    return [row["loss"] for row in read_log(directory)]


def teacher_of(path: Path, classes: tuple[str, ...], seed: int) -> Path:
    network = new_timm_classifier("test_resnet", classes, get_recipe("deit").tiny().processor(), {}, seed=seed)
    randomized(network, seed=seed, std=0.1).save_pretrained(path)
    return path


def broken_later() -> MemorySplits:
    """Two images whose headers are valid and which fail to decode."""
    return replace(memory_splits(COUNT), train=BrokenLater(COUNT, broken=frozenset({4, 7})))


class BrokenLater(MemorySource):
    """Images that can be opened once, as on a failing disk."""

    def load(self, index: int) -> Any:
        seen: set[int] = self.__dict__.setdefault("_seen", set())
        if index in self.broken and index not in seen:
            seen.add(index)
            return replace(self, broken=frozenset()).load(index)
        return super().load(index)


class Case:
    """A change between building and training, and the message that names it."""

    def __init__(self, word: str, *, splits: MemorySplits | None = None, **fields: Any) -> None:
        self.word, self.splits, self.fields = word, splits, fields


def _renamed() -> MemorySplits:
    splits = memory_splits(COUNT)
    return replace(splits, train=MemorySource(COUNT, ("a", "b", "d")), validation=MemorySource(9, ("a", "b", "d")))


CASES = {
    "seed": Case("seed = 0, but the recipe has 1", seed=1),
    "batch": Case("batch_size = 32, but the recipe has 16", batch_size=16),
    "size": Case(r"image_size = \[32, 32\], but the recipe has \[40, 40\]", model={"image_size": 40}),
    "augmentation": Case("augmentation.flip = 0.5, but the recipe has 0.25", augmentation={"flip": 0.25}),
    "magnitude": Case("augmentation.randaugment.magnitude", augmentation={"randaugment": {"magnitude": 1.0}}),
    "repeats": Case("augmentation.repeats = 3, but the recipe has 1", augmentation={"repeats": 1}),
    "mixing": Case("mixing.mixup", mixing={"mixup": 0.1}),
    "views": Case("has 2 views, but the recipe needs 3", views=3),
    "soft": Case("hard labels.*--top-k", **SOFT),
    "data": Case("another data set", splits=replace(memory_splits(COUNT), fingerprint="another")),
    "images": Case("75 training images, but 74", splits=replace(memory_splits(COUNT), train=MemorySource(COUNT - 1))),
    "classes": Case("'c' as class 2, but the data has 'd'", splits=_renamed()),
    "pixels": Case(
        "other pixels", splits=replace(memory_splits(COUNT), train=MemorySource(COUNT, broken=frozenset(), shift=1))
    ),
}
