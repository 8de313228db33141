"""Saved models classify in transformers, 4.57 and the installed 5.x, with the scores that they have here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import deit
from deit.export.conversion import convert
from tests.helpers import pattern, randomized, tiny_deit, tiny_vit
from tests.parity.auto_classes import read_all

ROOT = Path(__file__).parents[2]
PYTHON4 = ROOT / ".venv-transformers4" / "bin" / "python"
SIZES = ((97, 61), (50, 120), (20, 17), (40, 40), (61, 46))  # the last is resized to 47 x 36, so that its crop is off center


def recipe_processor(*arguments: Any, **options: Any) -> deit.DeiTImageProcessor:
    """Returns the image processor of a recipe."""
    return deit.DeiTImageProcessor.for_size(*arguments, **options).replace(crop_rounding=None)


# Name -> model and image processor. All models have inputs of 32 x 32, unless they say otherwise.
MODELS: dict[str, tuple[Any, deit.DeiTImageProcessor]] = {
    "distilled, keep": (lambda: deit.DeiTForImageClassificationWithTeacher(tiny_deit()), recipe_processor(32, 32)),
    "DeiT, squash": (lambda: deit.DeiTForImageClassification(tiny_deit(num_labels=2)), recipe_processor(32, 32, crop="squash")),
    "ViT, keep": (lambda: deit.ViTForImageClassification(tiny_vit()), recipe_processor(32, 32, 1.0)),
    "ViT, its own processor": (lambda: deit.ViTForImageClassification(tiny_vit()), deit.ViTImageProcessor(size=32)),
    "ViT, not square": (
        lambda: deit.ViTForImageClassification(tiny_vit(image_size=(32, 48), patch_size=(16, 8))),
        recipe_processor(32, 48),
    ),
    "distilled, pad": (lambda: deit.DeiTForImageClassificationWithTeacher(tiny_deit()), recipe_processor(32, 32, crop="pad")),
    "distilled, layer scale": (
        lambda: deit.DeiTForImageClassificationWithTeacher(tiny_deit(layer_scale=0.5)),
        recipe_processor(32, 32),
    ),
    "ViT, entries of later versions": (
        lambda: deit.ViTForImageClassification(tiny_vit(some_entry={"a": [1]})),
        deit.DeiTImageProcessor.from_dict(
            {**recipe_processor(32, 32).to_dict(), "value_range": {"integers": [0, 4095]}, "later": 1}
        ),
    ),
}
NAMES = [*MODELS, "from timm", "run"]
WAYS = ["default", "slow", "fast", "pipeline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """The folder that :func:`read_all` reads."""
    root = tmp_path_factory.mktemp("transformers")
    (root / "images").mkdir()
    for index, size in enumerate(SIZES):
        pattern(*size, seed=index).save(root / "images" / f"{index}.png")
    for name, (build, processor) in MODELS.items():
        randomized(build()).save_pretrained(root / "models" / name)
        processor.save_pretrained(root / "models" / name)
    randomized(deit.DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8))).save_pretrained(root / "masked")
    convert(str(root / "models" / "ViT, keep"), root / "timm", "timm")
    convert(str(root / "timm"), root / "models" / "from timm", "transformers")
    sizes = {"patch_size": "8", "hidden_size": "48", "num_hidden_layers": "1", "num_attention_heads": "3", "image_size": "32"}
    settings = {**{f"model.{name}": value for name, value in sizes.items()}, "epochs": "1"}
    run = root / "run"
    deit.train(photo_folder, "deit", out=run, settings=settings, device="cpu", workers=0, skip_unreadable=True)
    (root / "models" / "run").symlink_to(run / "best")
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Version of transformers -> model -> way of loading -> scores."""
    found = {"5": read_all(folder)}
    if PYTHON4.is_file():
        program = Path(__file__).with_name("auto_classes.py")
        environment = {**os.environ, "PYTHONPATH": str(Path(deit.__file__).parents[1])}
        command = [PYTHON4, program, folder, folder / "results.json"]
        subprocess.run(command, check=True, env=environment)
        found["4"] = json.loads((folder / "results.json").read_text())
    return found


def scores(folder: Path, name: str) -> torch.Tensor:
    """Returns the scores of our model and image processor."""
    model = deit.load_model(folder / "models" / name)
    processor = deit.DeiTImageProcessor.from_pretrained(folder / "models" / name)
    images = [Image.open(file) for file in sorted((folder / "images").iterdir())]
    with torch.no_grad():
        logits: torch.Tensor = model(processor(images).pixel_values).logits
    return logits.softmax(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["4", "5"])
def test_scores_are_ours(folder: Path, results: dict[str, dict[str, Any]], version: str, name: str) -> None:
    if version not in results:
        pytest.skip(f"no {PYTHON4}: make .venv-transformers4/test.done")
    ours = scores(folder, name)
    assert ours.std() > 0.01
    for way, theirs in results[version][name].items():
        if version == "4" and name == "distilled, pad" and way in ("slow", "feature extractor"):
            assert "must contain the keys" in theirs  # only the classes that use torchvision can pad
            continue
        pillow = way in ("slow", "pipeline of our objects") or (version == "4" and way != "fast" and name != "distilled, pad")
        assert torch.allclose(torch.tensor(theirs), ours, atol=1e-5 if pillow else 0.02, rtol=0), way


@pytest.mark.parametrize("version", ["4", "5"])
def test_masked_image_model_has_our_weights(folder: Path, results: dict[str, Any], version: str) -> None:
    if version not in results:
        pytest.skip(f"no {PYTHON4}: make .venv-transformers4/test.done")
    model = deit.DeiTForMaskedImageModeling.from_pretrained(folder / "masked")
    expected = sum(tensor.double().abs().sum().item() for tensor in model.state_dict().values())
    assert results[version]["masked"] == pytest.approx(expected)
