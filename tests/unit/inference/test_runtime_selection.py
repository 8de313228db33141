"""Which runtime is taken: what was measured here decides, and before that a rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.errors import MissingExtraError
from deit.export.export import ExportResult
from deit.inference import libraries
from deit.inference import runtime_selection as choice
from deit.inference.loading import open_runtime
from deit.inference.runtime_selection import cache_file, choose_runtime, describe_machine, images_per_second, remember


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache" / "runtimes.json"


def test_before_any_measurement_a_rule_decides(onnx_bundle: ExportResult) -> None:
    chosen = choose_runtime(onnx_bundle.bundle)
    assert chosen.name == "openvino"
    assert "deit benchmark" in chosen.reason


def test_the_fastest_measured_is_taken(onnx_bundle: ExportResult) -> None:
    remember(onnx_bundle.bundle, "cpu", {"openvino": 100.0, "onnxruntime": 250.4})
    chosen = choose_runtime(onnx_bundle.bundle)
    assert chosen.name == "onnxruntime"
    assert chosen.reason == "the fastest measured here, in images/s: onnxruntime 250, openvino 100"
    remember(onnx_bundle.bundle, "cpu", {"openvino": 300.0})
    assert choose_runtime(onnx_bundle.bundle).name == "openvino"
    assert choose_runtime(onnx_bundle.bundle, "cuda").name == "onnxruntime"  # measured elsewhere, but the only one


def test_what_was_measured_of_another_graph_or_processor_does_not_count(
    onnx_bundle: ExportResult, int8_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(onnx_bundle.bundle, "cpu", {"openvino": 100.0, "onnxruntime": 250.0})
    assert choose_runtime(int8_bundle.bundle).name == "openvino"
    monkeypatch.setattr(choice, "cpu_name", lambda: "Abacus 3000")
    assert choose_runtime(onnx_bundle.bundle).name == "openvino"


def test_a_choice_can_be_measured_once(onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([10.0, 20.0])
    monkeypatch.setattr(choice, "images_per_second", lambda *_: next(speeds))
    assert choose_runtime(onnx_bundle.bundle, measure=True).name == "onnxruntime"
    assert choose_runtime(onnx_bundle.bundle, measure=True).name == "onnxruntime"  # or the numbers would run out
    assert choose_runtime(onnx_bundle.bundle).name == "onnxruntime"


def test_a_damaged_cache_is_none(onnx_bundle: ExportResult, empty_cache: Path) -> None:
    empty_cache.parent.mkdir()
    for content in ("", "[]", '{"speeds": 3}', '{"speeds": {"a": 1}}', "\x00"):
        empty_cache.write_text(content)
        assert choose_runtime(onnx_bundle.bundle).name == "openvino"


def test_where_nothing_can_be_written_nothing_is_kept(onnx_bundle: ExportResult, empty_cache: Path) -> None:
    empty_cache.parent.write_text("a file where the folder should be")
    remember(onnx_bundle.bundle, "cpu", {"onnxruntime": 1.0})
    assert choose_runtime(onnx_bundle.bundle).name == "openvino"


def test_the_cache_does_not_grow_without_end(onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MAX_ENTRIES", 3)
    for number in range(5):
        remember(onnx_bundle.bundle, f"device {number}", {"onnxruntime": 1.0})
    assert len(choice._read()) == 3


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "deit" / "runtimes.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file() == tmp_path / ".cache" / "deit" / "runtimes.json"


def test_nothing_that_runs_it_is_one_sentence(openvino_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version", lambda _name: None)
    with pytest.raises(MissingExtraError, match="A bundle in the format openvino needs an optional library"):
        choose_runtime(openvino_bundle.bundle)


def test_a_short_measurement_uses_all_calls(openvino_bundle: ExportResult) -> None:
    runtime = open_runtime(openvino_bundle.bundle, "openvino", work="throughput")
    sizes = []

    class Counted:
        calls, batch = runtime.calls, runtime.batch

        def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            sizes.append(len(pixels))
            return runtime(pixels)

    assert images_per_second(Counted(), openvino_bundle.bundle, repeats=2) > 0  # type: ignore[arg-type]
    assert sizes == [runtime.batch] * 3 * 2 * runtime.calls


def test_the_machine_is_described(onnx_bundle: ExportResult) -> None:
    plain = describe_machine()
    assert {row["name"] for row in plain["runtimes"]} == {"openvino", "onnxruntime", "torch", "torch-compiled"}
    assert len(plain["choices"]) == 4
    [row] = describe_machine(str(onnx_bundle.bundle.path))["choices"]
    assert row["runtime"] == "openvino" and row["what"] == str(onnx_bundle.bundle.path)
