"""Export: a bundle is written only if its predictions match the model's, and its report is what was measured."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deit.errors import CheckpointError, DataError, MissingExtraError, UserError, WorkError
from deit.evaluation.evaluate import evaluate
from deit.export import export as export_module
from deit.export import formats, parity
from deit.export.export import ExportResult, default_destination, export_model
from deit.export.parity import Limit
from deit.images.processor import DeiTImageProcessor
from deit.inference import optional_libraries
from deit.inference.bundle import GRAPH_FILES, open_bundle
from deit.inference.inference_model import InferenceModel, count_flops
from deit.inference.predictor import Predictor
from deit.inference.runtimes import available_runtimes
from deit.models.auto import LoadedClassifier
from deit.models.modeling import DeiTForImageClassification, load_model
from deit.models.timm_classifier import TimmClassifier
from deit.system import locking
from deit.system.files import BUNDLE_NAME, PROCESSOR_NAME
from tests.helpers import pattern, randomized, tiny_deit
from tests.unit.inference.conftest import CLASSES, SIDE

IMAGES = [pattern(50 + seed, 44, seed=seed) for seed in range(6)]


def probabilities(path: Path, **options: Any) -> np.ndarray:
    return np.array([row.probabilities for row in Predictor.from_pretrained(path, "cpu", **options)(IMAGES, top=len(CLASSES))])


@pytest.mark.parametrize(
    ("name", "tolerance"), [("openvino_bundle", 1e-5), ("onnx_bundle", 1e-5), ("torch_bundle", 0.01), ("int8_bundle", 0.03)]
)
def test_predictions_of_a_bundle_match_the_model(
    model: Path, name: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    exported: ExportResult = request.getfixturevalue(name)
    np.testing.assert_allclose(probabilities(exported.bundle.path), probabilities(model), atol=tolerance)


@pytest.mark.parametrize("name", ["openvino_bundle", "onnx_bundle", "torch_bundle", "int8_bundle"])
def test_report_holds_the_measurements(model: Path, name: str, request: pytest.FixtureRequest) -> None:
    exported: ExportResult = request.getfixturevalue(name)
    metadata = exported.bundle.metadata
    report = metadata.report
    assert set(report["runtimes"]) == set(exported.parities) == set(available_runtimes(metadata.format))
    assert all(parity["images"] == 8 and 0 <= parity["error"] < 0.2 for parity in report["runtimes"].values())
    assert report["compared_on"].startswith("8 held-out images of")
    assert set(report["images_per_second"]) == {"before", *exported.parities}
    network = load_model(model)
    assert report["bytes"]["before"] == 4 * sum(value.numel() for value in network.parameters())
    assert report["bytes"]["after"] == sum(
        (exported.bundle.path / file).stat().st_size for file in metadata.files if file != PROCESSOR_NAME
    )
    assert exported.to_dict()["precision"] == metadata.precision
    assert open_bundle(exported.bundle.path).metadata == metadata


def test_directory_contains_only_the_bundle(openvino_bundle: ExportResult) -> None:
    path = openvino_bundle.bundle.path
    assert {file.name for file in path.iterdir()} == {BUNDLE_NAME, PROCESSOR_NAME, *GRAPH_FILES["openvino"]}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_int8_weights_are_stored_in_int8(int8_bundle: ExportResult) -> None:
    import onnx

    graph = onnx.load(int8_bundle.bundle.graph).graph
    kinds = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1]
    assert kinds.count(onnx.TensorProto.INT8) >= 2 * 4  # of each layer: qkv, o_proj, fc1, fc2
    assert onnx.TensorProto.FLOAT not in kinds


def test_queries_keys_and_values_are_separate_products(onnx_bundle: ExportResult) -> None:
    nodes = onnx.load(onnx_bundle.bundle.graph).graph.node
    assert "Split" not in {node.op_type for node in nodes}  # 7% of the time of a small int8 model (docs/log.md)


def test_flops_match_a_count_by_hand() -> None:
    """One layer by hand: the last block computes two of 18 tokens."""
    config = tiny_deit(num_hidden_layers=1)
    network = randomized(DeiTForImageClassification(config))
    inference_model = InferenceModel(LoadedClassifier(network, DeiTImageProcessor.for_size(SIDE, SIDE), ("a",) * 5))
    width, tokens, computed = config.hidden_size, config.tokens, 2
    patches = (tokens - 2) * width * 3 * 8 * 8
    attention = computed * width**2 + tokens * 2 * width**2 + 2 * computed * tokens * width + computed * width**2
    mlp = 2 * computed * width * config.intermediate_size
    assert count_flops(inference_model) == 2 * (patches + attention + mlp + width * 5)


def test_failed_parity_check_writes_nothing(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.LIMITS, "fp32", Limit(error=0.0, agreement=1.0))
    with pytest.raises(WorkError, match="nothing was written"):
        export_model(model, tmp_path / "a bundle", "onnx", calibrate=photos)
    assert list(tmp_path.iterdir()) == []


def test_wrong_graph_fails_the_parity_check(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = formats.onnx_model

    def with_swapped_heads(graph: Any) -> Any:
        model = original(graph)
        outputs = model.graph.output
        outputs[0].name, outputs[2].name = outputs[2].name, outputs[0].name
        return model

    monkeypatch.setattr(formats, "onnx_model", with_swapped_heads)
    with pytest.raises(WorkError, match="In fp32 on openvino, the exported model agrees"):
        export_model(model, tmp_path / "a bundle", "onnx", calibrate=photos)
    assert list(tmp_path.iterdir()) == []


def test_failed_export_keeps_the_existing_bundle(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export_model(model, tmp_path / "a bundle", "torch", calibrate=photos)
    before = {file.name: file.read_bytes() for file in first.bundle.path.iterdir()}
    monkeypatch.setitem(parity.LIMITS, "bf16", Limit(error=0.0, agreement=1.0))
    with pytest.raises(WorkError):
        export_model(model, tmp_path / "a bundle", "torch", "bf16", calibrate=photos, overwrite=True)
    assert {file.name: file.read_bytes() for file in first.bundle.path.iterdir()} == before
    monkeypatch.undo()
    second = export_model(model, tmp_path / "a bundle", "torch", "bf16", calibrate=photos, overwrite=True)
    assert open_bundle(second.bundle.path).metadata.precision == "bf16"


def test_second_export_to_the_same_place_is_refused(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export_module._write_graph
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.1)
    refused = []

    def write_while_another_program_tries(*arguments: Any) -> Any:
        with ThreadPoolExecutor(1) as other, pytest.raises(UserError, match=r"Another program is writing to .*a bundle"):
            monkeypatch.setattr(export_module, "_write_graph", write)
            other.submit(export_model, model, tmp_path / "a bundle", "torch", calibrate=photos).result()
        refused.append(True)
        return write(*arguments)

    monkeypatch.setattr(export_module, "_write_graph", write_while_another_program_tries)
    result = export_model(model, tmp_path / "a bundle", "torch", calibrate=photos)
    assert refused == [True]
    assert open_bundle(result.bundle.path).metadata.precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["a bundle"]


INVALID_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"to": "tensorrt"}, "no format 'tensorrt': choose from openvino, onnx, torch"),
    ({"precision": "fp16"}, "no precision 'fp16'"),
    ({"precision": "int8", "calibrate": None}, "pass --calibrate DATA"),
    ({"to": "torch", "precision": "int8"}, "torch runtime does not support int8"),
    ({"to": "onnx", "precision": "bf16"}, "does not support bf16"),
    ({"calibrate": "nowhere at all"}, "nowhere at all"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID_REQUESTS)
def test_invalid_request_is_an_error_before_the_model_runs(
    model: Path, photos: Path, tmp_path: Path, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_reference_logits", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UserError, match=message):
        export_model(model, tmp_path / "a bundle", **{"calibrate": photos, **fields})
    assert list(tmp_path.iterdir()) == []


def test_only_a_bundle_is_replaced(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists"):
        export_model(model, tmp_path, "torch", calibrate=photos)
    with pytest.raises(UserError, match="contains other files than a bundle"):
        export_model(model, tmp_path, "torch", calibrate=photos, overwrite=True)
    with pytest.raises(UserError, match="contains other files than a bundle"):
        export_model(model, model, "torch", calibrate=photos, overwrite=True)
    with pytest.raises(UserError, match="contains other files than a bundle"):
        export_model(model, tmp_path / "thesis.txt", "torch", calibrate=photos, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_missing_library_is_an_error(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_libraries, "version", lambda name: None if name in ("nncf", "openvino") else "1.0")
    assert export_module.default_format() == "onnx"
    for fields in ({"to": "openvino"}, {"to": "onnx", "precision": "int8"}):
        with pytest.raises(MissingExtraError, match=r"pip install 'deit\[inference\]'"):
            export_model(model, tmp_path / "a bundle", calibrate=photos, **fields)  # type: ignore[arg-type]


def test_comparison_without_data_uses_sample_photographs(model: Path, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "a bundle", "torch", images=20)
    assert exported.bundle.metadata.report["compared_on"] == "20 crops of scikit-learn's two sample photographs"


def test_too_few_images_are_an_error(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(4):
        pattern(40, 40, seed=number).save(folder / f"{number}.png")
    with pytest.raises(DataError, match="3 images of few: pass a data set with at least 8"):
        export_model(model, tmp_path / "a bundle", "torch", calibrate=folder)


def test_convolutional_teacher_can_be_exported(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    processor = DeiTImageProcessor.for_size(SIDE, SIDE)
    TimmClassifier("resnet10t", CLASSES, processor).save_pretrained(tmp_path / "a teacher")
    exported = export_model(tmp_path / "a teacher", tmp_path / "a bundle", "onnx", calibrate=photos)
    assert exported.bundle.metadata.heads == ("class",)
    np.testing.assert_allclose(probabilities(exported.bundle.path), probabilities(tmp_path / "a teacher"), atol=1e-5)
    with pytest.raises(UserError, match="pass --to onnx"):
        export_model(tmp_path / "a teacher", tmp_path / "another", "torch", calibrate=photos)


def test_model_that_pads_is_exported_with_normalized_input(model: Path, photos: Path, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "a bundle", "onnx", calibrate=photos, crop="pad")
    assert exported.bundle.metadata.input_dtype == "float32"
    np.testing.assert_allclose(probabilities(exported.bundle.path), probabilities(model, crop="pad"), atol=1e-5)


def test_default_destination_is_named_by_the_run() -> None:
    assert default_destination("runs/flowers/best", "onnx", "int8") == Path("exports/flowers-onnx-int8")
    assert default_destination("owner/name", "openvino", "fp32") == Path("exports/name-openvino-fp32")


def test_evaluation_of_a_bundle_matches_the_model(model: Path, onnx_bundle: ExportResult, tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "data" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(50, 40, seed=number).save(path)
    expected = evaluate(model, tmp_path / "data", workers=0, device="cpu")
    actual = evaluate(onnx_bundle.bundle.path, tmp_path / "data", workers=0, device="cpu")
    assert list(actual.heads) == list(expected.heads)
    np.testing.assert_allclose(actual.confidence, expected.confidence, atol=1e-5)
    np.testing.assert_array_equal(actual.predictions, expected.predictions)
    with pytest.raises(UserError, match="leave --ema and --revision out"):
        evaluate(onnx_bundle.bundle.path, tmp_path / "data", ema=True)


def test_bundle_cannot_be_loaded_for_training(openvino_bundle: ExportResult, torch_bundle: ExportResult) -> None:
    with pytest.raises(CheckpointError, match="is an exported model, which supports only inference"):
        load_model(openvino_bundle.bundle.path)
    assert load_model(torch_bundle.bundle.path).num_labels == len(CLASSES)


def test_to_dict_is_valid_json(openvino_bundle: ExportResult) -> None:
    assert json.loads(json.dumps(openvino_bundle.to_dict()))["bundle"] == str(openvino_bundle.bundle.path)
