"""Indices of sharded checkpoints."""

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
from tests.helpers import noise
from tests.unit.checkpoints.samples import assert_equal

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sample() -> dict[str, Tensor]:
    return {"a.weight": noise(3, 4), "b": noise(2).half(), "c": noise(2).bfloat16(), "d": noise(1, 2, 2).double()}


def save_shards(folder: Path, shards: dict[str, dict[str, Tensor]]) -> Path:
    """Saves shards and returns their index."""
    for file_name, shard in shards.items():
        if file_name.endswith("safetensors"):
            save_file(shard, folder / file_name)
        else:
            torch.save(shard, folder / file_name)
    weight_map = {name: file_name for file_name, shard in shards.items() for name in shard}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_shards_make_up_one_model(tmp_path: Path, extension: str) -> None:
    state = sample()
    shards = {f"model-{index}-of-00004.{extension}": {name: tensor} for index, (name, tensor) in enumerate(state.items())}
    files = open_index(save_shards(tmp_path, shards))
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
def test_shard_outside_its_directory_is_refused(tmp_path: Path, name: object) -> None:
    save_file(sample(), tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(CheckpointError, match=r"names the shard|is missing in"):
        open_index(folder / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 3}', "[]", "{", "[" * 10**5]
)
def test_malformed_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "i.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"i\.index\.json"):
        open_index(tmp_path / "i.index.json")


def test_shards_must_match_the_index(tmp_path: Path) -> None:
    index = save_shards(tmp_path, {"a.safetensors": {"x": torch.ones(1)}, "b.safetensors": {"y": torch.ones(1)}})
    save_file({"x": torch.ones(1), "z": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors has z, which its index does not name"):
        open_index(index)
    save_file({"y": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors lacks x"):
        open_index(index)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"index\.json names a\.safetensors, which is missing in {tmp_path}"):
        open_index(index)


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = save_shards(tmp_path, {f"{n}.safetensors": {f"x{n}": torch.ones(1)} for n in range(3)})
    monkeypatch.setattr(hub, "MAX_SHARDS", 2)
    with pytest.raises(CheckpointError, match="names 3 files: the limit is 2"):
        open_index(index)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4) | json_values)
@fuzz
def test_any_index_is_shards_or_a_checkpoint_error(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "any.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"any\.index\.json"):
        open_index(tmp_path / "any.index.json")
