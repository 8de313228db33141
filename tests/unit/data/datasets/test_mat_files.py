"""MATLAB files: one variable is read, within size limits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

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


def test_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("it was read"))
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
