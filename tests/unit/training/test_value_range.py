"""A data set of more than 8 bits, from training to evaluation, prediction, conversion and export: one range for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from deit.checkpoints.model_card import model_card
from deit.distillation.teacher import Teacher
from deit.evaluation.evaluate import evaluate
from deit.export.conversion import convert
from deit.export.export import export_model
from deit.inference.predictor import Predictor
from deit.models.auto import load_classifier
from deit.recipes.presets import get_recipe
from deit.training.run import train
from tests.unit.data.test_value_range import KINDS, write_data


@pytest.mark.parametrize("kind", ["12 bits in 16", "signed", "large floats"])
def test_range_travels_with_the_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_values, expected = KINDS[kind]
    assert expected is not None
    data = tmp_path / "data"
    write_data(data, to_values, count=24)
    recipe = get_recipe("deit").tiny().replace(epochs=1)
    result = train(data, recipe, out=tmp_path / "run", device="cpu", workers=0)
    assert f"Images of more than 8 bits: {expected} become black to white" in capsys.readouterr().err
    assert model_card(tmp_path / "run" / "best")

    file = next((data / "bright").iterdir())
    with Image.open(file) as image:
        image.load()
    exact = Predictor.from_pretrained(tmp_path / "run", "cpu", exact=True)
    want = exact(file)
    assert not want.error
    assert evaluate(tmp_path / "run", data, split="all", workers=0).main.top1 is not None
    assert evaluate(tmp_path / "run", data, split="validation", workers=0).main == result.evaluation.main

    convert(tmp_path / "run", tmp_path / "timm", to="timm")
    convert(tmp_path / "run", tmp_path / "copy", to="transformers")
    export_model(tmp_path / "run", tmp_path / "bundle", "torch", images=16, calibrate=data)
    for path in (tmp_path / "timm", tmp_path / "copy", tmp_path / "bundle"):
        predictor = Predictor.from_pretrained(path, "cpu", exact=True)
        assert predictor.processor.file_range == expected
        for item in (file, image):
            assert predictor(item).probabilities == pytest.approx(want.probabilities, abs=1e-4)


def test_range_travels_with_a_teacher(tmp_path: Path) -> None:
    to_values, expected = KINDS["12 bits in 16"]
    write_data(tmp_path / "data", to_values, count=8)
    recipe = get_recipe("convnet").tiny().replace(epochs=1)
    train(tmp_path / "data", recipe, out=tmp_path / "teacher", device="cpu", workers=0)
    classifier = load_classifier(tmp_path / "teacher")
    assert classifier.processor.file_range == expected
    student = get_recipe("deit").tiny().processor()
    teacher = Teacher.load(tmp_path / "teacher", classifier.classes, student)
    assert teacher.for_evaluation() is not None
    file = next((tmp_path / "data" / "bright").iterdir())
    assert not Predictor.from_pretrained(tmp_path / "teacher", "cpu")(file).error
