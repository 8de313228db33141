"""Predictor: kinds of input, order and names, unreadable images, options, and memory."""

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

from deit.errors import CheckpointError, ConfigError, ImageError, UserError
from deit.export.export import ExportResult
from deit.inference.predictor import Predictor
from deit.inference.runtimes import TORCH_BATCH_SIZE
from deit.models.modeling import load_model
from tests.helpers import pattern
from tests.unit.inference.conftest import CLASSES


def test_all_kinds_of_input_give_the_same_prediction(model: Path, tmp_path: Path) -> None:
    image = pattern(50, 40)
    path = tmp_path / "an image.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    predictor = Predictor.from_pretrained(model, "cpu", exact=True)
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


def test_prediction_matches_the_model(model: Path) -> None:
    image = pattern(50, 40)
    predictor = Predictor.from_pretrained(model, "cpu")
    probabilities = load_model(model)(predictor.processor(image).pixel_values).logits.softmax(-1)[0]
    [prediction] = predictor([image], top=2)
    assert prediction.labels[0] == CLASSES[int(probabilities.argmax())]
    assert prediction.probabilities == pytest.approx(sorted(probabilities.tolist(), reverse=True)[:2], abs=1e-5)


def test_crop_changes_the_prediction(model: Path) -> None:
    image = pattern(90, 30)
    probabilities = {}
    crops: list[Any] = [None, "keep", "squash", "pad"]
    for crop in crops:
        predictor = Predictor.from_pretrained(model, "cpu", crop)
        assert predictor.processor.input_hw == (32, 32)
        probabilities[crop] = predictor([image])[0].probabilities
    assert probabilities[None] == probabilities["keep"]  # the model's own
    assert len(set(probabilities.values())) == 3
    with pytest.raises(ConfigError, match="Unknown crop 'middle'"):
        Predictor.from_pretrained(model, "cpu", "middle")  # type: ignore[arg-type]


def test_batches_keep_the_order_and_an_unreadable_image_is_one_error(model: Path) -> None:
    images: list[Image.Image | bytes] = [pattern(30 + i, 40, seed=i) for i in range(3 * TORCH_BATCH_SIZE + 5)]
    predictor = Predictor.from_pretrained(model, "cpu")
    single = [predictor([image])[0].probabilities for image in images]
    unreadable = (3, len(images) - 1)
    images[3], images[-1] = b"rubbish", b""
    predictions = predictor(images)
    assert [bool(prediction.error) for prediction in predictions] == [index in unreadable for index in range(len(images))]
    for index, prediction in enumerate(predictions):
        if not prediction.error:
            assert prediction.probabilities == pytest.approx(single[index], abs=1e-5)
    assert predictions[3].to_dict().keys() == {"image", "error"}


def test_no_readable_image(model: Path) -> None:
    [prediction] = Predictor.from_pretrained(model, "cpu")([b"rubbish"])
    assert "not an image" in prediction.error
    assert Predictor.from_pretrained(model, "cpu")([]) == []


def test_gradients_stay_enabled_outside(model: Path) -> None:
    assert torch.is_grad_enabled()
    Predictor.from_pretrained(model, "cpu")([pattern(8, 8)])
    assert torch.is_grad_enabled()


def test_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor.from_pretrained(tmp_path / "nothing here")


def sideways(folder: Path) -> Path:
    tags = Image.Exif()
    tags[0x0112] = 6
    pattern(90, 50).save(folder / "sideways.png", exif=tags)
    return folder / "sideways.png"


@pytest.mark.parametrize("exact", [True, False])
def test_one_image_gives_one_prediction_whatever_it_is_passed_as(model: Path, tmp_path: Path, exact: bool) -> None:
    """A file, and what a user opens from it, have the same prediction; the photo is sideways."""
    path = sideways(tmp_path)
    predictor = Predictor.from_pretrained(model, "cpu", exact=exact)
    [expected] = predictor([path])
    upright = np.rot90(np.asarray(pattern(90, 50)), -1).copy()
    with path.open("rb") as file, Image.open(path) as image:
        inputs: list[Any] = [
            path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()),
            io.BytesIO(path.read_bytes()), file, image, upright, torch.from_numpy(upright),
        ]  # fmt: skip
        for item in inputs:
            prediction = predictor(item)
            assert prediction.labels == expected.labels, type(item)
            assert prediction.probabilities == pytest.approx(expected.probabilities, abs=0 if exact else 0.02)
    assert expected.image == str(path)
    assert predictor(str(path), names="a name").image == "a name"


def test_several_images_give_a_list(model: Path, tmp_path: Path) -> None:
    path = sideways(tmp_path)
    predictor = Predictor.from_pretrained(model, "cpu")
    upright = np.rot90(np.asarray(pattern(90, 50)), -1).copy()
    several: list[Any] = [
        [path, path], (path, str(path)), (path for _ in range(2)), iter([path, path]), {path: 1, str(path): 2}.keys(),
        np.stack([upright, upright]), torch.from_numpy(np.stack([upright, upright])),
    ]  # fmt: skip
    for images in several:
        assert [prediction.labels for prediction in predictor(images)] == [predictor(path).labels] * 2
    assert predictor([]) == []


def test_what_is_not_an_image_is_one_error_in_its_place(model: Path, tmp_path: Path) -> None:
    path = sideways(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    predictor = Predictor.from_pretrained(model, "cpu")
    with (tmp_path / "a.txt").open() as text, path.open("rb") as closed:
        closed.close()
        wrong: dict[str, Any] = {
            "is a URL: download": "https://example.org/a.jpg",
            "open it with": text,
            "cannot be read": closed,
            "A list is not an image": [path],
            "NoneType is not an image": None,
            "does not exist": "no such file.jpg",
        }
        for message, item in wrong.items():
            first, second = predictor([item, path])
            assert message in first.error
            assert second.labels
    assert "is a URL" in predictor("HTTP://example.org/a.jpg").error
    for neither in (None, 3):
        with pytest.raises(ImageError, match="is not an image: pass a path"):
            predictor(neither)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="takes several images"):
        next(predictor.stream("a.jpg"))


