"""Bundles loaded into runtimes: which runtimes support which formats and devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.errors import UserError
from deit.inference.bundle import Bundle
from deit.inference.loading import load_runtime
from tests.unit.inference.conftest import random_pixels


def test_unsupported_format_or_device_is_an_error(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(UserError, match="onnxruntime does not run openvino bundles: pass --runtime openvino"):
        load_runtime(bundles["openvino"], "onnxruntime")
    with pytest.raises(UserError, match="not on cuda: pass --device cpu"):
        load_runtime(bundles["openvino"], "openvino", "cuda")
    with pytest.raises(UserError, match="has no CUDAExecutionProvider"):
        load_runtime(bundles["onnx"], "onnxruntime", "cuda")


def test_compiled_graph_is_cached_by_content(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    first = load_runtime(bundles["openvino"], "openvino")(random_pixels(2))["both"]
    [cached] = (tmp_path / "openvino").iterdir()
    assert list(cached.glob("*.blob"))
    np.testing.assert_array_equal(load_runtime(bundles["openvino"], "openvino")(random_pixels(2))["both"], first)
    load_runtime(bundles["onnx"], "openvino")
    assert len(list((tmp_path / "openvino").iterdir())) == 2
