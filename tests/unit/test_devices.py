"""Where the work runs, and in which precision."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Literal

import pytest
import torch

from deit import devices
from deit.devices import autocast, choose_device, choose_precision, describe, keeping_freed_memory
from deit.errors import UserError


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


MEMORY = """
import resource, sys, torch
from deit.devices import keeping_freed_memory

def new_pages():  # that the system hands out while a block of 64 MiB, 16,384 pages of 4 KiB, is used ten times
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

pages = [new_pages()]
with keeping_freed_memory(torch.device("meta")):
    pages.append(new_pages())
with keeping_freed_memory(torch.device("cpu")):
    new_pages()
    pages.append(new_pages())
pages.append(new_pages())
print(*pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_freed_memory_is_kept_until_the_end() -> None:
    # In a process of its own: pytest's own threads have other arenas.
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    before, elsewhere, kept, after = map(int, done.stdout.split())
    assert min(before, elsewhere) > 100_000
    assert kept < 1_000
    # The system had the pages back. How often they go from then on is up to where in the heap the block came to lie.
    assert after > 16_000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda _name: pytest.fail("loaded"))
    with keeping_freed_memory(torch.device("cpu")):
        assert torch.ones(2).sum() == 2


def test_the_hardware_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_name", lambda: "Abacus 3000")
    assert describe(torch.device("cpu")) == f"Abacus 3000, {torch.get_num_threads()} threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe(torch.device("cuda", 1)) == "GPU 1"
