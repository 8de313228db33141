"""Quantization measures which operators are sensitive, and excludes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deit.errors import WorkError
from deit.export import formats, quantization
from deit.export.parity import Limit, compare_logits
from deit.inference.inference_model import InferenceModel
from deit.models.auto import load_classifier
from tests.unit.inference.conftest import SIDE


@pytest.fixture(scope="module")
def network(model: Path) -> Any:
    return formats.onnx_model(InferenceModel(load_classifier(model)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 3, SIDE, SIDE), np.uint8)


def error(network: Any, quantized: Any, images: np.ndarray) -> float:
    return compare_logits(quantization._run(network, images), quantization._run(quantized, images)).error


def test_nothing_is_excluded_if_the_error_is_small(network: Any, images: np.ndarray) -> None:
    quantized, kept = quantization.quantize(network, images)
    assert kept == ()
    assert 0 < error(network, quantized, images) <= quantization.TARGET.error


def test_most_sensitive_operators_are_excluded(
    network: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error_without_exclusion = error(network, quantization.run_nncf(network, images, ()), images)
    monkeypatch.setattr(quantization, "TARGET", Limit(error=0.9 * error_without_exclusion, agreement=0.0))
    quantized, kept = quantization.quantize(network, images)
    assert kept and all(name.startswith("model.") for name in kept)
    assert error(network, quantized, images) <= 0.9 * error_without_exclusion
    assert "searching for sensitive operators" in capsys.readouterr().err
    integers = {node.name for node in quantized.graph.node for name in node.input if name.startswith("dq_output")}
    assert not {name.split("(")[-1].rstrip(")") for name in kept} & integers


def test_target_that_is_out_of_reach_is_an_error(network: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "TARGET", Limit(error=0.0, agreement=1.0))
    monkeypatch.setattr(quantization, "_rank_by_sensitivity", lambda model, *_: [model.graph.node[0].name] * 4)
    changed = changed_copy(network)
    monkeypatch.setattr(quantization, "run_nncf", lambda *_: changed)
    with pytest.raises(WorkError, match="export in bf16, or calibrate"):
        quantization.quantize(network, images)


def changed_copy(network: Any) -> Any:
    """Returns the model with one weight changed."""
    changed = copy.deepcopy(network)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name.endswith("cls_token"))
    values = onnx.numpy_helper.to_array(tensor) + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return changed


def test_operators_are_named_by_their_module(network: Any) -> None:
    nodes = [node.name for node in network.graph.node if node.op_type in quantization.MATMUL_OPERATORS]
    names = [quantization.module_name(network, name) for name in nodes]
    assert names[0].startswith("model.deit.embeddings.patch_embeddings.projection (")
    assert any(name.startswith("model.deit.layers.0.mlp.fc2 (") for name in names)
    assert names[-1].startswith("model.distillation_classifier (")
