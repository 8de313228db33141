"""What is known of image files, and how it is kept between runs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import deit.data.file_info
from deit.data import file_info_cache
from deit.data.checking import check_data, check_images, without_unreadable
from deit.data.datasets.folders import folder_source
from deit.data.file_info import Depth, FileInfo, file_info, image_sizes, inspect_files
from deit.data.file_info_cache import ENTRY, cache_path, find_entries, read_entries, write_entries
from deit.data.image_hashes import ImageHashes, content_hash, content_hashes
from deit.data.opening import open_data
from deit.data.sources import ArraySource, MultiLabelSource, subset
from deit.errors import ImageTooLargeError
from deit.images.limits import pixel_limit
from deit.recipes.planning import dataset_stats
from tests.helpers import pattern
from tests.unit.data.layouts import image_files

NAMES = ("a.png", "b.jpg", "deep.png", "float.tif", "turned.jpg")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the cache, empty."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DEIT_CACHE", str(path))
    return path / "image-files"


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files were written long ago."""
    now = time.time_ns
    monkeypatch.setattr("deit.data.file_info.time.time_ns", lambda: now() + 60 * 10**9)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of the images that are opened from now on, in any way that Python knows."""
    names: list[str] = []
    active = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if active and event == "open" and str(arguments[0]).endswith((".png", ".jpg", ".tif")):
            names.append(Path(str(arguments[0])).name)

    sys.addaudithook(hook)
    yield names
    active = False  # a hook cannot be removed


def fill(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    photo = pattern(40, 30)
    photo.save(root / "a.png")
    photo.save(root / "b.jpg")
    Image.fromarray(np.full((5, 6), 3000, np.uint16)).save(root / "deep.png")
    Image.fromarray(np.full((7, 8), 0.5, np.float32)).save(root / "float.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(root / "turned.jpg", exif=exif)
    return root


def same(one: FileInfo, other: FileInfo) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("hashes", "sizes", "depths")) and list(
        one.errors
    ) == list(other.errors)


def test_files_are_described(tmp_path: Path) -> None:
    info = inspect_files(fill(tmp_path), NAMES)
    assert info.sizes.tolist() == [[40, 30], [40, 30], [6, 5], [8, 7], [30, 40]]
    assert info.depths.tolist() == [Depth.EIGHT_BITS, Depth.EIGHT_BITS, Depth.INTEGERS, Depth.FLOATS, Depth.EIGHT_BITS]
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).digest()[:8] for name in NAMES]
    assert info.hashes.tolist() == [int.from_bytes(digest, "little") for digest in digests]
    assert info.errors == {}


def test_unchanged_files_are_not_opened_again(tmp_path: Path, opened: list[str]) -> None:
    first = inspect_files(fill(tmp_path), NAMES)
    assert set(opened) == set(NAMES)
    opened.clear()
    assert same(inspect_files(tmp_path, NAMES), first)
    assert opened == []
    assert same(inspect_files(tmp_path, NAMES, fresh=True), first)
    assert set(opened) == set(NAMES)


def test_second_training_run_opens_no_image(split_folder: Path, opened: list[str]) -> None:
    for number, path in enumerate(split_folder.rglob("*.png")):
        pattern(9, 7, seed=number).save(path)

    def start() -> tuple[int, bytes]:
        splits, _ = without_unreadable(open_data(split_folder), skip=False)
        hashes = ImageHashes.of(splits.train, splits.validation)
        return dataset_stats(splits.train, test_mirror=False).side, hashes.to_bytes()

    opened.clear()
    first = start()
    assert first[0] == 7
    assert len(opened) == 14
    opened.clear()
    assert start() == first
    assert opened == []


def test_data_check_reads_all_files(tmp_path: Path, opened: list[str]) -> None:
    for name in ("a", "b"):
        image_files(tmp_path / name, 2)
    check_images(folder_source(tmp_path), decode=False)
    opened.clear()
    assert check_data(tmp_path).complete
    assert len(opened) >= 8  # hashed and decoded


@pytest.mark.parametrize("change", ["content", "size", "time", "exchange"])
def test_changed_file_is_read_again(tmp_path: Path, opened: list[str], change: str) -> None:
    first = inspect_files(fill(tmp_path), NAMES)
    file, status = tmp_path / "a.png", (tmp_path / "a.png").stat()
    if change == "content":  # of the same size, and the time of modification is set back
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "size":
        file.write_bytes(file.read_bytes() + b"more")
    elif change == "time":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        (tmp_path / "other").write_bytes(file.read_bytes())
        (tmp_path / "other").replace(file)
    opened.clear()
    second = inspect_files(tmp_path, NAMES)
    assert opened == ["a.png"]
    assert (second.hashes[0] == first.hashes[0]) == (change in ("time", "exchange"))
    assert same(inspect_files(tmp_path, NAMES), second)


def test_path_is_part_of_what_is_compared(tmp_path: Path) -> None:
    fill(tmp_path)
    os.link(tmp_path / "a.png", tmp_path / "link.png")  # the same size, times and inode
    fill(tmp_path / "below")
    inspect_files(tmp_path, ["a.png"])
    entries = read_entries(cache_path(str(tmp_path)))
    assert len(entries) == 1
    inspect_files(tmp_path, ["link.png"])
    assert len(read_entries(cache_path(str(tmp_path)))) == 2
    inspect_files(tmp_path / "below", ["a.png"])
    assert len(read_entries(cache_path(str(tmp_path / "below")))) == 1


def test_recent_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fill(tmp_path)
    changed = (tmp_path / "a.png").stat().st_ctime_ns
    monkeypatch.setattr("deit.data.file_info.time.time_ns", lambda: changed + 10**9)
    assert inspect_files(tmp_path, ["a.png"]).sizes.tolist() == [[40, 30]]
    assert not cache.exists()


def test_limits_are_part_of_what_is_compared(tmp_path: Path) -> None:
    fill(tmp_path)
    assert not inspect_files(tmp_path, NAMES).errors
    with pixel_limit(100):
        errors = inspect_files(tmp_path, NAMES).errors
    assert list(errors) == [0, 1, 4]
    assert all(isinstance(error, ImageTooLargeError) for error in errors.values())
    assert "a.png has 40 x 30 pixels, and at most 100 are accepted" in str(errors[0])
    assert not inspect_files(tmp_path, NAMES).errors


def test_unreadable_files_are_read_in_every_run(tmp_path: Path, opened: list[str]) -> None:
    fill(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = (*NAMES, "text.png", "folder.png", "pipe.png", "missing.png", "null\0.png")
    first = inspect_files(tmp_path, names)
    opened.clear()
    second = inspect_files(tmp_path, names)
    assert set(opened) <= {"text.png", "folder.png"}
    for info in (first, second):
        texts = {index: str(error) for index, error in info.errors.items()}
        assert list(texts) == [5, 6, 7, 8, 9]
        assert f"{tmp_path}/text.png is not an image of a supported format" in texts[5]
        assert f"{tmp_path}/folder.png" in texts[6]
        assert "is not a regular file" in texts[7]
        assert "missing.png does not exist" in texts[8]
        assert not info.hashes[5:].any()
        assert not info.sizes[5:].any()
    (tmp_path / "text.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert inspect_files(tmp_path, names).sizes[5].tolist() == [40, 30]


def test_large_file_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = inspect_files(fill(tmp_path), NAMES)
    monkeypatch.setattr("deit.data.file_info.MAX_BYTES_AT_ONCE", 10)
    assert same(inspect_files(tmp_path, NAMES, fresh=True), first)


@pytest.mark.parametrize("blocked", ["file in place of the folder", "pipe", "read-only"])
def test_cache_that_cannot_be_written(tmp_path: Path, cache: Path, blocked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_path(str(tmp_path / "data"))
    if blocked == "pipe":
        cache.mkdir()
        os.mkfifo(path)
    elif blocked == "read-only":

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(file_info_cache, "write_bytes", refuse)
    else:
        cache.write_text("in the way")
    for _ in range(2):
        assert inspect_files(fill(tmp_path / "data"), NAMES).sizes[0].tolist() == [40, 30]


def damage_magic(content: bytes) -> bytes:
    return b"X" + content[1:]


def damage_value(content: bytes) -> bytes:
    return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]


def damage_length(content: bytes) -> bytes:
    return content[:-1]


def forge(**values: int) -> Callable[[bytes], bytes]:
    """Returns what changes the first entry, with a correct checksum."""

    def change(content: bytes) -> bytes:
        entries = np.frombuffer(content, ENTRY, offset=file_info_cache.HEADER_BYTES).copy()
        for name, value in values.items():
            entries[name][0] = value
        rest = struct.pack("<I", len(entries)) + entries.tobytes()
        return file_info_cache.MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest

    return change


DAMAGE = {
    "empty": lambda _: b"",
    "another kind of file": damage_magic,
    "a changed bit": damage_value,
    "cut": damage_length,
    "too large a count": lambda content: content[:12] + b"\xff\xff\xff\xff" + content[16:],
    "no width": forge(width=0),
    "unknown depth": forge(depth=3),
    "out of order": forge(key=2**64 - 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_ignored_and_replaced(tmp_path: Path, opened: list[str], damage: str) -> None:
    first = inspect_files(fill(tmp_path), NAMES)
    path = cache_path(str(tmp_path))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    opened.clear()
    assert same(inspect_files(tmp_path, NAMES), first)
    assert set(opened) == set(NAMES)
    assert len(read_entries(path)) == len(NAMES)


@given(st.binary(max_size=200), st.booleans())
def test_any_content_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes, is_headed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "entries.bin"
    path.write_bytes(file_info_cache.MAGIC + content if is_headed else content)
    assert len(read_entries(path)) * ENTRY.itemsize <= len(content)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)), max_size=20, unique_by=lambda key: key[0]), st.data())
def test_entries_are_found_by_their_keys(keys: list[tuple[int, int]], data: st.DataObject) -> None:
    entries = np.zeros(len(keys), ENTRY)
    entries["key"] = np.asarray(sorted(keys), np.uint64).reshape(-1, 2)
    wanted = data.draw(st.lists(st.sampled_from([*keys, (9, 9)]), max_size=9))
    found = find_entries(entries, np.asarray(wanted, np.uint64).reshape(-1, 2))
    assert [tuple(entries["key"][position].tolist()) if position >= 0 else (9, 9) for position in found] == wanted


def entries_of(day: int, count: int, seed: int = 0) -> np.ndarray:
    entries = np.ones(count, ENTRY)
    entries["key"] = np.random.default_rng(seed).integers(0, 2**63, (count, 2))
    entries["depth"], entries["day"] = 0, day
    return entries


def test_entries_are_dropped_when_they_are_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "a.bin", file_info_cache.today()
    write_entries(path, entries_of(now - 100, 3, seed=1))
    write_entries(path, entries_of(now - 80, 3, seed=2))
    assert sorted(read_entries(path)["day"].tolist()) == [now - 80] * 3
    monkeypatch.setattr(file_info_cache, "MAX_ENTRIES", 4)
    write_entries(path, entries_of(now, 3, seed=3))
    assert sorted(read_entries(path)["day"].tolist()) == [now - 80, now, now, now]
    write_entries(path, entries_of(now, 3, seed=3))
    assert len(read_entries(path)) == 4  # the same ones replace themselves


def test_use_is_recorded_every_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    days = []
    for later in (0, 5, 8):
        monkeypatch.setattr("deit.data.file_info.today", lambda later=later: 20_000 + later)
        inspect_files(tmp_path, NAMES)
        days.append(set(read_entries(cache_path(str(tmp_path)))["day"].tolist()))
    assert days == [{20_000}, {20_000}, {20_008}]


def test_files_of_unused_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "old", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, times=(0, time.time() - age * 40 * 86_400))
    write_entries(tmp_path / "now", entries_of(0, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"now", "new", "old", "older"}
    monkeypatch.setattr(file_info_cache, "MAX_BYTES", 2100)
    write_entries(tmp_path / "now", entries_of(0, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"now", "new", "old"}


def inspect(root: Path, names: tuple[str, ...]) -> None:
    for _ in range(20):
        inspect_files(root, names, fresh=True)


def test_two_programs_at_once(tmp_path: Path, cache: Path) -> None:
    first = inspect_files(fill(tmp_path), NAMES)
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=inspect, args=(tmp_path, names)) for names in (NAMES[:3], NAMES[2:])]
    for program in programs:
        program.start()
    for _ in range(20):
        assert same(inspect_files(tmp_path, NAMES), first)
    for program in programs:
        program.join()
        assert program.exitcode == 0
    assert [path.suffix for path in cache.iterdir()] == [".bin"]  # no drafts
    assert same(inspect_files(tmp_path, NAMES), first)


def test_interrupt_keeps_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    names = tuple(f"{number:02}.png" for number in range(40))
    for name in names:
        pattern(5, 5).save(tmp_path / name)

    def stop(path: Path) -> object:
        if path.name == "20.png":
            raise KeyboardInterrupt
        return read(path)

    read = deit.data.file_info._read_file
    monkeypatch.setattr("deit.data.file_info._read_file", stop)
    with pytest.raises(KeyboardInterrupt):
        inspect_files(tmp_path, names)
    monkeypatch.setattr("deit.data.file_info._read_file", read)
    opened.clear()
    assert not inspect_files(tmp_path, names).errors
    assert set(names[:16]).isdisjoint(opened)
    assert set(names[20:]) <= set(opened)


def test_sources_of_files(tmp_path: Path) -> None:
    image_files(tmp_path / "a", 3)
    pattern(12, 10).save(tmp_path / "a" / "other.png")
    image_files(tmp_path / "b", 1)
    source = folder_source(tmp_path)
    some = MultiLabelSource(subset(subset(source, [3, 1, 0]), [2, 0]), ((0,), (0,)), source.classes)
    assert content_hashes(some).tolist() == [content_hash(source, 0), content_hash(source, 3)]
    assert image_sizes(some).tolist()[1] == [12, 10]
    assert file_info(subset(source, [])) is not None
    assert image_sizes(subset(source, [])).shape == (0, 2)


def test_sources_in_memory() -> None:
    source = ArraySource(np.zeros((3, 4, 5), np.uint8), ("a",), np.zeros(3, np.int64), "image")
    assert file_info(source) is None
    assert image_sizes(subset(source, [0, 2])).tolist() == [[5, 4], [5, 4]]
