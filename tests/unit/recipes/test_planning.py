"""Planning sizes from the data and the available time, with simulated speeds."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deit.data.mirror import MirrorTest
from deit.errors import RecipeError
from deit.recipes.planning import (
    FEW_IMAGES,
    MIN_SAMPLES,
    SHAPES,
    DatasetStats,
    choose_micro_batch_size,
    dataset_stats,
    lighten_augmentation,
    min_samples,
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
    recipe, more = plan_from_time(recipe, stats, machine, 60 * minutes)
    return recipe, notes + more, machine


def test_sides_without_a_common_divisor_are_planned() -> None:
    model = {"image_size": (33, 32), "patch_size": 1}
    recipe, _, _ = planned(1, DatasetStats(1000, 32), 1.0, model=model)
    assert isinstance(recipe.model, Transformer)
    assert (recipe.model.image_size, recipe.model.patch_size) == ((33, 32), 1)


def test_only_small_data_recipes_need_planning() -> None:
    assert [name for name in ("small-data", "small-data-distilled", "convnet") if not needs_planning(get_recipe(name))] == []
    assert [name for name in ("deit", "deit-distilled", "digits", "digits-convnet") if needs_planning(get_recipe(name))] == []
    assert needs_planning(get_recipe("deit").replace(minutes=1))
    assert not needs_planning(get_recipe("small-data").tiny())


@pytest.mark.parametrize(
    ("side", "image", "patch"), [(64, 64, 8), (50, 48, 6), (30, 28, 4), (20, 16, 2), (9, 16, 2), (500, 128, 16)]
)
def test_image_and_patch_size_follow_the_data(side: int, image: int, patch: int) -> None:
    recipe, notes, _ = planned(1, DatasetStats(3000, side), nanoseconds=1)
    assert isinstance(recipe.model, Transformer)
    assert (recipe.model.image_size, recipe.model.patch_size) == (image, patch)
    assert f"Image size {image}: the images have {side} pixels" in notes[0]


@pytest.mark.parametrize(("side", "plain", "other"), [(64, 64, 96), (28, 28, 32), (32, 32, 48), (400, 128, 128)])
def test_images_are_enlarged_for_downsampling_networks(side: int, plain: int, other: int) -> None:
    for architecture, image in (("plain_convnet", plain), ("resnet18", other)):
        recipe, notes = plan_from_data(
            get_recipe("convnet").replace(model={"architecture": architecture}), DatasetStats(3000, side)
        )
        assert recipe.image_hw == (image, image)
        assert notes[0].startswith(f"Image size {image}: the images have {side} pixels")
        assert ("enlarged" in notes[0]) == (image > side)
        assert isinstance(recipe.model, ConvNet)
        assert recipe.model.half_size_until == (0.5 if image >= 48 else 0.0)


def test_more_time_gives_a_convnet_larger_images() -> None:
    sides = []
    for minutes in (0.01, 1, 2, 100):
        recipe, _ = plan_from_data(get_recipe("convnet").replace(minutes=minutes), DatasetStats(3000, 110))
        recipe, notes = plan_from_time(recipe, DatasetStats(3000, 110), Machine(5_000), 60 * minutes)
        sides.append(recipe.image_hw[0])
        assert f"Image size {sides[-1]}: the images have 110 pixels" in notes[0]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (16, 96)
    fixed, _ = plan_from_data(get_recipe("convnet").replace(minutes=0.01, model={"image_size": 80}), DatasetStats(3000, 110))
    assert plan_from_time(fixed, DatasetStats(3000, 110), Machine(5_000), 0.6)[0].image_hw == (80, 80)


def test_more_time_gives_a_larger_model() -> None:
    stats = DatasetStats(3000, 64)
    runs = [planned(minutes, stats, nanoseconds=0.05) for minutes in (0.1, 2, 20, 2000)]
    widths = [width(run) for run, *_ in runs]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (SHAPES[0].width, SHAPES[-1].width)
    reasons = [notes[-1] for _, notes, _ in runs]
    assert "the smallest size, with time for 1.4 epochs of 3,000 images; a larger one needs time for 23.0" in reasons[0]
    assert "the largest size that leaves time for 23.0 epochs of 3,000 images, here" in reasons[1]
    assert "the largest size, with time for" in reasons[-1]


def width(recipe: Recipe) -> int:
    assert isinstance(recipe.model, Transformer)
    return recipe.model.config().hidden_size


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_more_images_need_more_samples_and_fewer_epochs(first: int, second: int) -> None:
    fewer, more = sorted((first, second))
    assert MIN_SAMPLES <= min_samples(fewer) <= min_samples(more)
    assert min_samples(fewer) / fewer >= 0.999 * min_samples(more) / more  # rounded to whole samples
    assert min_samples(FEW_IMAGES) == MIN_SAMPLES


def test_many_images_do_not_need_many_epochs_for_a_larger_model() -> None:
    recipe, notes, machine = planned(7, DatasetStats(48_000, 28), nanoseconds=0.01)
    samples = 7 * 60 / machine(recipe)
    assert width(recipe) > SHAPES[0].width
    assert samples < 24 * 48_000
    assert f"leaves time for 5.7 epochs of 48,000 images, here {samples / 48_000:,.1f}" in notes[-1]


def test_fixed_sizes_are_kept() -> None:
    fixed = {"image_size": 48, "patch_size": 12, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe, _, _ = planned(5, DatasetStats(3000, 64), nanoseconds=1, model=fixed)
    assert {name: getattr(recipe.model, name) for name in fixed} == fixed


def test_augmentation_is_light_if_images_are_hardly_repeated() -> None:
    recipe = get_recipe("convnet").replace(minutes=5, model={"image_size": 28})
    light, notes = lighten_augmentation(recipe, 9.9)
    assert light == recipe.replace(
        augmentation={"crop": "auto", "color_jitter": 0.0, "randaugment": {"operations": 0}}, smoothing=0.0
    )
    assert notes == ["Light augmentation and no label smoothing, since the time allows 9.9 epochs only"]
    assert lighten_augmentation(recipe, 10.0) == (recipe, [])
    assert lighten_augmentation(light, 1.0) == (light, [])
    assert lighten_augmentation(get_recipe("deit"), 1.0) == (get_recipe("deit"), [])


def test_epochs_are_kept_without_minutes() -> None:
    recipe, _ = plan_from_data(get_recipe("small-data"), DatasetStats(3000, 64, SYMMETRIC))
    recipe, notes = plan_from_time(recipe, DatasetStats(3000, 64), Machine(1), 600)
    assert recipe.epochs == get_recipe("small-data").epochs
    assert len(notes) == 1
    assert not needs_planning(recipe)


@pytest.mark.parametrize(
    ("images", "transformer", "convnet"),
    [(500, 32, 32), (3000, 32, 32), (30_000, 32, 128), (100_000, 64, 128), (200_000, 128, 128)],
)
def test_batch_size_grows_with_the_data(images: int, transformer: int, convnet: int) -> None:
    for name, expected in (("small-data", transformer), ("convnet", convnet)):
        recipe, _ = plan_from_data(get_recipe(name), DatasetStats(images, 64))
        assert recipe.batch_size == expected


def test_batch_size_of_a_recipe_is_kept() -> None:
    for name, batch_size in (("small-data", 48), ("finetune-small-data", 64)):
        recipe = get_recipe(name).replace(minutes=5, batch_size=batch_size)
        assert plan_from_data(recipe, DatasetStats(100_000, 64))[0].batch_size == batch_size


def test_batch_size_that_the_data_chooses_is_not_known_before() -> None:
    recipe = Recipe(**tomllib.loads(get_recipe("small-data").to_toml()))
    assert recipe.batch_size is None
    with pytest.raises(RecipeError, match="batch size of the recipe small-data is chosen from the data: set batch_size"):
        _ = recipe.peak_lr


def test_flips_follow_the_mirror_test() -> None:
    for mirror, flip in ((SYMMETRIC, 0.5), (ASYMMETRIC, 0.0)):
        recipe, notes = plan_from_data(get_recipe("small-data"), DatasetStats(3000, 64, mirror))
        assert recipe.augmentation.flip == flip
        assert str(mirror) in notes[-1]
        assert not recipe.mirror_test


def test_time_does_not_change_what_cached_logits_depend_on() -> None:
    recipe, _ = plan_from_data(get_recipe("small-data-distilled").replace(minutes=5), DatasetStats(3000, 64, SYMMETRIC))
    later, _ = plan_from_time(recipe, DatasetStats(3000, 64), Machine(1), 600)
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


@pytest.mark.parametrize(
    ("batch_size", "parallel", "expected"),
    [(32, 1, 32), (32, 2, 16), (32, 8, 16), (64, 2, 32), (66, 2, 34), (256, 1, 128), (7, 2, 16), (1024, 2, 128)],
)
def test_batches_are_divided_among_the_cores(batch_size: int, parallel: int, expected: int) -> None:
    recipe = get_recipe("small-data").replace(batch_size=batch_size)
    assert choose_micro_batch_size(recipe, parallel).micro_batch_size == expected


def test_batches_of_a_convnet_are_not_divided() -> None:
    assert choose_micro_batch_size(get_recipe("convnet").replace(batch_size=64), 2).micro_batch_size == 64
    assert choose_micro_batch_size(get_recipe("convnet").replace(batch_size=256), 2).micro_batch_size == 128


def test_micro_batch_size_of_a_recipe_is_kept() -> None:
    assert choose_micro_batch_size(get_recipe("deit"), 2).micro_batch_size == 128
