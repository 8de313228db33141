"""Sizes from the data and the time, with speeds that are made up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from deit.data.mirror import MirrorTest
from deit.recipes.planning import SHAPES, SHARE, Look, from_data, from_time, is_open, look
from deit.recipes.presets import get_recipe
from deit.recipes.schema import ConvNet, Recipe, Transformer

UNALIKE, ALIKE = MirrorTest(500, 100, 600, 450), MirrorTest(500, 495, 600, 45)


@dataclass
class Machine:
    """A machine on which an image costs as many nanoseconds as its transformer has weights in its blocks."""

    nanoseconds: float
    asked: list[Recipe] = field(default_factory=list)

    def __call__(self, recipe: Recipe) -> float:
        self.asked.append(recipe)
        if isinstance(recipe.model, ConvNet):
            return 1e-9 * self.nanoseconds * recipe.image_hw[0] ** 2
        config = recipe.model.config()
        return 1e-9 * self.nanoseconds * 12 * config.hidden_size**2 * config.num_hidden_layers * config.tokens


def timed(minutes: float, seen: Look, nanoseconds: float, **changes: object) -> tuple[Recipe, list[str], Machine]:
    machine = Machine(nanoseconds)
    recipe, notes = from_data(get_recipe("small-data").replace(minutes=minutes, **changes), seen)
    recipe, more = from_time(recipe, seen, machine)
    return recipe, notes + more, machine


def test_the_recipes_for_small_data_and_no_others_leave_sizes_open() -> None:
    assert [name for name in ("small-data", "small-data-distilled", "convnet") if not is_open(get_recipe(name))] == []
    assert [name for name in ("deit", "deit-distilled", "digits", "digits-convnet") if is_open(get_recipe(name))] == []
    assert is_open(get_recipe("deit").replace(minutes=1))
    assert not is_open(get_recipe("small-data").tiny())


@pytest.mark.parametrize(("side", "image", "patch"), [(64, 64, 8), (50, 48, 6), (20, 32, 4), (500, 128, 16)])
def test_image_and_patch_follow_the_data(side: int, image: int, patch: int) -> None:
    recipe, notes, _ = timed(1, Look(3000, side), nanoseconds=1)
    assert isinstance(recipe.model, Transformer)
    assert (recipe.model.image_size, recipe.model.patch_size) == (image, patch)
    assert any(f"{image} pixels" in note and str(side) in note for note in notes)


@pytest.mark.parametrize(("side", "plain", "other"), [(64, 64, 96), (28, 32, 32), (32, 32, 48), (400, 128, 128)])
def test_a_network_that_shrinks_images_at_once_sees_them_enlarged(side: int, plain: int, other: int) -> None:
    for architecture, image in (("plain_convnet", plain), ("resnet18", other)):
        recipe, notes = from_data(get_recipe("convnet").replace(model={"architecture": architecture}), Look(3000, side))
        assert recipe.image_hw == (image, image)
        assert notes[0].startswith(f"Images of {image} pixels a side: the data has {side}")
        assert ("enlarged" in notes[0]) == (image > side)


def test_time_buys_a_convolutional_network_larger_images() -> None:
    sides = []
    for minutes in (0.01, 1, 2, 100):
        recipe, _ = from_data(get_recipe("convnet").replace(minutes=minutes), Look(3000, 110))
        recipe, notes = from_time(recipe, Look(3000, 110), Machine(5_000))
        sides.append(recipe.image_hw[0])
        assert f"Images of {sides[-1]} pixels a side: the data has 110" in notes[0]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (32, 96)
    fixed, _ = from_data(get_recipe("convnet").replace(minutes=0.01, model={"image_size": 80}), Look(3000, 110))
    assert from_time(fixed, Look(3000, 110), Machine(5_000))[0].image_hw == (80, 80)


def test_more_time_buys_a_larger_model_and_then_more_epochs() -> None:
    seen = Look(3000, 64)
    runs = [timed(minutes, seen, nanoseconds=0.05)[0] for minutes in (0.1, 2, 20, 2000)]
    widths = [run.model.config().hidden_size for run in runs if isinstance(run.model, Transformer)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (SHAPES[0].width, SHAPES[-1].width)
    assert timed(4000, seen, nanoseconds=0.05)[0].epochs == pytest.approx(2 * runs[-1].epochs, rel=0.01)


def test_the_epochs_fill_the_time_and_no_more() -> None:
    seen = Look(3000, 64)
    recipe, notes, machine = timed(10, seen, nanoseconds=0.05)
    seconds = recipe.epochs * seen.images * machine(recipe)
    assert 0.95 * SHARE * 600 < seconds <= SHARE * 600
    assert recipe.minutes is None
    assert f"{recipe.epochs} epochs in 10 min," in notes[-1]


def test_there_is_an_epoch_even_where_there_is_no_time() -> None:
    recipe, notes, _ = timed(0.001, Look(3000, 64), nanoseconds=100)
    assert recipe.epochs == 1
    assert recipe.optimizer.warmup_epochs == pytest.approx(0.1)
    assert any("the smallest shape" in note for note in notes)


def test_what_the_recipe_fixes_stays() -> None:
    fixed = {"image_size": 48, "patch_size": 12, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe, _, _ = timed(5, Look(3000, 64), nanoseconds=1, model=fixed)
    assert {name: getattr(recipe.model, name) for name in fixed} == fixed


def test_without_minutes_the_epochs_stay() -> None:
    recipe, _ = from_data(get_recipe("small-data"), Look(3000, 64, ALIKE))
    recipe, notes = from_time(recipe, Look(3000, 64), Machine(1))
    assert recipe.epochs == get_recipe("small-data").epochs
    assert not any("epochs in" in note for note in notes)
    assert not is_open(recipe)


@pytest.mark.parametrize(("images", "batch"), [(500, 32), (3000, 32), (30_000, 64), (200_000, 128)])
def test_the_batch_leaves_enough_steps(images: int, batch: int) -> None:
    assert from_data(get_recipe("small-data").replace(minutes=5), Look(images, 64))[0].batch_size == batch


def test_flips_are_left_out_where_the_data_says_so() -> None:
    for mirror, flip in ((ALIKE, 0.5), (UNALIKE, 0.0)):
        recipe, notes = from_data(get_recipe("small-data"), Look(3000, 64, mirror))
        assert recipe.augmentation.flip == flip
        assert str(mirror) in notes[-1]
        assert not recipe.mirror_test


def test_data_alone_decides_what_a_stored_teacher_depends_on() -> None:
    recipe, _ = from_data(get_recipe("small-data-distilled").replace(minutes=5), Look(3000, 64, ALIKE))
    later, _ = from_time(recipe, Look(3000, 64), Machine(1))
    assert later.image_hw == recipe.image_hw
    assert (later.batch_size, later.augmentation, later.mixing) == (recipe.batch_size, recipe.augmentation, recipe.mixing)


def test_a_variant_or_architecture_that_the_user_names_is_taken_as_it_is() -> None:
    recipe = get_recipe("small-data").with_settings({"model.variant": "deit-small-patch16-224"})
    assert isinstance(recipe.model, Transformer)
    assert recipe.model.sizes == "variant"
    network = get_recipe("convnet").with_settings({"model.architecture": "regnety_004"}).model
    assert isinstance(network, ConvNet)
    assert network.arguments == {}


@dataclass
class Images:
    """A source of images of given sizes."""

    sizes: list[tuple[int, int]]
    classes: tuple[str, ...] = ("a", "b")

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.sizes), np.int64)

    def load(self, index: int) -> Image.Image:
        return Image.new("RGB", self.sizes[index])

    def name(self, index: int) -> str:
        return str(index)


def test_the_usual_side_is_the_median_of_the_shorter_ones() -> None:
    assert look(Images([(100, 40), (50, 90), (2000, 1000)]), mirrored=False) == Look(3, 50)
