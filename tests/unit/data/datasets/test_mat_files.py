"""MATLAB files: one variable is read, within size limits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from deit.data.datasets import mat_files
from deit.data.datasets.mat_files import read_mat
from deit.errors import DataError


@pytest.mark.parametrize("compressed", [True, False])
def test_variable_is_read(tmp_path: Path, compressed: bool) -> None:
    savemat(tmp_path / "a.mat", {"labels": np.arange(5)[None], "other": "x"}, do_compression=compressed)
    assert read_mat(tmp_path / "a.mat", "labels").tolist() == [0, 1, 2, 3, 4]


def test_missing_variable_is_an_error(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"labels": np.arange(5)})
    with pytest.raises(DataError, match="holds no readable variable 'setid'"):
        read_mat(tmp_path / "a.mat", "setid")
    with pytest.raises(DataError, match="Cannot read"):
        read_mat(tmp_path / "b.mat", "labels")


VARIABLES: dict[str, Any] = {
    "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "large": np.asarray([[1, 2**40]]),
    "fractions": np.asarray([[0.5, -1e300, 3.0]]),
    "number": 7,
    "word": "n01440764",
    "letters": "cafe",
    "cells": np.asarray(["a cat", "two dogs"], object),
    "record": {"name": "x", "label": 3},
    "records": np.asarray([("a.jpg", 1), ("bb.jpg", 2)], [("fname", object), ("class", object)]),
}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", VARIABLES)
def test_values_are_those_of_scipy(tmp_path: Path, name: str, compressed: bool) -> None:
    savemat(tmp_path / "a.mat", VARIABLES, do_compression=compressed)
    expected = np.asarray(loadmat(tmp_path / "a.mat", squeeze_me=True)[name])
    found = read_mat(tmp_path / "a.mat", name)
    assert (found.shape, found.dtype.names) == (expected.shape, expected.dtype.names)
    assert str(found.tolist()) == str(expected.tolist())


def test_damage_that_crashed_scipy_is_an_error(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"labels": np.arange(20)})
    content = (tmp_path / "a.mat").read_bytes()
    for kind in range(256):  # the type of the values
        position = content.rindex(struct.pack("<I", 20 * 8)) - 4
        (tmp_path / "a.mat").write_bytes(content[:position] + bytes([kind]) + content[position + 1 :])
        try:
            assert len(read_mat(tmp_path / "a.mat", "labels")) == 20
        except DataError as error:
            assert kind not in (9, 12, 13)
            assert "holds no readable variable" in str(error)


def test_decompression_bomb_is_an_error(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(mat_files.MAX_BYTES + 1), 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    assert (tmp_path / "a.mat").stat().st_size < 2**20
    with pytest.raises(DataError, match="holds more than 64 MiB"):
        read_mat(tmp_path / "a.mat", "labels")


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans())
@settings(max_examples=80, deadline=None)
def test_damaged_file_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, offset: int, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    savemat(path, {"labels": np.arange(20)}, do_compression=compressed)
    content = path.read_bytes()
    path.write_bytes(content[:offset] + noise)
    try:
        read_mat(path, "labels")
    except DataError as error:
        assert str(path) in str(error)
