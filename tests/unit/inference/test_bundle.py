"""Bundles: metadata, and files that are missing, modified or invalid."""

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
from tests.unit.inference.conftest import CLASSES, HEADS, SIDE


@pytest.fixture
def bundle_copy(torch_bundle: ExportResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(torch_bundle.bundle.path, tmp_path / "a copy"))


def change_metadata(path: Path, **fields: Any) -> None:
    content = json.loads((path / BUNDLE_NAME).read_text())
    (path / BUNDLE_NAME).write_text(json.dumps({**content, **fields}))


def test_metadata_of_a_bundle(openvino_bundle: ExportResult) -> None:
    bundle = open_bundle(openvino_bundle.bundle.path)
    metadata = bundle.metadata
    assert is_bundle(bundle.path) and not is_bundle(bundle.path / "model.xml") and not is_bundle("nowhere")
    assert (metadata.format, metadata.precision) == ("openvino", "fp32")
    assert (metadata.input_dtype, metadata.input_shape) == ("uint8", (3, SIDE, SIDE))
    assert metadata.heads == HEADS
    assert metadata.classes == CLASSES
    assert bundle.graph.name == "model.xml"
    assert bundle.graph_bytes == sum((bundle.path / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert bundle.processor.input_hw == (SIDE, SIDE)


def test_modified_file_is_rejected(bundle_copy: Path) -> None:
    weights = bundle_copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        open_bundle(bundle_copy)


def test_missing_file_is_rejected(bundle_copy: Path) -> None:
    (bundle_copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": {"../secret": "0" * 64}}, "does not list the files of the format torch"),
        ({"files": {}}, "does not list the files of the format torch"),
        ({"format": "onnx"}, "does not list the files of the format onnx"),
        ({"format": "pickle"}, "format"),
        ({"precision": "fp16"}, "precision"),
        ({"classes": []}, "classes"),
        ({"heads": ["a", "b", "c", "d"]}, "heads"),
        ({"input_shape": [3, 10**9, 32]}, "input_shape"),
        ({"input_dtype": "float64"}, "input_dtype"),
        ({"version": 2}, "version"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_invalid_metadata_is_rejected(bundle_copy: Path, fields: dict[str, Any], message: str) -> None:
    change_metadata(bundle_copy, **fields)
    with pytest.raises(CheckpointError, match=message):
        open_bundle(bundle_copy)


def test_too_large_file_is_not_read(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.inference.bundle.MAX_GRAPH_BYTES", 100)
    monkeypatch.setattr("deit.inference.bundle.sha256", lambda _path: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="is larger than"):
        open_bundle(bundle_copy)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    content=st.recursive(
        st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=8
    )
)
def test_random_metadata_is_a_user_error(bundle_copy: Path, content: Any) -> None:
    (bundle_copy / BUNDLE_NAME).write_text(json.dumps({"format": content, "files": content, "classes": content}))
    with pytest.raises(UserError):
        open_bundle(bundle_copy)


def test_graph_files_do_not_collide_with_the_metadata() -> None:
    assert {name for names in GRAPH_FILES.values() for name in names}.isdisjoint({BUNDLE_NAME})
