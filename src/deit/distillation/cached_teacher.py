"""A stored teacher: answers that were written down, and the proof that they belong to the pixels of this training.

A store is tied to its data set, to the settings that decide the pixels of a sample, to the versions of the libraries that do,
and to a few of the pixels themselves: whatever else might change them (another machine's decoder, images that were exchanged
under their names, a newer version of this package) shows there.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

from deit.data.loader import TrainSamples
from deit.data.sampler import BatchPlan, epoch_steps, steps_per_epoch
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import CachedTargets, Manifest, check_views, read_manifest
from deit.distillation.teacher import Teacher
from deit.errors import DeiTError, TeacherError
from deit.recipes.schema import Recipe
from deit.system.progress import print_status

PROBED = 8  # samples, of the first step and of the last
PROBED_SIDE = 8  # of each: this many rows and columns of pixels
SAME_PIXEL = 1e-3  # far below one of 256 levels, far above the rounding of another processor


@dataclass(frozen=True)
class CachedTeacher:
    """What stands in a teacher's place when its answers were stored.

    Attributes:
        directory: of the store.
        manifest: what it says of itself.
    """

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """For a person: whose answers, where, and how many."""
        manifest = self.manifest
        kind = "hard labels" if manifest.top_k is None else f"top {manifest.top_k} probabilities"
        return f"{manifest.teacher.name}, stored in {self.directory} ({manifest.views} views, {kind})"

    @classmethod
    def open(cls, directory: str | Path, recipe: Recipe, splits: Splits, record: DataRecord) -> CachedTeacher:
        """A store that fits a training.

        Args:
            recipe: fitted to the data.
            splits: whose training part is learned from.
            record: of the data set and its split.

        Raises:
            TeacherError: the store is unfinished or damaged, or belongs to another training; the message says what differs.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if not manifest.whole:
            raise TeacherError(
                f"{directory} has {len(manifest.sha256)} of its {manifest.views} views",
                "go on with it: the same `deit teacher store` again",
            )
        check_data(directory, manifest, splits, record)
        check_pixel_settings(directory, manifest, recipe)
        if recipe.distillation.mode == "soft" and manifest.top_k is None:
            raise TeacherError(
                f"{directory} holds hard labels, and the recipe learns from probabilities",
                "build a store with --top-k, or pass --set distillation.mode=hard",
            )
        if recipe.views is not None and recipe.views > manifest.views:
            raise TeacherError(
                f"{directory} has {manifest.views} views, and the recipe takes {recipe.views}",
                f"pass --set views={manifest.views}, or go on building with --views {recipe.views}",
            )
        check_views(directory, manifest)
        return cls(directory, manifest)

    def fitted(self, recipe: Recipe) -> tuple[Recipe, list[str]]:
        """The recipe that takes no more views than are stored, and what is to be said of that."""
        if recipe.views is not None:
            return recipe, []
        views = self.manifest.views
        again = "" if recipe.epochs <= views else f": after {views} epochs the same samples come again"
        return recipe.replace(views=views), [f"The stored teacher has {views} views, so views = {views}{again}"]

    def answers(self, recipe: Recipe) -> CachedTargets:
        """What :class:`TrainSamples` carries."""
        return CachedTargets(self.directory, self.manifest, soft=recipe.distillation.mode == "soft")

    def check_pixels(self, recipe: Recipe, samples: TrainSamples) -> None:
        """Compare a few samples with what they were when the store was built.

        Raises:
            TeacherError: they differ.
        """
        check_probe(self.directory, self.manifest, probe(recipe, samples))

    def load(self, recipe: Recipe) -> Teacher | None:
        """The teacher itself; None, after a word why, where it cannot be had any more."""
        known = self.manifest.teacher
        try:
            teacher = Teacher.load(known.location, self.manifest.classes, recipe.processor(), known.weights)
        except DeiTError as error:
            print_status(f"Note: the stored teacher is not evaluated, since it cannot be loaded. {error}")
            return None
        if teacher.fingerprint() != known.sha256:
            print_status(f"Note: the stored teacher is not evaluated, since {known.location} has changed.")
            return None
        return teacher


AnyTeacher = Teacher | CachedTeacher


