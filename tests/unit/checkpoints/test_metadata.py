"""Metadata of models; corrupt files are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deit.checkpoints.metadata import get_count, get_number, get_value, open_weights, read_metadata
from deit.errors import CheckpointError, DeiTError
from deit.system.files import write_json
from tests.unit.checkpoints.model_files import make_model, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def test_values_are_found_by_path_and_type() -> None:
    content = {"a": {"b": 3.0, "c": "text", "d": float("nan"), "e": True, "f": 10**400, "g": 2.5, "h": -1}}
    assert get_value(content, "a.c") == "text"
    assert get_value(content, "a.c.x") is get_value(content, "x.y") is get_value([], "a") is None
    assert [get_number(content, f"a.{name}") for name in "bcdefgh"] == [3.0, None, None, None, None, 2.5, -1.0]
    assert [get_count(content, f"a.{name}") for name in "bcdefgh"] == [3, 0, 0, 0, 0, 0, 0]


def test_log_row_is_that_of_the_weights(run: Path) -> None:
    assert [read_metadata(run / name).log_row["epoch"] for name in ("best", "last")] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("recipe.toml", b"name = ", "not valid TOML"),
        ("recipe.toml", b"name = '\xff'", "not valid TOML"),
        ("log.jsonl", b"{]", "damaged in line 1"),
        ("log.jsonl", b"\xff", "damaged in line 1"),
        ("run.json", b"[]", "not a JSON object"),
        ("evaluation.json", b"{", "not valid JSON"),
        ("best/config.json", b"{", "not valid JSON"),
        ("best/config.json", b'{"model_type": "bert"}', "model_type"),
        ("best/model.safetensors", b"rubbish", "not a valid safetensors"),
    ],
)
def test_corrupt_file_is_reported(run: Path, name: str, content: bytes, problem: str) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(DeiTError, match=problem):
        read_metadata(run / "best")


def test_weights_may_be_sharded(tmp_path: Path) -> None:
    model, index = make_model(tmp_path), tmp_path / "model.safetensors.index.json"
    shard = (model / "model.safetensors").rename(model / "shard-1.safetensors")
    weight_map = dict.fromkeys(("deit.layernorm.weight", "cls_classifier.weight"), shard.name)
    weight_map |= dict.fromkeys(("b.running_var", "c"), "shard-2.safetensors")
    write_json(index, {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match=r"names shard-2\.safetensors, which is missing"):
        read_metadata(model)
    save_file({"b.running_var": np.zeros(5), "c": np.zeros((3, 2, 2))}, model / "shard-2.safetensors")
    assert [file.path.name for file in open_weights(model)] == ["shard-1.safetensors", "shard-2.safetensors"]
    assert read_metadata(model).parameters == 42
    index.unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_weights(model)
