"""Indices of shards: one model out of many files, all of them beside the index; and the arguments of a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from deit import hub
from deit.checkpoints.tensors import open_index
from deit.errors import CheckpointError
from deit.hub import hub_arguments, shard_names
from tests.helpers import noise
from tests.unit.checkpoints.samples import assert_equal

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sample() -> dict[str, Tensor]:
    return {"a.weight": noise(3, 4), "b": noise(2).half(), "c": noise(2).bfloat16(), "d": noise(1, 2, 2).double()}


def sharded(folder: Path, parts: dict[str, dict[str, Tensor]], index: str = "model.safetensors.index.json") -> Path:
    for name, part in parts.items():
        if name.endswith("safetensors"):
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_make_one_model(tmp_path: Path, ending: str) -> None:
    state = sample()
    parts = {f"model-{place}-of-00004.{ending}": {name: tensor} for place, (name, tensor) in enumerate(state.items())}
    files = open_index(sharded(tmp_path, parts))
    assert_equal({name: tensor for file in files for name, tensor in file.read(file.entries).items()}, state)


OUTSIDE = [
    "../x.safetensors",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\\b",
    "C:x",
    "\0",
    ".hidden",
    "é",
    "x" * 300,
    3,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_outside_its_directory_is_refused(tmp_path: Path, name: object) -> None:
    save_file(sample(), tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(CheckpointError, match=r"names the shard|is missing in"):
        open_index(folder / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 3}', "[]", "{", "[" * 10**5]
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "i.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"i\.index\.json"):
        open_index(tmp_path / "i.index.json")


def test_shards_and_index_name_the_same_tensors(tmp_path: Path) -> None:
    index = sharded(tmp_path, {"a.safetensors": {"x": torch.ones(1)}, "b.safetensors": {"y": torch.ones(1)}})
    save_file({"x": torch.ones(1), "z": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors holds, and its index does not name, z"):
        open_index(index)
    save_file({"y": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors lacks x"):
        open_index(index)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"index\.json names a\.safetensors, which is missing in {tmp_path}"):
        open_index(index)


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = sharded(tmp_path, {f"{n}.safetensors": {f"x{n}": torch.ones(1)} for n in range(3)})
    monkeypatch.setattr(hub, "MAX_SHARDS", 2)
    with pytest.raises(CheckpointError, match="names 3 files: at most 2 are read"):
        open_index(index)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4) | json_values)
@fuzz
def test_any_index_is_shards_or_a_clear_error(tmp_path: Path, places: object) -> None:
    (tmp_path / "any.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=r"any\.index\.json"):
        open_index(tmp_path / "any.index.json")


def test_the_shards_of_an_index(tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text('{"weight_map": {"x": "b.bin", "y": "a.bin", "z": "b.bin"}}')
    assert shard_names(tmp_path / "i.json") == ["a.bin", "b.bin"]


def test_arguments_are_told_apart() -> None:
    given_ = {"revision": "v1", "num_labels": 3, "token": None, "image_size": 4}
    assert hub_arguments(given_) == ({"revision": "v1", "token": None}, {"num_labels": 3, "image_size": 4})
