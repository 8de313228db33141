"""Conformance with a public client of the Open Inference Protocol: tritonclient against `deit serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.http_load import ServerProgram
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deit.inference.predictor import Predictor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomized, tiny_deit

NAME = "the model"
HEADS = ("class", "distillation", "both")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder") / NAME
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), 0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[InferenceServerClient]:
    with ServerProgram(model) as server, InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.from_pretrained(model, "cpu")


@pytest.fixture(scope="module")
def pixels(predictor: Predictor) -> np.ndarray:
    return np.stack([predictor.preprocess(pattern(60, 40, number)) for number in range(3)])


def given_input(pixels: np.ndarray, is_binary: bool) -> InferInput:
    found = InferInput("pixels", list(pixels.shape), "UINT8")
    found.set_data_from_numpy(pixels, binary_data=is_binary)
    return found


def test_server_and_model(client: InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(NAME) and client.is_model_ready(NAME, "1")
    assert not client.is_model_ready("another model")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata(NAME)
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 32, 32]}]
    assert metadata["outputs"] == [{"name": head, "datatype": "FP32", "shape": [-1, 5]} for head in HEADS]


@pytest.mark.parametrize("binary_output", [False, True])
@pytest.mark.parametrize("binary_input", [False, True])
def test_logits_are_those_of_the_predictor(
    client: InferenceServerClient, predictor: Predictor, pixels: np.ndarray, binary_input: bool, binary_output: bool
) -> None:
    outputs = [InferRequestedOutput(head, binary_data=binary_output) for head in ("both", "class")]
    result = client.infer(NAME, [given_input(pixels, binary_input)], outputs=outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    expected = predictor.runtime(pixels)
    for head in ("both", "class"):
        np.testing.assert_allclose(result.as_numpy(head), expected[head], rtol=1e-4, atol=1e-5)
    assert result.as_numpy("distillation") is None


def test_all_outputs_by_default(client: InferenceServerClient, predictor: Predictor, pixels: np.ndarray) -> None:
    result = client.infer(NAME, [given_input(pixels, is_binary=True)], model_version="1")
    expected = predictor.runtime(pixels)
    for head in HEADS:
        np.testing.assert_allclose(result.as_numpy(head), expected[head], rtol=1e-4, atol=1e-5)


def test_reasons_reach_the_client(client: InferenceServerClient, pixels: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match="choose from the model"):
        client.get_model_metadata("another model")
    with pytest.raises(InferenceServerException, match=r"has the shape \[-1, 3, 32, 32\]"):
        client.infer(NAME, [given_input(pixels[:, :, 1:], is_binary=True)])
    with pytest.raises(InferenceServerException, match="choose from class, distillation, both"):
        client.infer(NAME, [given_input(pixels, is_binary=True)], outputs=[InferRequestedOutput("other")])
