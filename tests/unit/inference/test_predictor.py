"""Files, bytes and images to names; a bad one in its place."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deit.errors import CheckpointError, ConfigError
from deit.image_processor import DeiTImageProcessor
from deit.inference.predictor import Predictor
from deit.inference.runtimes import TORCH_BATCH
from deit.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomised, tiny_deit

CLASSES = ("golden retriever", "кошка", "鳥")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a model")
    randomised(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1).save_pretrained(path)
    DeiTImageProcessor.for_size(32, 32).save_pretrained(path)
    return path


def test_every_kind_of_input_gives_the_same_answer(directory: Path, tmp_path: Path) -> None:
    image = pattern(50, 40)
    path = tmp_path / "an image.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    predictor = Predictor.from_pretrained(directory, "cpu")
    first, *others = predictor([path, str(path), buffer.getvalue(), image])
    for other in others:
        assert (other.labels, other.probabilities) == (first.labels, first.probabilities)
    assert first.image == str(path)
    assert others[-1].image == "image 3"


def test_the_answer_is_the_model_s(directory: Path) -> None:
    image = pattern(50, 40)
    predictor = Predictor.from_pretrained(directory, "cpu")
    from deit.modeling import load_model

    logits = load_model(directory)(predictor.processor(image).pixel_values).logits.softmax(-1)[0]
    [prediction] = predictor([image], top=2)
    assert prediction.labels[0] == CLASSES[int(logits.argmax())]
    assert prediction.probabilities == pytest.approx(sorted(logits.tolist(), reverse=True)[:2], abs=1e-5)


def test_the_crop_can_be_chosen(directory: Path) -> None:
    image = pattern(90, 30)
    answers = {}
    crops: list[Any] = [None, "keep", "squash", "pad"]
    for crop in crops:
        predictor = Predictor.from_pretrained(directory, "cpu", crop)
        assert predictor.processor.input_hw == (32, 32)
        answers[crop] = predictor([image])[0].probabilities
    assert answers[None] == answers["keep"]  # the model's own
    assert len({tuple(shares) for shares in answers.values()}) == 3
    with pytest.raises(ConfigError, match="no crop 'middle'"):
        Predictor.from_pretrained(directory, "cpu", "middle")  # type: ignore[arg-type]


def test_order_is_kept_over_batches_and_a_bad_image_is_one_error_in_its_place(directory: Path) -> None:
    images: list[Image.Image | bytes] = [pattern(30 + i, 40, seed=i) for i in range(3 * TORCH_BATCH + 5)]
    predictor = Predictor.from_pretrained(directory, "cpu")
    alone = [predictor([image])[0].probabilities for image in images]
    images[3], images[-1] = b"rubbish", b""
    predictions = predictor(images)
    assert [bool(prediction.error) for prediction in predictions] == [
        place in (3, len(images) - 1) for place in range(len(images))
    ]
    for place, prediction in enumerate(predictions):
        if not prediction.error:
            assert prediction.probabilities == pytest.approx(alone[place], abs=1e-5)
    assert predictions[3].to_dict().keys() == {"image", "error"}


def test_nothing_readable_is_no_crash(directory: Path) -> None:
    [prediction] = Predictor.from_pretrained(directory, "cpu")([b"rubbish"])
    assert "not an image" in prediction.error
    assert Predictor.from_pretrained(directory, "cpu")([]) == []


def test_no_gradient_is_kept(directory: Path) -> None:
    assert torch.is_grad_enabled()
    Predictor.from_pretrained(directory, "cpu")([pattern(8, 8)])
    assert torch.is_grad_enabled()


def test_a_missing_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor.from_pretrained(tmp_path / "nothing here")
