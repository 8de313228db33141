"""Whether decoded images are kept is decided by the data, and where by the space that is free."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deit.data import cache_choice
from deit.data.cache_choice import CacheChoice, choose_cache, estimate_costs
from deit.data.cache_request import CacheRequest
from deit.data.sources import ArraySource, FileSource, subset
from deit.data.splits import Splits
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.errors import UserError
from tests.helpers import memory_splits, pattern

TRANSFORM = TrainTransform(Augmentation(repeats=1), 32, 32)


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Splits:
    """Images whose decoding takes most of the time of a sample."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    for index in range(6):
        pattern(200, 150, index).resize((400, 300)).save(tmp_path / f"{index}.png")
    source = FileSource(tmp_path, tuple(f"{index}.png" for index in range(6)), ("a", "b"), np.arange(6) % 2)
    return Splits(subset(source, range(4)), subset(source, (4, 5)), None, "", "")


def choose(splits: Splits, mode: str = "auto", limit: float = 1.0, reduces: bool | None = None) -> CacheChoice:
    return choose_cache(splits, CacheRequest(mode, limit, reduces), TRANSFORM)  # type: ignore[arg-type]


def directory_of(choice: CacheChoice) -> Path:
    assert choice.splits.train_cache is not None
    assert choice.splits.train_cache.store is not None
    return choice.splits.train_cache.store.directory


def test_automatic_cache_of_images_that_take_long_to_decode(splits: Splits, tmp_path: Path) -> None:
    choice = choose(splits)
    assert (choice.mode, choice.reduces) == ("disk", True)
    assert directory_of(choice) == tmp_path / "cache" / "images"
    assert choice.splits.validation_cache is not None
    assert len(choice.splits.validation_cache.keys) == 2
    assert choice.notes == (
        f"Decoded images are kept in {tmp_path / 'cache' / 'images'}, 0.1 MB: decoding takes 80% of the time of a sample",
    )


def test_small_images_are_not_kept(splits: Splits, tmp_path: Path) -> None:
    for index in range(6):
        pattern(60, 40, index).save(tmp_path / f"{index}.png")
    choice = choose(splits)
    assert (choice.mode, choice.reduces, choice.notes) == ("off", False, ())
    assert choice.splits is splits
    assert choose(splits, "disk").mode == "disk"  # but on request


def test_repeats_share_the_decoding(splits: Splits) -> None:
    repeated = TrainTransform(Augmentation(repeats=3), 32, 32)
    once, three = estimate_costs(splits.train, TRANSFORM), estimate_costs(splits.train, repeated)
    assert three.decoding == pytest.approx(once.decoding / 3)
    assert (three.sample, three.nbytes) == (once.sample, once.nbytes)


def test_off(splits: Splits, tmp_path: Path) -> None:
    choice = choose(splits, "off")
    assert (choice.mode, choice.reduces) == ("off", False)
    assert choice.splits is splits
    assert not (tmp_path / "cache").exists()


def test_memory_is_used_where_the_disk_has_no_space(splits: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deit.system.private_directory.SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    free = {tmp_path / "cache" / "images": 1000}
    monkeypatch.setattr("deit.data.cache_choice.shutil.disk_usage", lambda path: SimpleNamespace(free=free.get(path, 10**9)))
    choice = choose(splits)
    assert choice.mode == "memory"
    directory = directory_of(choice)
    assert directory.parent == tmp_path / "memory"
    del choice
    assert not directory.exists()


def test_nothing_is_kept_where_there_is_no_space(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.data.cache_choice.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    choice = choose(splits)
    assert (choice.mode, choice.reduces) == ("off", False)
    assert choice.notes == (
        "Decoded images, 0.1 MB, are not kept: the user's cache has space for 0.0 MB; memory has space for 0.0 MB",
    )
    partly = choose(splits, "disk")
    assert (partly.mode, partly.reduces) == ("disk", True)
    assert partly.notes[1] == "There is space for 0.0 MB of them; the other images are decoded in each epoch"


@pytest.mark.usefixtures("splits")
def test_half_of_the_free_space_is_used_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.data.cache_choice.shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert cache_choice.disk_store(0.25).capacity == 250_000_000
    assert cache_choice.disk_store(100.0).capacity == 500_000_000


def test_unwritable_cache_is_a_note(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("deit.data.cache_choice.tempfile.TemporaryFile", fail)
    choice = choose(splits, "disk")
    assert (choice.mode, choice.reduces) == ("off", False)
    (note,) = choice.notes
    assert note.endswith("are not kept: the user's cache cannot be written to (Read-only file system)")


@pytest.mark.parametrize("mode", ["auto", "off", "disk", "memory"])
@pytest.mark.parametrize("reduces", [True, False])
def test_decision_of_an_earlier_run_is_kept(splits: Splits, mode: str, reduces: bool) -> None:
    choice = choose(splits, mode, reduces=reduces)
    assert choice.reduces is reduces
    cache = choice.splits.train_cache
    assert (cache is not None and cache.reduces) is reduces
    if mode == "off":
        assert cache is None or cache.store is None


def test_images_in_memory_are_not_kept() -> None:
    images = np.zeros((8, 4000, 4000), np.uint8)
    source = ArraySource(images, ("a", "b"), np.arange(8) % 2, "image")
    for splits in (memory_splits(5), Splits(source, source, None, "", "")):
        choice = choose(splits, "disk")
        assert (choice.mode, choice.reduces) == ("off", False)


def test_others_make_room_but_not_what_the_run_needs(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(splits)
    cache = first.splits.train_cache
    assert cache is not None
    for index in range(4):
        with cache.open(splits.train, index, TRANSFORM.smallest_scale):
            pass
    directory = directory_of(first)
    own = {path.name for path in directory.iterdir()}
    (directory / "other").write_bytes(bytes(100_000))
    size = sum(path.stat().st_size for path in directory.iterdir())
    monkeypatch.setattr("deit.data.cache_choice.shutil.disk_usage", lambda _: SimpleNamespace(free=size))
    choose(splits, "disk", limit=size / 1e9)
    assert own <= {path.name for path in directory.iterdir()}
    monkeypatch.setattr("deit.data.cache_choice.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    choose(splits, "disk")
    assert {path.name for path in directory.iterdir()} == own


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda: CacheRequest("ram"), r"no cache 'ram': pass one of auto, memory, disk, off"),  # type: ignore[arg-type]
        (lambda: CacheRequest("disk", 0.0), r"limited to 0 GB: pass a larger --cache-limit, or --cache off"),
        (lambda: CacheRequest("disk", float("nan")), r"limited to nan GB"),
    ],
)
def test_invalid_request(request_of: Callable[[], CacheRequest], message: str) -> None:
    with pytest.raises(UserError, match=message):
        request_of().check()


def test_broken_images_do_not_count(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"\x89PNG broken")
    assert estimate_costs(splits.train, TRANSFORM).nbytes > 0
    Image.new("RGB", (5, 5)).save(tmp_path / "1.png")
    nothing = replace(splits, train=subset(splits.train, (0,)))
    assert estimate_costs(nothing.train, TRANSFORM).speedup == 1
