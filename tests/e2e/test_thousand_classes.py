"""A thousand classes and a teacher, as in the paper: training ends with an evaluation that every command can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit import Predictor, evaluate, train
from deit.checkpoints.model_card import model_card
from deit.data.class_names import imagenet_ids
from deit.export.export import export_model
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.system.files import MAX_JSON_BYTES, read_json
from deit.training import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each class of ImageNet: one for training and one for validation."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for name in imagenet_ids():
        (root / name).mkdir()
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def student(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher that was stopped between its last epoch and its evaluation, and resumed.

    Its first evaluation left a file that is too large to be read.
    """
    root = tmp_path_factory.mktemp("runs")
    recipe = get_recipe("deit-distilled").tiny().replace(epochs=1, batch_size=500, micro_batch_size=250)
    new_timm_classifier("test_resnet", imagenet_ids(), recipe.processor(), {}, 0).save_pretrained(root / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "finish_training", _fail)
        with pytest.raises(KeyboardInterrupt):
            train(photos, recipe, teacher=root / "teacher", out=root / "student", device="cpu", workers=0)
    (root / "student" / "evaluation.json").write_bytes(b"[" + b" " * MAX_JSON_BYTES + b"]")
    train(resume=root / "student", device="cpu", workers=0)
    return root / "student"


def _fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_evaluation_is_complete_and_readable(student: Path) -> None:
    content = read_json(student / "evaluation.json")
    assert (student / "evaluation.json").stat().st_size < 200_000
    assert content["images"] == content["teacher"]["images"] == sum(content["confusion"]["images"]) == 1000
    assert content["classes"] == list(imagenet_ids()) == list(content["per_class"])
    assert set(content["teacher"]["heads"]) == {"class"}
    assert "1,000 images of the validation split" in model_card(student / "best")


def test_report_lists_every_class(student: Path) -> None:
    html = (student / "report.html").read_text("utf-8")
    assert len(html) < 1_000_000
    assert "All 1,000 classes with validation images" in html
    assert all(f'<tr><th scope="row"><bdi>{name}</bdi>' in html for name in imagenet_ids())


def test_model_is_evaluated_exported_and_used(student: Path, photos: Path, tmp_path: Path) -> None:
    result = evaluate(student, photos, device="cpu", workers=0)
    assert (result.images, result.seen and result.seen.left_out) == (1000, 1000)
    assert json.loads(json.dumps(result.to_dict()))["confusion"]["omitted"] == 0
    bundle = export_model(student, tmp_path / "bundle", "torch", calibrate=photos, images=16).bundle
    image = photos / imagenet_ids()[0] / "0.png"
    expected = Predictor.from_pretrained(student, "cpu")([image], top=1000)[0]
    actual = Predictor.from_pretrained(bundle.path, "cpu")([image], top=1000)[0]
    assert set(actual.labels) == set(imagenet_ids())
    np.testing.assert_allclose(sorted(actual.probabilities), sorted(expected.probabilities), atol=1e-5)
    assert evaluate(bundle.path, photos, device="cpu", workers=0).images == 1000
