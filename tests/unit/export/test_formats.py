"""The graph files of each format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from deit.export.formats import INPUT_NAME, onnx_model, write_onnx, write_openvino, write_torch
from deit.inference.bundle import Precision
from deit.inference.inference_model import InferenceModel
from deit.models.auto import load_classifier


@pytest.fixture(scope="module")
def inference_model(model: Path) -> InferenceModel:
    return InferenceModel(load_classifier(model))


def test_onnx_has_the_heads_as_outputs_and_any_batch_size(inference_model: InferenceModel, tmp_path: Path) -> None:
    write_onnx(onnx_model(inference_model), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == [INPUT_NAME]
    assert [entry.name for entry in session.get_outputs()] == list(inference_model.heads)
    for count in (1, 3):
        pixels = inference_model.example_input(count)
        with torch.no_grad():
            expected = inference_model(pixels)
        found = session.run(None, {INPUT_NAME: pixels.numpy()})
        for logits, target in zip(found, expected, strict=True):
            np.testing.assert_allclose(logits, target, atol=1e-4)


def test_openvino_stores_half_precision_weights_for_bf16(inference_model: InferenceModel, tmp_path: Path) -> None:
    graph = onnx_model(inference_model)
    precisions: list[Precision] = ["fp32", "bf16"]
    for precision in precisions:
        (tmp_path / precision).mkdir()
        write_openvino(graph, tmp_path / precision, precision)
    fp32, bf16 = ((tmp_path / precision / "model.bin").stat().st_size for precision in precisions)
    assert bf16 < 0.7 * fp32


def test_torch_weights_have_the_precision(model: Path, tmp_path: Path) -> None:
    classifier = load_classifier(model)
    write_torch(classifier, tmp_path, "bf16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert isinstance(classifier.model, torch.nn.Module)
    assert next(classifier.model.parameters()).dtype == torch.float32
