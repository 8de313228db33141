"""Runtimes: equal logits, concurrent calls, cached graphs, and unreadable graphs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from deit.errors import CheckpointError, MissingExtraError
from deit.export.export import ExportResult
from deit.inference import optional_libraries, runtimes
from deit.inference.bundle import Bundle, open_bundle
from deit.inference.inference_model import InferenceModel
from deit.inference.loading import load_runtime
from deit.inference.runtimes import OnnxRuntime, OpenVinoRuntime, PerformanceHint, RuntimeName, available_runtimes
from deit.system.hardware import cores
from tests.unit.inference.conftest import CLASSES, HEADS, random_pixels

FORMATS_AND_RUNTIMES: list[tuple[str, RuntimeName, float]] = [
    ("openvino", "openvino", 1e-4),
    ("onnx", "openvino", 1e-4),
    ("onnx", "onnxruntime", 1e-4),
    ("torch", "torch", 0.05),  # in bf16
]


@pytest.mark.parametrize("performance_hint", ["latency", "throughput"])
@pytest.mark.parametrize(("format", "name", "tolerance"), FORMATS_AND_RUNTIMES)
def test_logits_of_all_heads_for_any_batch_size(
    bundles: dict[str, Bundle],
    inference_model: InferenceModel,
    format: str,
    name: RuntimeName,
    tolerance: float,
    performance_hint: PerformanceHint,
) -> None:
    runtime = load_runtime(bundles[format], name, performance_hint=performance_hint)
    assert (runtime.name, runtime.device, runtime.heads) == (name, "cpu", HEADS)
    for count in (1, 2, 5):
        with torch.inference_mode():
            expected = inference_model(torch.from_numpy(random_pixels(count)))
        outputs = runtime(random_pixels(count))
        assert tuple(outputs) == HEADS
        for logits, expected_logits in zip(outputs.values(), expected, strict=True):
            assert logits.shape == (count, len(CLASSES)) and logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected_logits.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("format", "name", "tolerance"), FORMATS_AND_RUNTIMES)
def test_concurrent_calls_do_not_mix(bundles: dict[str, Bundle], format: str, name: RuntimeName, tolerance: float) -> None:
    runtime = load_runtime(bundles[format], name, performance_hint="throughput")
    expected = [runtime(random_pixels(1 + index % 4))["both"] for index in range(24)]
    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda index: runtime(random_pixels(1 + index % 4))["both"], range(24)))
    for logits, expected_logits in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(logits, expected_logits, rtol=tolerance, atol=tolerance)


SIMULTANEOUS_FIRST_CALLS = """
import sys
import threading
from pathlib import Path
import numpy as np
from deit.inference.runtimes import OpenVinoRuntime
sys.setswitchinterval(1e-6)  # switch threads as often as possible
runtime = OpenVinoRuntime(Path(sys.argv[1]), ("class", "distillation", "both"), "fp32", "throughput")
barrier = threading.Barrier(8)
def first_call():
    barrier.wait()
    runtime(np.zeros((1, 3, 32, 32), np.uint8))
