"""Recipes: the paper's values, validation, changes, and TOML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.errors import RecipeError
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.schema import ConvNet, Recipe, Transformer


def test_deit_recipe_has_the_values_of_table_9() -> None:
    recipe = get_recipe("deit")
    assert (recipe.epochs, recipe.batch_size, recipe.smoothing) == (300, 1024, 0.1)
    assert recipe.peak_lr == pytest.approx(5e-4 * 1024 / 512)
    optimizer = recipe.optimizer
    assert (optimizer.warmup_epochs, optimizer.warmup_lr, optimizer.min_lr) == (5, 1e-6, 1e-5)
    assert (optimizer.weight_decay, optimizer.betas, optimizer.eps) == (0.05, (0.9, 0.999), 1e-8)
    assert (optimizer.clip_norm, optimizer.lr_update) == (None, "epoch")
    assert isinstance(recipe.model, Transformer)
    assert recipe.model.drop_path == 0.1
    augmentation = recipe.augmentation
    assert (augmentation.repeats, augmentation.erasing, augmentation.flip, augmentation.color_jitter) == (3, 0.25, 0.5, 0.3)
    drawn = augmentation.randaugment
    assert (drawn.operations, drawn.magnitude, drawn.magnitude_std) == (2, 9, 0.5)
    mixing = recipe.mixing
    assert (mixing.mixup, mixing.cutmix, mixing.probability, mixing.switch) == (0.8, 1.0, 1.0, 0.5)
    assert (recipe.ema.decay, recipe.ema.evaluate) == (0.99996, False)
    assert recipe.crop_ratio == 0.875


def test_deit_distilled_uses_hard_distillation_with_the_paper_s_weight() -> None:
    recipe = get_recipe("deit-distilled")
    assert (recipe.distillation.mode, recipe.distillation.teacher_weight) == ("hard", 0.5)
    same = {"name", "model", "distillation"}
    assert recipe.model_dump(exclude=same) == get_recipe("deit").model_dump(exclude=same)


@pytest.mark.parametrize("name", RECIPES)
def test_toml_round_trip(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    recipe.save(tmp_path / "my recipe.toml")
    assert get_recipe(str(tmp_path / "my recipe.toml")) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_changes_only_sizes(name: str) -> None:
    recipe, tiny = get_recipe(name), get_recipe(name).tiny()
    assert tiny.image_hw == (32, 32)
    for section in ("augmentation", "mixing", "distillation", "optimizer", "ema", "smoothing"):
        assert getattr(tiny, section) == getattr(recipe, section)


def test_unknown_setting_suggests_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean optimizer\.lr"):
        get_recipe("deit").with_settings({"optimizer.lrr": "1"})
    with pytest.raises(RecipeError, match="did you mean small-data"):
        get_recipe("smal-data")


def test_settings_are_parsed_as_toml() -> None:
    recipe = get_recipe("deit").with_settings(
        {
            "optimizer.lr": "1e-3",
            "optimizer.clip_norm": "1",
            "augmentation.scale": "[0.2, 1.0]",
            "ema.evaluate": "true",
            "model.variant": "deit-small-patch16-224",
            "model.image_size": "[224, 160]",
            "precision": "fp32",
        }
    )
    assert (recipe.optimizer.lr, recipe.optimizer.clip_norm, recipe.augmentation.scale) == (1e-3, 1.0, (0.2, 1.0))
    assert recipe.ema.evaluate
    assert recipe.image_hw == (224, 160)
    assert recipe.with_settings({"optimizer.clip_norm": "none"}).optimizer.clip_norm is None


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"micro_batch_size": 7},
        {"smoothing": 1.0},
        {"optimizer": {"lr": float("nan")}},
        {"distillation": {"mode": "hard"}},  # the variant has no token
        {"model": {"variant": "deit-tiny-distilled-patch16-224"}},  # a token without a teacher
        {"model": {"variant": "deit-huge"}},
        {"model": {"image_size": 225}},
        {"no_such": 1},
    ],
)
def test_invalid_values_are_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        recipe = get_recipe("deit").replace(**changes)
        _ = recipe.image_hw


def test_convnet_section_replaces_the_transformer() -> None:
    recipe = get_recipe("deit").replace(model=ConvNet(architecture="resnet18").model_dump())
    assert isinstance(recipe.model, ConvNet)
    assert recipe.model.architecture == "resnet18"


def test_mlp_is_four_times_wider() -> None:
    model = Transformer(variant="deit-tiny-patch16-224", hidden_size=96, num_attention_heads=3, image_size=32, patch_size=8)
    assert model.config(("a", "b", "c")).intermediate_size == 384
    assert model.config(("a", "b", "c")).classes == ("a", "b", "c")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_recipe_error(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            Recipe.load(path)
