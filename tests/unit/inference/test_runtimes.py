"""Every runtime gives the same answers, and says what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deit.errors import CheckpointError, MissingExtraError, UserError
from deit.export.export import ExportResult
from deit.inference import libraries, runtimes
from deit.inference.bundle import Bundle
from deit.inference.graph import Graph
from deit.inference.loading import open_runtime
from deit.inference.runtimes import OnnxRuntime, OpenVinoRuntime, RuntimeName, Work, usable
from deit.inference.torch_runtime import TorchRuntime
from deit.models.auto import load_classifier
from deit.system.hardware import cores
from tests.unit.inference.conftest import CLASSES, SIDE

HEADS = ("class", "distillation", "both")


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)


@pytest.fixture(scope="module")
def graph(model: Path) -> Graph:
    return Graph(load_classifier(model))


@pytest.fixture
def bundles(openvino_bundle: ExportResult, onnx_bundle: ExportResult, torch_bundle: ExportResult) -> dict[str, Bundle]:
    return {exported.bundle.facts.format: exported.bundle for exported in (openvino_bundle, onnx_bundle, torch_bundle)}


RUNS: list[tuple[str, RuntimeName, float]] = [
    ("openvino", "openvino", 1e-4),
    ("onnx", "openvino", 1e-4),
    ("onnx", "onnxruntime", 1e-4),
    ("torch", "torch", 0.05),  # in bf16
]


@pytest.mark.parametrize("work", ["latency", "throughput"])
@pytest.mark.parametrize(("form", "name", "tolerance"), RUNS)
def test_all_heads_come_out_for_any_number_of_images(
    bundles: dict[str, Bundle], graph: Graph, form: str, name: RuntimeName, tolerance: float, work: Work
) -> None:
    runtime = open_runtime(bundles[form], name, work=work)
    assert (runtime.name, runtime.device, runtime.heads) == (name, "cpu", HEADS)
    for count in (1, 2, 5):
        with torch.inference_mode():
            expected = graph(torch.from_numpy(noise(count)))
        found = runtime(noise(count))
        assert tuple(found) == HEADS
        for head, logits in zip(found.values(), expected, strict=True):
            assert head.shape == (count, len(CLASSES)) and head.dtype == np.float32
            np.testing.assert_allclose(head, logits.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("form", "name", "tolerance"), RUNS)
def test_calls_from_many_threads_do_not_mix(bundles: dict[str, Bundle], form: str, name: RuntimeName, tolerance: float) -> None:
    runtime = open_runtime(bundles[form], name, work="throughput")
    alone = [runtime(noise(1 + place % 4))["both"] for place in range(24)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda place: runtime(noise(1 + place % 4))["both"], range(24)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


FIRST_CALLS = """
import sys
import threading
from pathlib import Path
import numpy as np
from deit.inference.runtimes import OpenVinoRuntime
sys.setswitchinterval(1e-6)  # threads take turns as often as can be
runtime = OpenVinoRuntime(Path(sys.argv[1]), ("class", "distillation", "both"), "fp32", "throughput")
together = threading.Barrier(8)
def first_call():
    together.wait()
    runtime(np.zeros((1, 3, 32, 32), np.uint8))
threads = [threading.Thread(target=first_call) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_calls_may_come_from_many_threads_at_once(onnx_bundle: ExportResult) -> None:
    # OpenVINO alone stands still in three of four such programs.
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FIRST_CALLS, onnx_bundle.bundle.graph], check=True, timeout=60)


def test_an_answer_is_not_overwritten_by_the_next(bundles: dict[str, Bundle]) -> None:
    runtime = open_runtime(bundles["openvino"], "openvino")
    first = runtime(noise(2))["both"]
    kept = first.copy()
    runtime(noise(2)[::-1].copy())
    np.testing.assert_array_equal(first, kept)


def test_throughput_has_a_call_for_each_core(bundles: dict[str, Bundle]) -> None:
    for form, name in (("openvino", "openvino"), ("onnx", "onnxruntime")):
        assert open_runtime(bundles[form], name, work="throughput").calls == cores()  # type: ignore[arg-type]
        assert open_runtime(bundles[form], name, work="latency").calls == 1  # type: ignore[arg-type]


def test_a_graph_too_large_for_the_caches_has_one_call(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "CACHED_BYTES", 1000)
    assert open_runtime(bundles["openvino"], "openvino", work="throughput").calls == 1


