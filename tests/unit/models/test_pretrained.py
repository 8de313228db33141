"""Layer scale in the model, and folded into its weights wherever another program may read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deit.export.conversion import convert
from deit.inference.predictor import Predictor
from deit.models.modeling import DeiTForImageClassificationWithTeacher, ViTForImageClassification, load_model
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run import train_on
from deit.training.state import latest_checkpoint
from tests.helpers import memory_splits, noise, pattern, randomized, tiny_deit, tiny_vit

KINDS: list[Any] = [
    (DeiTForImageClassificationWithTeacher, tiny_deit, "DeiTForImageClassificationWithTeacher"),
    (ViTForImageClassification, tiny_vit, "ViTForImageClassification"),
]


@pytest.mark.parametrize(("kind", "config", "name"), KINDS)
def test_folded_factors_give_the_same_logits_here_and_in_transformers(
    kind: Any, config: Any, name: str, tmp_path: Path
) -> None:
    model = randomized(kind(config(layer_scale=0.1)))
    x = noise(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(x).logits
        folded = model.without_layer_scale()
        torch.testing.assert_close(folded(x).logits, expected, rtol=1e-5, atol=1e-5)
        assert not any("layer_scale" in key for key in folded.state_dict())
        assert folded.config.layer_scale is None
        assert model.config.layer_scale == 0.1  # the model itself is as it was
        assert torch.equal(model(x).logits, expected)
        model.save_pretrained(tmp_path)
        assert "layer_scale" not in json.loads((tmp_path / "config.json").read_text())
        theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(theirs(x).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(load_model(tmp_path)(x).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_ordinary_model_has_no_trace_of_it(tmp_path: Path) -> None:
    model = ViTForImageClassification(tiny_vit())
    assert model.without_layer_scale() is model
    model.save_pretrained(tmp_path)
    assert "layer_scale" not in (tmp_path / "config.json").read_text()
    assert "layer_scale" not in model.config.to_dict()
    assert tiny_vit(layer_scale=0.5).to_dict()["layer_scale"] == 0.5


def test_a_state_that_is_handed_in_is_folded_too(tmp_path: Path) -> None:
    model, other = (randomized(ViTForImageClassification(tiny_vit(layer_scale=0.1)), seed) for seed in (0, 1))
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(x).logits, other(x).logits, rtol=1e-5, atol=1e-5)


def test_fresh_factors_have_the_recipe_s_value() -> None:
    model = ViTForImageClassification(tiny_vit(layer_scale=0.25))
    for name, value in model.named_parameters():
        if "layer_scale" in name:
            assert value.shape == (2, 24)
            assert bool((value == 0.25).all())


def test_a_run_keeps_the_factors_in_checkpoints_and_folds_them_in_models(tmp_path: Path) -> None:
    recipe = (
        get_recipe("deit3")
        .tiny()
        .replace(optimizer={"warmup_epochs": 0}, ema={"decay": 0.5, "evaluate": True}, model={"layer_scale": 0.5})
    )
    run = train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "run", device="cpu", workers=0).directory
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    x = noise(2, 3, 32, 32)
    weights, average = load_model(checkpoint), load_model(checkpoint, ema=True)
    factors = [model.state_dict()["vit.layers.0.layer_scale"] for model in (weights, average)]
    assert not torch.equal(*factors)
    assert not any((value == 0.5).all() for value in factors)
    last = load_model(run / "last")
    assert last.config.layer_scale is None
    with torch.no_grad():
        torch.testing.assert_close(last(x).logits, average(x).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(weights(x).logits, average(x).logits, rtol=1e-5, atol=1e-5)
        for form in ("transformers", "timm"):
            convert(checkpoint, tmp_path / form, form, ema=True)
            torch.testing.assert_close(load_model(tmp_path / form)(x).logits, last(x).logits, rtol=1e-4, atol=1e-5)
    image = pattern(40, 50)
    answers = [Predictor.from_pretrained(path)([image])[0] for path in (checkpoint, checkpoint / "model.safetensors")]
    assert answers[0].labels == answers[1].labels
