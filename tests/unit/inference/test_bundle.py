"""What is on disk is what was exported, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deit.errors import CheckpointError, UserError
from deit.export.export import ExportResult
from deit.inference.bundle import GRAPH_FILES, is_bundle, open_bundle
from deit.system.files import BUNDLE_NAME
from tests.unit.inference.conftest import CLASSES, SIDE


@pytest.fixture
def copied(torch_bundle: ExportResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(torch_bundle.bundle.path, tmp_path / "a copy"))


def changed(path: Path, **fields: Any) -> None:
    content = json.loads((path / BUNDLE_NAME).read_text())
    (path / BUNDLE_NAME).write_text(json.dumps({**content, **fields}))


def test_a_bundle_says_what_it_is(openvino_bundle: ExportResult) -> None:
    bundle = open_bundle(openvino_bundle.bundle.path)
    facts = bundle.facts
    assert is_bundle(bundle.path) and not is_bundle(bundle.path / "model.xml") and not is_bundle("nowhere")
    assert (facts.format, facts.precision, facts.pixels, facts.shape) == ("openvino", "fp32", "uint8", (3, SIDE, SIDE))
    assert facts.heads == ("class", "distillation", "both")
    assert facts.classes == CLASSES
    assert bundle.graph.name == "model.xml"
    assert bundle.graph_bytes == sum((bundle.path / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert bundle.processor.input_hw == (SIDE, SIDE)


def test_a_changed_file_is_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        open_bundle(copied)


def test_a_missing_file_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": {"../secret": "0" * 64}}, "files of no torch graph"),
        ({"files": {}}, "files of no torch graph"),
        ({"format": "onnx"}, "files of no onnx graph"),
        ({"format": "pickle"}, "format"),
        ({"precision": "fp16"}, "precision"),
        ({"classes": []}, "classes"),
        ({"heads": ["a", "b", "c", "d"]}, "heads"),
        ({"shape": [3, 10**9, 32]}, "shape"),
        ({"pixels": "float64"}, "pixels"),
        ({"version": 2}, "version"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_cannot_be_is_named(copied: Path, fields: dict[str, Any], message: str) -> None:
    changed(copied, **fields)
    with pytest.raises(CheckpointError, match=message):
        open_bundle(copied)


def test_a_file_larger_than_any_graph_is_not_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.inference.bundle.MAX_GRAPH_BYTES", 100)
    monkeypatch.setattr("deit.inference.bundle.sha256", lambda _path: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="is larger than"):
        open_bundle(copied)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    content=st.recursive(
        st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=8
    )
)
def test_no_content_is_a_crash(copied: Path, content: Any) -> None:
    (copied / BUNDLE_NAME).write_text(json.dumps({"format": content, "files": content, "classes": content}))
    with pytest.raises(UserError):
        open_bundle(copied)


def test_each_format_has_its_files() -> None:
    assert {name for names in GRAPH_FILES.values() for name in names}.isdisjoint({BUNDLE_NAME})
