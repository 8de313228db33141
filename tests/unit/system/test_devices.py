"""Where the work runs, and in which precision."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from deit.errors import UserError
from deit.system import devices
from deit.system.devices import autocast, choose_device, choose_precision, describe


@pytest.mark.parametrize(
    ("gpu", "apple", "expected"), [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_is_taken(monkeypatch: pytest.MonkeyPatch, gpu: bool, apple: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert choose_device("auto").type == expected


def test_a_device_is_taken_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x", "mps:7" if not torch.backends.mps.is_available() else "gpu"])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"There is no device '{name}' here: pass --device auto, or cpu"):
        choose_device(name)


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_processor_computes_in_bf16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, has: bool, expected: str
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda: has)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_only_in_hardware(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_asked_for_is_taken(name: Literal["fp32", "bf16"]) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


def test_products_are_in_the_precision_and_weights_stay() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_the_hardware_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_name", lambda: "Abacus 3000")
    assert describe(torch.device("cpu")) == f"Abacus 3000, {torch.get_num_threads()} threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe(torch.device("cuda", 1)) == "GPU 1"
