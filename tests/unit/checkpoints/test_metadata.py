"""What is read of a model's files, and what is said of damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deit.checkpoints.metadata import at, count, number, open_weights, read_facts
from deit.errors import CheckpointError, DeiTError
from deit.system.files import write_json
from tests.unit.checkpoints.model_files import make_model, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def test_a_value_is_found_by_its_path_and_kind() -> None:
    content = {"a": {"b": 3.0, "c": "text", "d": float("nan"), "e": True, "f": 10**400, "g": 2.5, "h": -1}}
    assert at(content, "a.c") == "text"
    assert at(content, "a.c.x") is at(content, "x.y") is at([], "a") is None
    assert [number(content, f"a.{name}") for name in "bcdefgh"] == [3.0, None, None, None, None, 2.5, -1.0]
    assert [count(content, f"a.{name}") for name in "bcdefgh"] == [3, 0, 0, 0, 0, 0, 0]


def test_the_row_of_the_log_is_that_of_the_weights(run: Path) -> None:
    assert (read_facts(run / "best").row["epoch"], read_facts(run / "last").row["epoch"]) == (1, 2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.toml", b"name = ", "no valid TOML"),
        ("recipe.toml", b"name = '\xff'", "cannot be read"),
        ("log.jsonl", b"{]", "no valid JSON"),
        ("log.jsonl", b"\xff", "cannot be read"),
        ("run.json", b"[]", "no JSON object"),
        ("evaluation.json", b"{", "no valid JSON"),
        ("best/config.json", b"{", "no valid JSON"),
        ("best/config.json", b'{"model_type": "bert"}', "model_type"),
        ("best/model.safetensors", b"rubbish", "no valid safetensors"),
    ],
)
def test_a_damaged_file_is_one_sentence(run: Path, name: str, content: bytes, words: str) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(DeiTError, match=words):
        read_facts(run / "best")


def test_the_weights_may_lie_in_parts(tmp_path: Path) -> None:
    model, index = make_model(tmp_path), tmp_path / "model.safetensors.index.json"
    whole = (model / "model.safetensors").rename(model / "part-1.safetensors")
    places = dict.fromkeys(("deit.layernorm.weight", "cls_classifier.weight"), whole.name)
    write_json(index, {"weight_map": {**places, "b.running_var": "part-2.safetensors", "c": "part-2.safetensors"}})
    with pytest.raises(CheckpointError, match=r"names part-2\.safetensors, which is missing"):
        read_facts(model)
    save_file({"b.running_var": np.zeros(5), "c": np.zeros((3, 2, 2))}, model / "part-2.safetensors")
    assert [file.path.name for file in open_weights(model)] == ["part-1.safetensors", "part-2.safetensors"]
    assert read_facts(model).parameters == 42
    index.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_weights(model)
