"""Tensor files: formats are detected from the content, invalid files are refused, and no code in them is executed."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from deit.checkpoints import pickles, tensors
from deit.checkpoints.tensors import open_tensors
from deit.errors import CheckpointError
from tests.helpers import noise
from tests.unit.checkpoints.samples import assert_equal

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sample() -> dict[str, Tensor]:
    return {"a.weight": noise(3, 4), "b": noise(2).half(), "c": noise(2).bfloat16(), "d": noise(1, 2, 2).double()}


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read_all(path: Path, ema: bool = False) -> dict[str, Tensor]:
    file = open_tensors(path, ema)
    return file.read(file.entries)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth", "model.pth.tar", "pytorch_model.bin", "no extension"])
def test_format_is_detected_from_the_content(tmp_path: Path, name: str) -> None:
    path, state = tmp_path / name, sample()
    save_file(state, path)
    assert_equal(read_all(path), state)
    for zipped in (True, False):
        save(path, state, _use_new_zipfile_serialization=zipped)
        assert_equal(read_all(path), state)
        assert open_tensors(path).entries["d"] == ((1, 2, 2), torch.float64)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("ema_key", [None, "model_ema", "state_dict_ema"])
def test_training_checkpoint_has_weights_and_ema(tmp_path: Path, zipped: bool, key: str | None, ema_key: str | None) -> None:
    state, ema_state = sample(), {"a.weight": noise(3, 4, seed=1)}
    content: dict[str, Any] = dict(state) if key is None else {key: OrderedDict(state), "epoch": 3, "metric": 1.5}
    content |= {ema_key: ema_state} if ema_key and key else {}
    if key:
        content["args"] = argparse.Namespace(lr=5e-4, output_dir="out", opt_betas=None, sizes=[1, (2, 3)])
        content["optimizer"] = {"state": {0: {"step": torch.tensor(3), "exp_avg": noise(2)}}, "param_groups": [{"lr": 0.1}]}
    path = save(tmp_path / "checkpoint.pth", content, _use_new_zipfile_serialization=zipped)
    assert_equal(read_all(path), state)
    if ema_key and key:
        assert_equal(read_all(path, ema=True), ema_state)
    else:
        with pytest.raises(CheckpointError, match=r"checkpoint\.pth has no moving average .*load it without ema"):
            open_tensors(path, ema=True)


def test_safetensors_file_has_no_ema(tmp_path: Path) -> None:
    save_file(sample(), tmp_path / "a")
    with pytest.raises(CheckpointError, match="no moving average of the weights: load it without ema"):
        open_tensors(tmp_path / "a", ema=True)


def test_parameters_and_views_are_read(tmp_path: Path) -> None:
    matrix = noise(4, 6)
    path = save(tmp_path / "a", {"p": nn.Parameter(matrix), "transposed": matrix.T, "slice": matrix[1:3, ::2]})
    assert_equal(read_all(path), {"p": matrix, "transposed": matrix.T, "slice": matrix[1:3, ::2]})
    assert not read_all(path)["p"].requires_grad


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, tuple[Any, str]]:
    return {
        "a shell command": (Call(os.system, f"touch {marker}"), "system"),
        "code": (Call(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        "a path": (Call(pathlib.Path.touch, marker), "pathlib|getattr"),
        "a numpy scalar": (np.float64(1.5), r"numpy\._core\.multiarray\.scalar"),
        "a numpy array": (np.ones(2), r"numpy\._core\.multiarray\._reconstruct"),
        "a path in the arguments": (argparse.Namespace(output=pathlib.PurePosixPath("x")), r"pathlib\.PurePosixPath"),
        "a function in the arguments": (argparse.Namespace(x=Call(print)), "print"),
        "a whole model": (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        "memory": (Call(bytearray, 2**40), "bytearray"),
        "an empty tensor of any size": (Call(torch.Tensor, 2**40), r"torch\._tensor\.Tensor|torch\.Tensor"),
        "a compiled function": (torch.nn.functional.gelu, "gelu"),
    }


@pytest.mark.parametrize("attack", attacks(Path()))
@pytest.mark.parametrize("position", ["beside the state", "in the state", "alone"])
@pytest.mark.parametrize("zipped", [True, False])
def test_only_tensors_are_unpickled(tmp_path: Path, attack: str, position: str, zipped: bool) -> None:
    value, name = attacks(tmp_path / "ran")[attack]
    state: dict[str, Any] = dict(sample())
    contents = {"beside the state": {"model": state, "args": value}, "in the state": {**state, "x": value}, "alone": value}
    path = save(tmp_path / "evil.pth", contents[position], _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=rf"evil\.pth has an object of type \S*({name})\S*, which is not a tensor and may execute code"
    ) as caught:
        open_tensors(path)
    assert "torch.save({'model': state_dict}, path)" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_pickle_is_refused(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"x": Call(os.system, "true")}}, protocol))
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        open_tensors(tmp_path / "a.pkl")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", pickle.dumps(None, 2) if name.endswith("pkl") else "3\n")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "object of type int as x"),
        ("text", "object of type str as x"),
        ({"y": torch.ones(1)}, "object of type dict as x"),
        (None, "object of type NoneType as x"),
        (torch.ones(2, dtype=torch.complex64), r"(dtype|type) torch\.(complex64|ComplexFloatStorage)"),
        (torch.ones(2).to(torch.float8_e4m3fn), r"(dtype|type) torch\.(float8_e4m3fn|_utils\._rebuild_tensor_v3)"),
        (torch.ones(2, 2).to_sparse(), r"object of type torch\._utils\._rebuild_sparse_tensor"),
        (torch.ones(2, device="meta"), r"object of type torch\._utils\._rebuild_meta_tensor_no_storage"),
        (torch.ones(1).expand(10**12), "claims more values than it has bytes"),
        (torch.ones(1).as_strided((10**6, 10**6), (0, 0)), "claims more values than it has bytes"),
    ],
)
def test_value_that_is_not_a_dense_tensor_is_reported(tmp_path: Path, value: object, problem: str) -> None:
    for content in ({**sample(), "x": value}, {"model": {**sample(), "x": value}}):
        with pytest.raises(CheckpointError, match=problem):
            open_tensors(save(tmp_path / "a.pth", content))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "a.pth has a list"),
        (torch.ones(2), "a.pth has a Tensor"),
        ({}, "a.pth has no weights, only: nothing"),
        ({"epoch": 3, "model": None}, "a.pth has no weights, only: epoch, model"),
        ({"model": {}}, "has no weights, only: model"),
        ({3: torch.ones(1)}, "as 3"),
        (argparse.Namespace(model={}), "has a Namespace"),
    ],
)
def test_file_without_weights_lists_its_content(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        open_tensors(save(tmp_path / "a.pth", content))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", {"x": torch.zeros(10**6)})
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with pytest.raises(CheckpointError, match="bomb has compressed members"):
        open_tensors(tmp_path / "bomb")


def test_wrong_sizes_of_members_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a", {"x": noise(1000)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    sizes = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content[: start + 20] + sizes + content[start + 28 :])  # both sizes of the first member
    with pytest.raises(CheckpointError, match=r"a claims more bytes than it has|a is a corrupt zip"):
        open_tensors(path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_PICKLE", 9_000), ("MAX_OPCODES", 300)])
@pytest.mark.parametrize("zipped", [True, False])
def test_large_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, limit: str, value: int) -> None:
    content = {"model": sample(), "x": "y" * 10_000, "z": [{} for _ in range(200)]}
    path = save(tmp_path / "a", content, _use_new_zipfile_serialization=zipped)
    read_all(path)
    monkeypatch.setattr(pickles, limit, value)
    with pytest.raises(CheckpointError, match="has more content besides tensors than a checkpoint"):
        open_tensors(path)


def test_newer_pickle_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="newer pickle protocol"):
        open_tensors(save(tmp_path / "a", sample(), pickle_protocol=4))


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_TENSORS", 3)
    save_file(sample(), tmp_path / "a")
    save(tmp_path / "b", sample())
    save_file({}, tmp_path / "c")
    for name, count in (("a", 4), ("b", 4), ("c", 0)):
        with pytest.raises(CheckpointError, match=f"{name} has {count} tensors: the limits are 1 and 3"):
            open_tensors(tmp_path / name)


def safetensors_header(shape: list[int]) -> bytes:
    """Returns a safetensors file without data whose header has a tensor of this shape."""
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "neither a safetensors nor a torch.save file"),
        (b"<!DOCTYPE html><html>not found</html>", "neither a safetensors nor"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer .*git lfs pull"),
        (b'{"weight_map": {}}', "neither a safetensors nor"),
        (struct.pack("<Q", 2**40) + b"{}", "has a header of 1099511627776 bytes"),
        (struct.pack("<Q", 17 * 2**20) + b"{}", "has a header of 17825792 bytes"),
        (struct.pack("<Q", 100) + b"{}", "is not a valid safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "has 0 tensors"),
        (safetensors_header([0, 2**63]), r"is not a valid safetensors file \(a tensor is too large\)"),
        (safetensors_header([2**62, 4]), "is not a valid safetensors file"),
        (safetensors_header([-1]), "is not a valid safetensors file"),
        (b"PK\x03\x04", "corrupt"),
        (b"\x80\x02.", "corrupt"),
        (b"\x80\x02", "corrupt"),
    ],
)
def test_other_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.bin {problem}|model\.bin is (a )?{problem}"):
        open_tensors(tmp_path / "model.bin")


def test_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(CheckpointError, match=f"{path.name} does not exist"):
            open_tensors(path)


def test_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CheckpointError, match=r"Cannot read .*a: Permission denied\."):
        open_tensors(tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn])
def test_unsupported_dtype_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"x": torch.ones(2).to(dtype)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"x in .*a has dtype \w+: use one of F16, BF16"):
        open_tensors(tmp_path / "a")


def test_file_that_changes_after_opening_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path)
    file = open_tensors(path)
    for other in ({"x": torch.ones(3)}, {"y": torch.ones(2)}, {"x": torch.ones(2).half()}):
        path.unlink()
        save_file(other, path)
        with pytest.raises(CheckpointError, match=r"changed while it was read|can no longer be read"):
            file.read(["x"])
    path.unlink()
    with pytest.raises(CheckpointError, match="can no longer be read"):
        file.read(["x"])


headers = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E4M3", "F4", "X"]),
            "shape": st.lists(st.integers(-1, 2**63) | st.integers(0, 3), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 2**63) | st.integers(0, 16), max_size=3),
        }
    )
    | st.none(),
    max_size=3,
).map(lambda content: json.dumps(content).encode())


@given(headers | st.binary(max_size=40), st.binary(max_size=16), st.none() | st.integers(0, 2**64 - 1))
@fuzz
def test_any_bytes_are_tensors_or_a_checkpoint_error(tmp_path: Path, header: bytes, data: bytes, length: int | None) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    try:
        state = read_all(path)
    except CheckpointError as error:
        assert "any.safetensors" in str(error)
    else:
        assert sum(tensor.nbytes for tensor in state.values()) <= len(data)


positions = st.integers(0, 2**20)


@given(st.booleans(), st.lists(st.tuples(positions, st.integers(0, 255)), max_size=3), st.none() | positions)
@fuzz
def test_corrupt_torch_file_is_tensors_or_a_checkpoint_error(
    tmp_path: Path, zipped: bool, changes: list[tuple[int, int]], end: int | None
) -> None:
    path = save(tmp_path / "any.pth", {"model": {"x": torch.ones(5)}, "e": 1}, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content if end is None else content[: end % len(content)])
    try:
        state = read_all(path)
    except CheckpointError as error:
        assert "any.pth" in str(error)
    else:
        assert sum(tensor.nbytes for tensor in state.values()) <= len(content)
