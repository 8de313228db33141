"""The store of decoded images: what is read is what was written, and everything else counts as missing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deit.data.image_store import DRAFT_PREFIX, FIELDS, DamagedFileError, ImageStore
from deit.images.pyramid import Pyramid, PyramidShape
from deit.system import private_directory
from deit.system.private_directory import LOCK_NAME, PrivateDirectory


def pyramid(width: int = 150, height: int = 200, seed: int = 0) -> Pyramid:
    shape, rng = PyramidShape.of(width, height, 1, 1), np.random.default_rng(seed)
    return Pyramid(shape, {r: rng.integers(0, 256, (*shape.size(r), 3), np.uint8) for r in shape.reductions})


def read(store: ImageStore, name: str) -> dict[int, np.ndarray] | None:
    stored = store.open(name)
    if stored is None:
        return None
    with stored:
        return {r: stored.rows(r, 0, stored.shape.size(r)[0])[0] for r in stored.shape.reductions}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", 10**9)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_rows_are_those_that_were_written(store: ImageStore, width: int, height: int, data: st.DataObject) -> None:
    written = pyramid(width, height)
    store.write("a", written)
    stored = store.open("a")
    assert stored is not None
    with stored:
        assert stored.shape == written.shape
        reduction = data.draw(st.sampled_from(written.shape.reductions))
        level = written.levels[reduction]
        top = data.draw(st.integers(0, len(level) - 1))
        bottom = data.draw(st.integers(top + 1, len(level) + 1))  # a box may exceed its level by a pixel
        rows, first = stored.rows(reduction, top, bottom)
        assert first <= top
        assert np.array_equal(rows[top - first : bottom - first], level[top:bottom])


def test_missing_file(store: ImageStore) -> None:
    assert store.open("a") is None
    assert store.files() == []


@pytest.mark.parametrize("position", [0, 9, 13, 17, 21, 26, 31, FIELDS.size + 1])
def test_damaged_header_counts_as_missing(store: ImageStore, position: int) -> None:
    store.write("a", pyramid())
    path = store.directory / "a"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)
    assert store.open("a") is None


def test_truncated_extended_and_foreign_files_count_as_missing(store: ImageStore, tmp_path: Path) -> None:
    store.write("a", pyramid())
    path = store.directory / "a"
    content = path.read_bytes()
    for other in (content[:-1], content + b"0", content[:20], b"", b"\x89PNG" * 30):
        path.write_bytes(other)
        assert store.open("a") is None
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    path.symlink_to(tmp_path / "elsewhere")
    assert store.open("a") is None
    path.unlink()
    os.mkfifo(path)
    assert store.open("a") is None


def test_damaged_pixels_are_found_when_they_are_read(store: ImageStore) -> None:
    store.write("a", pyramid())
    path = store.directory / "a"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the coarsest level
    path.write_bytes(content)
    stored = store.open("a")
    assert stored is not None
    with stored:
        assert np.array_equal(stored.rows(1, 0, 200)[0], pyramid().levels[1])
        with pytest.raises(DamagedFileError):
            stored.rows(stored.shape.reductions[-1], 0, 5)


def test_removed_file_can_be_read_by_whoever_has_opened_it(store: ImageStore) -> None:
    store.write("a", pyramid())
    stored = store.open("a")
    assert stored is not None
    store.capacity = 0
    store.make_room(0, set())
    assert store.open("a") is None
    with stored:
        assert np.array_equal(stored.rows(1, 0, 200)[0], pyramid().levels[1])


def test_full_store_takes_no_more(tmp_path: Path) -> None:
    size = _file_size(tmp_path)
    store = ImageStore(tmp_path / "images", 2 * size)
    for name in "abc":
        store.write(name, pyramid())
    assert [read(store, name) is not None for name in "abc"] == [True, True, False]


def test_longest_unused_files_are_removed_first(tmp_path: Path) -> None:
    size = _file_size(tmp_path)
    store = ImageStore(tmp_path / "images", 4 * size)
    for age, name in enumerate("abcd"):
        store.write(name, pyramid())
        os.utime(store.directory / name, (1e9 - age, 1e9 - age))
    stored = store.open("c")  # used now
    assert stored is not None
    stored.__exit__(None, None, None)
    store.make_room(2 * size, kept={"d"})
    assert {file.name for file in store.files()} == {"c", "d"}


def test_lock_of_a_directory_in_memory_does_not_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_directory, "SHARED_MEMORY", tmp_path)
    owner = PrivateDirectory("test")
    store = ImageStore(owner.path, 0, owner=owner)
    store.make_room(1, set())
    assert (owner.path / LOCK_NAME).is_file()


def test_drafts_of_killed_programs_are_removed(store: ImageStore) -> None:
    store.write("a", pyramid())
    old, new = (store.directory / f"{DRAFT_PREFIX}{name}" for name in ("old", "new"))
    for draft in (old, new):
        draft.write_bytes(b"...")
    os.utime(old, (1e9, 1e9))
    store.files()
    assert not old.exists()
    assert new.exists()


def test_error_leaves_no_draft(store: ImageStore) -> None:
    broken = pyramid()
    with pytest.raises(KeyError):
        store.write("a", Pyramid(broken.shape, {1: broken.levels[1]}))
    assert store.files() == []


def _write_and_read(directory: Path, seed: int) -> bool:
    store = ImageStore(directory, 10**9)
    for turn in range(40):
        name = f"{turn % 4}"
        store.write(name, pyramid(seed=turn % 4))
        levels = read(store, name)
        if levels is not None and not np.array_equal(levels[1], pyramid(seed=turn % 4).levels[1]):
            return False
        if turn % 5 == seed:
            ImageStore(directory, 0).make_room(0, set())
    return True


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(_write_and_read, (tmp_path / "images", seed)) for seed in range(2)]
        assert [result.get(120) for result in results] == [True, True]


def test_pickled_store_keeps_directory_and_capacity(store: ImageStore) -> None:
    store.write("a", pyramid())
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert (copy.directory, copy.capacity) == (store.directory, store.capacity)
    assert read(copy, "a") is not None


def _file_size(tmp_path: Path) -> int:
    store = ImageStore(tmp_path / "one", 10**9)
    store.write("a", pyramid())
    return store.files()[0].size
