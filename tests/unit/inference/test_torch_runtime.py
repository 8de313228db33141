"""torch as a runtime: threads, precisions, and padding of compiled batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deit.errors import UserError
from deit.inference.bundle import Precision
from deit.inference.inference_model import InferenceModel, MatmulAttention
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


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def record_threads(runtime: TorchRuntime, monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Returns a set that receives thread and number of compute threads of each call. Each thread waits for another one."""
    threads: set[tuple[int, int]] = set()
    original, both = runtime._forward, threading.Barrier(min(runtime.concurrency, 2))

    def forward(batch: torch.Tensor) -> Any:
        threads.add((threading.get_ident(), torch.get_num_threads()))
        both.wait(timeout=60)
        return original(batch)

    monkeypatch.setattr(runtime, "_forward", forward)
    return threads


def run_in_threads(runtime: TorchRuntime) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(runtime, [random_pixels(1)] * 8))) == 8


@pytest.mark.usefixtures("three_threads")
def test_for_throughput_several_threads_compute_by_themselves(
    inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TorchRuntime(inference_model, "cpu", performance_hint="throughput")
    assert runtime.concurrency == 3
    threads = record_threads(runtime, monkeypatch)
    run_in_threads(runtime)
    assert len(threads) in (2, 3)
    assert {count for _, count in threads} == {1}
    with ThreadPoolExecutor(1) as pool:
        assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (3, 3)


@pytest.mark.usefixtures("three_threads")
def test_for_latency_one_thread_computes_with_all(inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TorchRuntime(inference_model, "cpu", performance_hint="latency")
    assert runtime.concurrency == 1
    threads = record_threads(runtime, monkeypatch)
    run_in_threads(runtime)
    assert [count for _, count in threads] == [3]


def test_call_from_the_main_thread_runs_there(inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TorchRuntime(inference_model, "cpu")
    monkeypatch.setattr(runtime, "_pool", lambda: pytest.fail("another thread ran it"))
    runtime(random_pixels(1))


def test_bf16_leaves_the_model_unchanged(inference_model: InferenceModel) -> None:
    TorchRuntime(inference_model, "cpu", "bf16")(random_pixels(1))
    assert {value.dtype for value in inference_model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "compiled", "expected"), [("bf16", False, True), ("fp32", False, False), ("bf16", True, False)]
)
def test_attention_is_matrix_products_in_bf16(
    inference_model: InferenceModel, monkeypatch: pytest.MonkeyPatch, precision: Precision, compiled: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model: Any = TorchRuntime(inference_model, "cpu", precision, compiled)._forward
    assert any(isinstance(module, MatmulAttention) for module in model.modules()) == expected


def test_int8_is_rejected(inference_model: InferenceModel) -> None:
    with pytest.raises(UserError, match="The torch runtime does not support int8: export to openvino or onnx"):
        TorchRuntime(inference_model, "cpu", "int8")
