"""Devices and numerical precision."""

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
def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch, gpu: bool, apple: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert choose_device("auto").type == expected


def test_device_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x", "mps:7" if not torch.backends.mps.is_available() else "gpu"])
def test_unavailable_device_is_reported(name: str) -> None:
    with pytest.raises(UserError, match=f"There is no device '{name}' on this machine: pass --device auto, or cpu"):
        choose_device(name)


@pytest.mark.parametrize(("has_instructions", "expected"), [(True, "bf16"), (False, "fp32")])
def test_cpu_uses_bf16_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool, expected: str
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda: has_instructions)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_gpu_uses_bf16_only_in_hardware(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_precision_by_name(name: Literal["fp32", "bf16"]) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


def test_autocast_leaves_weights_in_fp32() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_description_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_name", lambda: "Abacus 3000")
    for threads, text in [(1, "Abacus 3000, 1 thread"), (2, "Abacus 3000, 2 threads")]:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert describe(torch.device("cpu")) == text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe(torch.device("cuda", 1)) == "GPU 1"