def test_arrays_of_more_than_8_bits_are_converted_as_their_files(model: Path, tmp_path: Path) -> None:
    values = np.asarray(pattern(60, 50).convert("L")).astype(np.uint16) * 16
    Image.fromarray(values).save(tmp_path / "a.png")
    predictor = Predictor.from_pretrained(model, "cpu", exact=True)
    inputs: list[Any] = [values, values[..., None], values.astype(np.int32), Image.fromarray(values), tmp_path / "a.png"]
    assert all(prediction.error for prediction in predictor(inputs))
    predictor.processor.value_range = {"integers": [0, 4080]}
    expected = predictor(pattern(60, 50).convert("L"))
    for item in inputs:
        assert predictor(item).probabilities == expected.probabilities
    predictor.processor.value_range = {"floats": [0, 16]}
    scaled = values / np.float32(255)
    assert predictor(scaled).probabilities == pytest.approx(expected.probabilities, abs=1e-3)


def test_invalid_arrays_are_errors(model: Path) -> None:
    invalid = [np.full((40, 40, 3), 300.0), np.full((40, 40, 3), np.nan), np.zeros((2, 2, 2, 2)), np.zeros((0, 4, 3))]
    predictions = Predictor.from_pretrained(model, "cpu")([pattern(30, 30), *invalid])
    assert [bool(prediction.error) for prediction in predictions] == [False, True, True, True, True]


def test_stream_is_lazy(openvino_bundle: ExportResult) -> None:
    predictor = Predictor.from_pretrained(openvino_bundle.bundle.path)
    images = [pattern(40, 30 + seed, seed=seed) for seed in range(9)]
    expected = predictor(images)
    consumed = 0

    def infinite() -> Iterator[Any]:
        nonlocal consumed
        for image in itertools.cycle(images):
            consumed += 1
            yield image

    stream = predictor.stream(infinite())
    predictions = [next(stream) for _ in range(40)]
    stream.close()  # type: ignore[attr-defined]
    assert [row.labels for row in predictions] == [expected[index % 9].labels for index in range(40)]
    assert [row.image for row in predictions] == [f"image {index}" for index in range(40)]
    assert consumed < 40 + 20 * predictor.runtime.batch_size


def test_names_of_images(openvino_bundle: ExportResult) -> None:
    predictor = Predictor.from_pretrained(openvino_bundle.bundle.path)
    assert [row.image for row in predictor([pattern(9, 9)] * 3, names=["a", "b"])] == ["a", "b", "image 2"]


def test_bf16_is_close_to_fp32(model: Path) -> None:
    image = pattern(50, 40)
    [fp32], [bf16] = (Predictor.from_pretrained(model, "cpu", precision=name)([image]) for name in ("fp32", "bf16"))
    assert bf16.probabilities == pytest.approx(fp32.probabilities, abs=0.02)
    assert bf16.probabilities != fp32.probabilities


def test_options_that_do_not_fit_the_model_are_errors(model: Path, openvino_bundle: ExportResult) -> None:
    bundle = openvino_bundle.bundle.path
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (model, {"runtime": "openvino"}, "runs only bundles: make one with `deit export`"),
        (bundle, {"runtime": "torch"}, "torch does not run openvino bundles"),
        (bundle, {"precision": "int8"}, "was exported in fp32: export it with --precision int8"),
        (bundle, {"ema": True}, "leave --ema and --revision out"),
        (bundle, {"revision": "main"}, "leave --ema and --revision out"),
        (bundle, {"crop": "pad"}, "export the model with --crop pad"),
        (bundle, {"device": "cuda"}, "optional library|pass --device cpu"),
    ]
    for path, options, message in wrong:
        with pytest.raises(UserError, match=message):
            Predictor.from_pretrained(path, **options)


def test_crop_of_a_bundle(model: Path, onnx_bundle: ExportResult) -> None:
    image = pattern(90, 30)
    for crop in ("keep", "squash"):
        [expected], [prediction] = (
            Predictor.from_pretrained(path, "cpu", crop, exact=True)([image]) for path in (model, onnx_bundle.bundle.path)
        )
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


MEMORY_GROWTH = """
import sys
from deit.inference.benchmark import resident_memory
from deit.inference.predictor import Predictor
from deit.system.malloc import retain_freed_memory
retain_freed_memory()
predictor = Predictor.from_pretrained(sys.argv[1], runtime=sys.argv[2])
files = sys.argv[3:]
def memory_after(count):
    for _ in range(count // 20):
        predictor((files * 20)[:20])
    return resident_memory()[0]
before = memory_after(400)
print(memory_after(1000) - before, "torch" in sys.modules)
"""


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_memory_is_constant_over_a_thousand_predictions_without_torch(
    onnx_bundle: ExportResult, tmp_path: Path, runtime: str
) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, file in enumerate(files):
        pattern(300 + number, 200, seed=number).save(file)
    command = [sys.executable, "-c", MEMORY_GROWTH, onnx_bundle.bundle.path, runtime, *files]
    done = subprocess.run([str(argument) for argument in command], check=True, capture_output=True, text=True, timeout=300)
    growth_mib, has_torch = done.stdout.split()
    assert float(growth_mib) < 8
    assert has_torch == "False"
