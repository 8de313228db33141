"""torch as a runtime: threads, precisions, and padding of compiled batches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deit.errors import UserError
from deit.inference.inference_model import InferenceModel
from deit.inference.torch_runtime import TorchRuntime
from tests.unit.inference.conftest import CLASSES, random_pixels


def test_compiled_batches_are_padded_to_a_power_of_two(
    inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes = []

    def fake_compile(model: InferenceModel, **_options: object) -> object:
        def forward(batch: torch.Tensor) -> object:
            batch_sizes.append(len(batch))
            return model(batch)

        return forward

    monkeypatch.setattr(torch, "compile", fake_compile)
    runtime = TorchRuntime(inference_model, "cpu", compiled=True)
    assert runtime.name == "torch-compiled"
    for count, padded in ((1, 1), (2, 2), (3, 4), (5, 8), (8, 8)):
        assert runtime(random_pixels(count))["both"].shape == (count, len(CLASSES))
        assert batch_sizes[-1] == padded


def test_calls_from_worker_threads_run_on_one_thread(inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, thread_ids = TorchRuntime(inference_model, "cpu"), set()
    original = runtime._forward

    def forward(batch: torch.Tensor) -> Any:
        thread_ids.add(threading.get_ident())
        return original(batch)

    monkeypatch.setattr(runtime, "_forward", forward)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(runtime, [random_pixels(1)] * 8))) == 8
    assert len(thread_ids) == 1


def test_call_from_the_main_thread_runs_there(inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TorchRuntime(inference_model, "cpu")
    monkeypatch.setattr(runtime._thread, "submit", lambda *_: pytest.fail("another thread ran it"))
    runtime(random_pixels(1))


def test_bf16_leaves_the_model_unchanged(inference_model: InferenceModel) -> None:
    TorchRuntime(inference_model, "cpu", "bf16")(random_pixels(1))
    assert {value.dtype for value in inference_model.parameters()} == {torch.float32}


def test_int8_is_rejected(inference_model: InferenceModel) -> None:
    with pytest.raises(UserError, match="The torch runtime does not support int8: export to openvino or onnx"):
        TorchRuntime(inference_model, "cpu", "int8")
