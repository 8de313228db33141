"""Planning sizes from the data and the available time, with simulated speeds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from deit.data.mirror import MirrorTest
from deit.recipes.planning import (
    SHAPES,
    TIME_SHARE,
    DatasetStats,
    dataset_stats,
    needs_planning,
    plan_from_data,
    plan_from_time,
)
from deit.recipes.presets import get_recipe
from deit.recipes.schema import ConvNet, Recipe, Transformer

ASYMMETRIC, SYMMETRIC = MirrorTest(500, 100, 600, 450), MirrorTest(500, 495, 600, 45)


@dataclass
class Machine:
    """A simulated machine, on which the cost of a sample is proportional to the work of the model."""

    nanoseconds: float
    measured: list[Recipe] = field(default_factory=list)

    def __call__(self, recipe: Recipe) -> float:
        self.measured.append(recipe)
        if isinstance(recipe.model, ConvNet):
            return 1e-9 * self.nanoseconds * recipe.image_hw[0] ** 2
        config = recipe.model.config()
        return 1e-9 * self.nanoseconds * 12 * config.hidden_size**2 * config.num_hidden_layers * config.tokens


def planned(minutes: float, stats: DatasetStats, nanoseconds: float, **changes: object) -> tuple[Recipe, list[str], Machine]:
    machine = Machine(nanoseconds)
    recipe, notes = plan_from_data(get_recipe("small-data").replace(minutes=minutes, **changes), stats)
    recipe, more = plan_from_time(recipe, stats, machine)
    return recipe, notes + more, machine


def test_only_small_data_recipes_need_planning() -> None:
    assert [name for name in ("small-data", "small-data-distilled", "convnet") if not needs_planning(get_recipe(name))] == []
    assert [name for name in ("deit", "deit-distilled", "digits", "digits-convnet") if needs_planning(get_recipe(name))] == []
    assert needs_planning(get_recipe("deit").replace(minutes=1))
    assert not needs_planning(get_recipe("small-data").tiny())


@pytest.mark.parametrize(("side", "image", "patch"), [(64, 64, 8), (50, 48, 6), (20, 32, 4), (500, 128, 16)])
def test_image_and_patch_size_follow_the_data(side: int, image: int, patch: int) -> None:
    recipe, notes, _ = planned(1, DatasetStats(3000, side), nanoseconds=1)
    assert isinstance(recipe.model, Transformer)
    assert (recipe.model.image_size, recipe.model.patch_size) == (image, patch)
    assert f"Image size {image}: the images have {side} pixels" in notes[0]


@pytest.mark.parametrize(("side", "plain", "other"), [(64, 64, 96), (28, 32, 32), (32, 32, 48), (400, 128, 128)])
def test_images_are_enlarged_for_downsampling_networks(side: int, plain: int, other: int) -> None:
    for architecture, image in (("plain_convnet", plain), ("resnet18", other)):
        recipe, notes = plan_from_data(
            get_recipe("convnet").replace(model={"architecture": architecture}), DatasetStats(3000, side)
        )
        assert recipe.image_hw == (image, image)
        assert notes[0].startswith(f"Image size {image}: the images have {side} pixels")
        assert ("enlarged" in notes[0]) == (image > side)


def test_more_time_gives_a_convnet_larger_images() -> None:
    sides = []
    for minutes in (0.01, 1, 2, 100):
        recipe, _ = plan_from_data(get_recipe("convnet").replace(minutes=minutes), DatasetStats(3000, 110))
        recipe, notes = plan_from_time(recipe, DatasetStats(3000, 110), Machine(5_000))
        sides.append(recipe.image_hw[0])
        assert f"Image size {sides[-1]}: the images have 110 pixels" in notes[0]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (32, 96)
    fixed, _ = plan_from_data(get_recipe("convnet").replace(minutes=0.01, model={"image_size": 80}), DatasetStats(3000, 110))
    assert plan_from_time(fixed, DatasetStats(3000, 110), Machine(5_000))[0].image_hw == (80, 80)


def test_more_time_gives_a_larger_model_then_more_epochs() -> None:
    stats = DatasetStats(3000, 64)
    runs = [planned(minutes, stats, nanoseconds=0.05)[0] for minutes in (0.1, 2, 20, 2000)]
    widths = [run.model.config().hidden_size for run in runs if isinstance(run.model, Transformer)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (SHAPES[0].width, SHAPES[-1].width)
    assert planned(4000, stats, nanoseconds=0.05)[0].epochs == pytest.approx(2 * runs[-1].epochs, rel=0.01)


def test_epochs_fill_the_time() -> None:
    stats = DatasetStats(3000, 64)
    recipe, notes, machine = planned(10, stats, nanoseconds=0.05)
    seconds = recipe.epochs * stats.images * machine(recipe)
    assert 0.95 * TIME_SHARE * 600 < seconds <= TIME_SHARE * 600
    assert recipe.minutes is None
    assert f"{recipe.epochs} epochs in 10 min," in notes[-1]


def test_at_least_one_epoch() -> None:
    recipe, notes, _ = planned(0.001, DatasetStats(3000, 64), nanoseconds=100)
    assert recipe.epochs == 1
    assert recipe.optimizer.warmup_epochs == pytest.approx(0.1)
    assert any("the smallest size" in note for note in notes)


def test_fixed_sizes_are_kept() -> None:
    fixed = {"image_size": 48, "patch_size": 12, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe, _, _ = planned(5, DatasetStats(3000, 64), nanoseconds=1, model=fixed)
    assert {name: getattr(recipe.model, name) for name in fixed} == fixed


def test_epochs_are_kept_without_minutes() -> None:
    recipe, _ = plan_from_data(get_recipe("small-data"), DatasetStats(3000, 64, SYMMETRIC))
    recipe, notes = plan_from_time(recipe, DatasetStats(3000, 64), Machine(1))
    assert recipe.epochs == get_recipe("small-data").epochs
    assert not any("epochs in" in note for note in notes)
    assert not needs_planning(recipe)


@pytest.mark.parametrize(("images", "batch"), [(500, 32), (3000, 32), (30_000, 64), (200_000, 128)])
def test_batch_size_grows_with_the_data(images: int, batch: int) -> None:
    assert plan_from_data(get_recipe("small-data").replace(minutes=5), DatasetStats(images, 64))[0].batch_size == batch


def test_flips_follow_the_mirror_test() -> None:
    for mirror, flip in ((SYMMETRIC, 0.5), (ASYMMETRIC, 0.0)):
        recipe, notes = plan_from_data(get_recipe("small-data"), DatasetStats(3000, 64, mirror))
        assert recipe.augmentation.flip == flip
        assert str(mirror) in notes[-1]
        assert not recipe.mirror_test


def test_time_does_not_change_what_cached_logits_depend_on() -> None:
    recipe, _ = plan_from_data(get_recipe("small-data-distilled").replace(minutes=5), DatasetStats(3000, 64, SYMMETRIC))
    later, _ = plan_from_time(recipe, DatasetStats(3000, 64), Machine(1))
    assert later.image_hw == recipe.image_hw
    assert (later.batch_size, later.augmentation, later.mixing) == (recipe.batch_size, recipe.augmentation, recipe.mixing)


def test_named_variant_or_architecture_is_used_unchanged() -> None:
    recipe = get_recipe("small-data").with_settings({"model.variant": "deit-small-patch16-224"})
    assert isinstance(recipe.model, Transformer)
    assert recipe.model.sizes == "variant"
    network = get_recipe("convnet").with_settings({"model.architecture": "regnety_004"}).model
    assert isinstance(network, ConvNet)
    assert network.arguments == {}


@dataclass
class Images:
    """A source of images of the given sizes."""

    sizes: list[tuple[int, int]]
    classes: tuple[str, ...] = ("a", "b")

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.sizes), np.int64)

    def load(self, index: int) -> Image.Image:
        return Image.new("RGB", self.sizes[index])

    def name(self, index: int) -> str:
        return str(index)


def test_side_is_the_median_of_the_shorter_sides() -> None:
    assert dataset_stats(Images([(100, 40), (50, 90), (2000, 1000)]), test_mirror=False) == DatasetStats(3, 50)