def test_what_a_runtime_cannot_run_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(UserError, match="onnxruntime runs no openvino bundle: pass --runtime openvino"):
        open_runtime(bundles["openvino"], "onnxruntime")
    with pytest.raises(UserError, match="not on cuda: pass --device cpu"):
        open_runtime(bundles["openvino"], "openvino", "cuda")
    with pytest.raises(UserError, match="has no CUDAExecutionProvider"):
        open_runtime(bundles["onnx"], "onnxruntime", "cuda")


def test_the_compiled_graph_is_kept_by_content(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    first = open_runtime(bundles["openvino"], "openvino")(noise(2))["both"]
    [kept] = (tmp_path / "openvino").iterdir()
    assert list(kept.glob("*.blob"))
    np.testing.assert_array_equal(open_runtime(bundles["openvino"], "openvino")(noise(2))["both"], first)
    open_runtime(bundles["onnx"], "openvino")
    assert len(list((tmp_path / "openvino").iterdir())) == 2


def test_of_many_compiled_graphs_those_that_were_used_last_stay(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtimes, "KEPT_GRAPHS", 2)
    kept = tmp_path / "openvino"
    somebodys = kept / "a model of mine"
    somebodys.mkdir(parents=True)
    os.utime(somebodys, (0, 0))
    first, second, third = (character * 32 for character in "abc")
    for age, name in ((3, second), (2, first)):
        (kept / name).mkdir()
        (kept / name / "1.blob").write_bytes(b"compiled")
        os.utime(kept / name, (time.time() - age, time.time() - age))
    OpenVinoRuntime(bundles["openvino"].graph, HEADS, "fp32", key=third)
    assert {place.name for place in kept.iterdir()} == {somebodys.name, first, third}


def test_where_nothing_can_be_kept_it_runs_all_the_same(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").write_text("a file where the folder should be")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    assert open_runtime(bundles["openvino"], "openvino")(noise(1))["both"].shape == (1, len(CLASSES))


def test_rubbish_is_no_graph(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.xml"):
        path = tmp_path / name
        path.write_bytes(b"\x00rubbish")
        with pytest.raises(CheckpointError, match="OpenVINO cannot run"):
            OpenVinoRuntime(path, HEADS, "fp32")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run"):
        OnnxRuntime(tmp_path / "model.onnx", HEADS)


def test_a_graph_of_other_heads_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(CheckpointError, match="has 3 outputs"):
        OpenVinoRuntime(bundles["openvino"].graph, ("class",), "fp32")


def test_only_what_is_installed_is_usable(monkeypatch: pytest.MonkeyPatch, bundles: dict[str, Bundle]) -> None:
    assert usable("onnx") == ("openvino", "onnxruntime")
    assert usable("onnx", "cuda") == ("onnxruntime",)
    monkeypatch.setattr(libraries, "version", lambda name: None if name == "openvino" else "1.0")
    assert usable("onnx") == ("onnxruntime",)
    assert usable("openvino") == ()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "openvino")
    with pytest.raises(MissingExtraError, match=r"pip install 'deit\[inference\]'"):
        open_runtime(bundles["openvino"], "openvino")


def test_torch_fills_compiled_batches_up_to_a_power_of_two(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compiled(network: Graph, **_options: object) -> object:
        def run(values: torch.Tensor) -> object:
            seen.append(len(values))
            return network(values)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    runtime = TorchRuntime(graph, "cpu", compiled=True)
    assert runtime.name == "torch-compiled"
    for count, filled in ((1, 1), (2, 2), (3, 4), (5, 8), (8, 8)):
        assert runtime(noise(count))["both"].shape == (count, len(CLASSES))
        assert seen[-1] == filled


def test_torch_answers_all_threads_from_one(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, threads = TorchRuntime(graph, "cpu"), set()
    answer = runtime._run

    def run(pixels: torch.Tensor) -> Any:
        threads.add(threading.get_ident())
        return answer(pixels)

    monkeypatch.setattr(runtime, "_run", run)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(runtime, [noise(1)] * 8))) == 8
    assert len(threads) == 1


def test_torch_in_bf16_leaves_the_graph_as_it_is(graph: Graph) -> None:
    TorchRuntime(graph, "cpu", "bf16")(noise(1))
    assert {value.dtype for value in graph.parameters()} == {torch.float32}


def test_torch_refuses_int8(graph: Graph) -> None:
    with pytest.raises(UserError, match="torch runs no int8 here: export to openvino or onnx"):
        TorchRuntime(graph, "cpu", "int8")
