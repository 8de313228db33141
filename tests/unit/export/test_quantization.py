"""What suffers most in int8 is found by measurement and left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deit.errors import WorkError
from deit.export import formats, quantization
from deit.export.parity import Limit, compare
from deit.inference.graph import Graph
from deit.models.auto import load_classifier
from tests.unit.inference.conftest import SIDE


@pytest.fixture(scope="module")
def network(model: Path) -> Any:
    return formats.onnx_model(Graph(load_classifier(model)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 3, SIDE, SIDE), np.uint8)


def error(network: Any, quantized: Any, images: np.ndarray) -> float:
    return compare(quantization._answers(network, images), quantization._answers(quantized, images)).error


def test_where_all_goes_well_nothing_is_left_out(network: Any, images: np.ndarray) -> None:
    quantized, kept = quantization.quantized(network, images)
    assert kept == ()
    assert 0 < error(network, quantized, images) <= quantization.TARGET.error


def test_where_it_does_not_the_worst_are_left_out(
    network: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = error(network, quantization.quantize(network, images, ()), images)
    monkeypatch.setattr(quantization, "TARGET", Limit(error=0.9 * whole, agreement=0.0))
    quantized, kept = quantization.quantized(network, images)
    assert kept and all(name.startswith("model.") for name in kept)
    assert error(network, quantized, images) <= 0.9 * whole
    assert "looking for what suffers most" in capsys.readouterr().err
    integers = {node.name for node in quantized.graph.node for name in node.input if name.startswith("dq_output")}
    assert not {name.split("(")[-1].rstrip(")") for name in kept} & integers


def test_an_impossible_target_is_no_bundle(network: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "TARGET", Limit(error=0.0, agreement=1.0))
    monkeypatch.setattr(quantization, "_by_gain", lambda model, *_: [model.graph.node[0].name] * 4)
    changed = changed_copy(network)
    monkeypatch.setattr(quantization, "quantize", lambda *_: changed)
    with pytest.raises(WorkError, match="export in bf16, or calibrate"):
        quantization.quantized(network, images)


def changed_copy(network: Any) -> Any:
    """The model with one weight changed."""
    changed = copy.deepcopy(network)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name.endswith("cls_token"))
    values = onnx.numpy_helper.to_array(tensor) + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return changed


def test_parts_are_called_by_their_place_in_the_model(network: Any) -> None:
    products = [node.name for node in network.graph.node if node.op_type in quantization.PRODUCTS]
    names = [quantization.part_name(network, name) for name in products]
    assert names[0].startswith("model.deit.embeddings.patch_embeddings.projection (")
    assert any(name.startswith("model.deit.layers.0.mlp.fc2 (") for name in names)
    assert names[-1].startswith("model.distillation_classifier (")