threads = [threading.Thread(target=first_call) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_simultaneous_first_calls_do_not_deadlock(onnx_bundle: ExportResult) -> None:
    # OpenVINO alone deadlocks in three of four such programs.
    for _ in range(3):
        subprocess.run([sys.executable, "-c", SIMULTANEOUS_FIRST_CALLS, onnx_bundle.bundle.graph], check=True, timeout=60)


INTERRUPT_AFTER_PREDICTORS = """
import faulthandler, os, signal, sys
from pathlib import Path
from deit.inference.runtimes import OpenVinoRuntime
faulthandler.enable()  # as pytest does: handlers run on a stack of their own
runtimes = [OpenVinoRuntime(Path(sys.argv[1]), ("class", "distillation", "both"), "fp32") for _ in range(3)]
while runtimes:
    del runtimes[0]
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(5)
"""


def test_interrupt_after_predictors_are_gone(onnx_bundle: ExportResult) -> None:
    # Where each has a core of its own, the signal is a segmentation fault.
    program = [sys.executable, "-c", INTERRUPT_AFTER_PREDICTORS, str(onnx_bundle.bundle.graph)]
    assert subprocess.run(program, timeout=60).returncode == 5


def test_output_is_not_overwritten_by_the_next_call(bundles: dict[str, Bundle]) -> None:
    runtime = load_runtime(bundles["openvino"], "openvino")
    first = runtime(random_pixels(2))["both"]
    copied = first.copy()
    runtime(random_pixels(2)[::-1].copy())
    np.testing.assert_array_equal(first, copied)


def test_throughput_runs_one_call_per_core(bundles: dict[str, Bundle]) -> None:
    names: tuple[tuple[str, RuntimeName], ...] = (("openvino", "openvino"), ("onnx", "onnxruntime"))
    for format, name in names:
        assert load_runtime(bundles[format], name, performance_hint="throughput").concurrency == cores()
        assert load_runtime(bundles[format], name, performance_hint="latency").concurrency == 1


@pytest.mark.parametrize(("format", "name", "tolerance"), FORMATS_AND_RUNTIMES)
def test_another_performance_hint(bundles: dict[str, Bundle], format: str, name: RuntimeName, tolerance: float) -> None:
    throughput = load_runtime(bundles[format], name, performance_hint="throughput")
    latency = throughput.with_performance_hint("latency")
    assert (latency.name, latency.concurrency) == (name, 1)
    assert latency.with_performance_hint("throughput").concurrency == throughput.concurrency
    pixels = random_pixels(3)
    np.testing.assert_allclose(latency(pixels)["both"], throughput(pixels)["both"], atol=tolerance)


def test_another_performance_hint_of_a_graph_that_was_replaced(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(bundles["openvino"].path, tmp_path / "bundle"))
    runtime = load_runtime(bundle, "openvino")
    os.utime(bundle.graph, (1, 1))
    with pytest.raises(CheckpointError, match="was replaced"):
        runtime.with_performance_hint("throughput")


def test_large_graph_runs_one_call_at_a_time(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "MAX_CONCURRENT_BYTES", 1000)
    assert load_runtime(bundles["openvino"], "openvino", performance_hint="throughput").concurrency == 1


def test_least_recently_used_compiled_graphs_are_removed(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtimes, "MAX_CACHED_GRAPHS", 2)
    cache = tmp_path / "openvino"
    foreign = cache / "a model of mine"
    foreign.mkdir(parents=True)
    os.utime(foreign, (0, 0))
    first, second, third = (character * 32 for character in "abc")
    for age, name in ((3, second), (2, first)):
        (cache / name).mkdir()
        (cache / name / "1.blob").write_bytes(b"compiled")
        os.utime(cache / name, (time.time() - age, time.time() - age))
    OpenVinoRuntime(bundles["openvino"].graph, HEADS, "fp32", cache_key=third)
    assert {path.name for path in cache.iterdir()} == {foreign.name, first, third}


def test_runs_without_a_writable_cache(bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino").write_text("a file in place of the folder")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    assert load_runtime(bundles["openvino"], "openvino")(random_pixels(1))["both"].shape == (1, len(CLASSES))


def test_corrupt_graph_is_an_error(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.xml"):
        path = tmp_path / name
        path.write_bytes(b"\x00rubbish")
        with pytest.raises(CheckpointError, match="OpenVINO cannot run"):
            OpenVinoRuntime(path, HEADS, "fp32")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run"):
        OnnxRuntime(tmp_path / "model.onnx", HEADS)


def test_graph_with_other_heads_is_an_error(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(CheckpointError, match="has 3 outputs"):
        OpenVinoRuntime(bundles["openvino"].graph, ("class",), "fp32")


def test_only_installed_runtimes_are_available(monkeypatch: pytest.MonkeyPatch, bundles: dict[str, Bundle]) -> None:
    assert available_runtimes("onnx") == ("openvino", "onnxruntime")
    assert available_runtimes("onnx", "cuda") == ("onnxruntime",)
    monkeypatch.setattr(optional_libraries, "version", lambda name: None if name == "openvino" else "1.0")
    assert available_runtimes("onnx") == ("onnxruntime",)
    assert available_runtimes("openvino") == ()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "openvino")
    with pytest.raises(MissingExtraError, match=r"pip install 'deit\[inference\]'"):
        load_runtime(bundles["openvino"], "openvino")