def pixel_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of a fitted recipe that decide the pixels of its samples, ``path.of.setting`` -> JSON value."""
    mean, std = recipe.processor().rgb_statistics
    content = {
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "image_size": recipe.image_hw,
        "mean": mean,
        "std": std,
        "augmentation": recipe.augmentation.model_dump(mode="json"),
        "mixing": recipe.mixing.model_dump(mode="json"),
    }
    flat: dict[str, Any] = _flat(json.loads(json.dumps(content)))
    return flat


def software() -> dict[str, str]:
    """The versions that decide pixels."""
    return {"Pillow": PIL.__version__, "libjpeg-turbo": str(features.version("libjpeg_turbo"))}


def probe(recipe: Recipe, samples: TrainSamples) -> str:
    """Some pixels of the first and of the last step of view 0: float32, as text."""
    steps = epoch_steps(len(samples.source.labels), recipe.batch_size, recipe.seed, 0, recipe.augmentation.repeats)
    alone = replace(samples, teacher_targets=None)
    values = []
    for step in (steps[0], steps[-1]):
        pixels = alone.batch(BatchPlan(step.epoch, step.step, step.samples[:PROBED])).pixel_values.numpy()
        rows, columns = (np.linspace(0, side - 1, PROBED_SIDE).astype(np.int64) for side in pixels.shape[-2:])
        values.append(pixels[:, :, rows][:, :, :, columns].ravel())
    return base64.b64encode(np.concatenate(values).astype("<f4").tobytes()).decode()


def check_probe(directory: Path, manifest: Manifest, now: str) -> None:
    """Refuse a store whose samples have other pixels now.

    Raises:
        TeacherError: they have.
    """
    versions = ", ".join(f"{name} {version}" for name, version in manifest.software.items())
    try:
        old, new = (np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in (manifest.probe, now))
    except (binascii.Error, ValueError) as error:
        raise TeacherError(f"The pixels in {directory} are garbled", "build the store anew") from error
    if old.shape != new.shape or not np.allclose(old, new, rtol=0, atol=SAME_PIXEL):
        raise TeacherError(
            f"The samples of this training have other pixels than those that {directory} was built from",
            f"it was built with {versions}, and from images with the same names: restore them, or build the store anew",
        )


def check_data(directory: Path, manifest: Manifest, splits: Splits, record: DataRecord) -> None:
    """Refuse another data set.

    Raises:
        TeacherError: it is; the message says in what it differs.
    """
    stored, images = manifest.data, len(splits.train.labels)
    if manifest.classes != splits.classes:
        _refuse_classes(directory, manifest.classes, splits.classes)
    if stored.fingerprint != record.fingerprint:
        raise TeacherError(
            f"{directory} was built from another data set: other files or labels", "pass the same data, or build a store of it"
        )
    if (stored.split_seed, stored.validation_fraction) != (record.split_seed, record.validation_fraction):
        raise TeacherError(
            f"{directory} was built with {stored.validation_fraction:.0%} of the images set aside by seed {stored.split_seed}, "
            f"here it is {record.validation_fraction:.0%} by seed {record.split_seed}",
            "build a store of this split",
        )
    if stored.images != images:
        raise TeacherError(
            f"{directory} was built from {stored.images} training images, and {images} of them are readable here",
            "replace the unreadable files, or build the store anew",
        )


def check_pixel_settings(directory: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Refuse a recipe, or libraries, that make other pixels.

    Raises:
        TeacherError: they do; the message names the first difference.
    """
    if (difference := _difference(manifest.pixels, pixel_settings(recipe))) is not None:
        name, there, here = difference
        raise TeacherError(
            f"{directory} was built with {name} = {there}, and the recipe has {here}",
            "train with the recipe of the store, or build a store with this one",
        )
    if (manifest.batch_size, manifest.steps) != (recipe.batch_size, steps_per_epoch(manifest.data.images, recipe.batch_size)):
        raise TeacherError(f"{directory} is garbled: its steps are not those of its settings", "build the store anew")
    if (difference := _difference(manifest.software, software())) is not None:
        name, there, here = difference
        raise TeacherError(
            f"{directory} was built with {name} {there}, and here is {here}, which may make other pixels",
            "install that version, or build the store anew",
        )


def _refuse_classes(directory: Path, there: tuple[str, ...], here: tuple[str, ...]) -> None:
    if len(there) != len(here):
        text = f"{len(there)} classes, and the data has {len(here)}"
    else:
        place = next(place for place, pair in enumerate(zip(there, here, strict=True)) if len(set(pair)) > 1)
        text = f"{there[place]!r} as class {place}, and the data has {here[place]!r}"
    raise TeacherError(f"{directory} has {text}", "pass the data that the store was built from, or build one of this data")


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """The first name that has another value, and both values."""
    names = [*here, *(name for name in there if name not in here)]
    missing = "nothing"
    return next(
        (
            (name, there.get(name, missing), here.get(name, missing))
            for name in names
            if name not in here or name not in there or there[name] != here[name]
        ),
        None,
    )


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
