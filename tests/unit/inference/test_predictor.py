"""Files, bytes and images to names; a bad one in its place."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deit.errors import CheckpointError, ConfigError, UserError
from deit.export.export import ExportResult
from deit.inference.predictor import Predictor
from deit.inference.runtimes import TORCH_BATCH
from deit.models.modeling import load_model
from tests.helpers import pattern
from tests.unit.inference.conftest import CLASSES


@pytest.fixture(scope="module")
def directory(model: Path) -> Path:
    return model


def test_every_kind_of_input_gives_the_same_answer(directory: Path, tmp_path: Path) -> None:
    image = pattern(50, 40)
    path = tmp_path / "an image.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    predictor = Predictor.from_pretrained(directory, "cpu", exact=True)
    array = np.asarray(image)
    first, *others = predictor(
        [
            path,
            str(path),
            buffer.getvalue(),
            image,
            array,
            np.moveaxis(array, -1, 0),
            torch.from_numpy(array.copy()),
            array / 255,
        ]
    )
    for other in others:
        assert (other.labels, other.probabilities) == (first.labels, first.probabilities)
    assert first.image == str(path)
    assert others[2].image == "image 3"


def test_the_answer_is_the_model_s(directory: Path) -> None:
    image = pattern(50, 40)
    predictor = Predictor.from_pretrained(directory, "cpu")
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


def test_arrays_that_are_no_images_are_errors_in_their_place(directory: Path) -> None:
    bad = [np.full((40, 40, 3), 300.0), np.full((40, 40, 3), np.nan), np.zeros((2, 2, 2, 2)), np.zeros((0, 4, 3))]
    predictions = Predictor.from_pretrained(directory, "cpu")([pattern(30, 30), *bad])
    assert [bool(prediction.error) for prediction in predictions] == [False, True, True, True, True]


def test_a_stream_is_answered_as_it_comes(openvino_bundle: ExportResult) -> None:
    predictor = Predictor.from_pretrained(openvino_bundle.bundle.path)
    images = [pattern(40, 30 + seed, seed=seed) for seed in range(9)]
    expected = predictor(images)
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        for image in itertools.cycle(images):
            taken += 1
            yield image

    stream = predictor.stream(endless())
    found = [next(stream) for _ in range(40)]
    stream.close()  # type: ignore[attr-defined]
    assert [row.labels for row in found] == [expected[place % 9].labels for place in range(40)]
    assert [row.image for row in found] == [f"image {place}" for place in range(40)]
    assert taken < 40 + 20 * predictor.runtime.batch


def test_names_can_be_given(openvino_bundle: ExportResult) -> None:
    predictor = Predictor.from_pretrained(openvino_bundle.bundle.path)
    assert [row.image for row in predictor([pattern(9, 9)] * 3, names=["a", "b"])] == ["a", "b", "image 2"]


def test_a_model_runs_in_bf16_when_asked(directory: Path) -> None:
    image = pattern(50, 40)
    [exact], [low] = (Predictor.from_pretrained(directory, "cpu", precision=name)([image]) for name in ("fp32", "bf16"))
    assert low.probabilities == pytest.approx(exact.probabilities, abs=0.02)
    assert low.probabilities != exact.probabilities


def test_what_does_not_go_with_the_model_is_refused(directory: Path, openvino_bundle: ExportResult) -> None:
    bundle = openvino_bundle.bundle.path
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (directory, {"runtime": "openvino"}, "runs bundles only: `deit export` makes one"),
        (bundle, {"runtime": "torch"}, "torch runs no openvino bundle"),
        (bundle, {"precision": "int8"}, "was exported in fp32: export it with --precision int8"),
        (bundle, {"ema": True}, "leave --ema and --revision out"),
        (bundle, {"revision": "main"}, "leave --ema and --revision out"),
        (bundle, {"crop": "pad"}, "export the model with --crop pad"),
        (bundle, {"device": "cuda"}, "optional library|pass --device cpu"),
    ]
    for path, fields, message in wrong:
        with pytest.raises(UserError, match=message):
            Predictor.from_pretrained(path, **fields)


def test_the_crop_of_a_bundle_can_be_chosen(directory: Path, onnx_bundle: ExportResult) -> None:
    image = pattern(90, 30)
    for crop in ("keep", "squash"):
        [model], [bundle] = (
            Predictor.from_pretrained(path, "cpu", crop, exact=True)([image]) for path in (directory, onnx_bundle.bundle.path)
        )
        assert bundle.probabilities == pytest.approx(model.probabilities, abs=1e-5)


MEMORY = """
import sys
from deit.inference.benchmark import memory
from deit.inference.predictor import Predictor
predictor = Predictor.from_pretrained(sys.argv[1], runtime=sys.argv[2])
files = sys.argv[3:]
def predictions(count):
    for place in range(count // 20):
        predictor((files * 20)[:20])
    return memory()[0]
before = predictions(400)
print(predictions(1000) - before, "torch" in sys.modules)
"""


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_memory_is_flat_over_a_thousand_predictions_and_there_is_no_torch(
    onnx_bundle: ExportResult, tmp_path: Path, runtime: str
) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, file in enumerate(files):
        pattern(300 + number, 200, seed=number).save(file)
    command = [sys.executable, "-c", MEMORY, onnx_bundle.bundle.path, runtime, *files]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=300)
    grown, has_torch = done.stdout.split()
    assert float(grown) < 8  # MiB
    assert has_torch == "False"
