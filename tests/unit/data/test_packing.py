"""Packed data sets: the same samples as from the files, damage, addresses, and Parquet files."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.data.checking import check_data, without_unreadable
from deit.data.datasets import shards
from deit.data.datasets.shards import ENTRY, MANIFEST_NAME, ShardSource, packed_splits
from deit.data.file_info import file_info, image_sizes
from deit.data.image_hashes import content_hashes
from deit.data.loader import Loader
from deit.data.opening import absolute_name, open_data, open_unlabeled, read_splits, short_name
from deit.data.packing import pack
from deit.data.sources import ImageSource, image_content
from deit.errors import DataError, DeiTError, ImageError, LoadingError, UserError
from deit.recipes.presets import get_recipe
from deit.recipes.samples import training_samples, view_steps
from tests.helpers import pattern

CLASSES = ("a cat", "собака")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("holiday photos")
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                ending = ("jpg", "png", "webp")[number % 3]
                pattern(50 + 7 * number, 40, 100 * label + number).save(folder / f"{number}, ü.{ending}")
    return root


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "my shards"
    result = pack(photos, out, shard_mb=0.02)
    assert result.images == {"train": 24, "validation": 8}
    assert result.shards > 2
    assert result.image_bytes == sum(path.stat().st_size for path in photos.rglob("*.*") if path.is_file())
    return out


def contents(source: ImageSource) -> list[bytes]:
    found = (image_content(source, index) for index in range(len(source.labels)))
    return [content if isinstance(content, bytes) else content.read_bytes() for content in found]


def test_packed_data_is_the_same_data(photos: Path, packed: Path) -> None:
    files, from_shards = open_data(photos), open_data(packed)
    assert from_shards.classes == files.classes
    assert from_shards.fingerprint == files.fingerprint  # cached logits, splits and resumed runs fit
    assert from_shards.origin == files.origin
    for one, other in ((files.train, from_shards.train), (files.validation, from_shards.validation)):
        assert contents(other) == contents(one)
        assert other.labels.tolist() == one.labels.tolist()
        assert [other.name(index) for index in range(24 if one is files.train else 8)] == [
            one.name(index) for index in range(len(one.labels))
        ]
        assert (content_hashes(other) == content_hashes(one)).all()
        assert (image_sizes(other) == image_sizes(one)).all()
    assert without_unreadable(from_shards, skip=False)[1] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_data_makes_the_same_batches(photos: Path, packed: Path, workers: int) -> None:
    recipe = get_recipe("deit").tiny().replace(batch_size=8)
    batches = []
    for data in (photos, packed):
        source = open_data(data).train
        loader = Loader(training_samples(recipe, source), workers)
        batches.append(list(loader.run([plan for step in view_steps(recipe, len(source.labels), 0) for plan in step])))
        loader.close()
    for one, other in zip(*batches, strict=True):
        assert (one.pixel_values == other.pixel_values).all()
        assert (one.targets == other.targets).all()


def test_shards_are_webdataset(photos: Path, packed: Path) -> None:
    source = open_data(photos).train
    seen: dict[str, dict[str, bytes]] = {}
    keys = []
    for shard in sorted(packed.glob("train-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                seen.setdefault(key, {})[ending] = file.read()
                keys.append(key)
    assert keys[::2] == keys[1::2]  # the files of an image are neighbors
    assert keys[::2] != sorted(keys[::2])  # in a random order
    for index, key in enumerate(sorted(seen)):
        files = seen[key]
        [ending] = files.keys() - {"cls"}
        assert source.name(index).endswith(f".{ending}")
        assert files[ending] == contents(source)[index]
        assert int(files["cls"]) == source.labels[index]


def test_reduced_images_are_jpeg(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "small", size=32, quality=80)
    source = open_data(tmp_path / "small").train
    for index in range(len(source.labels)):
        image = source.load(index)
        assert min(image.size) == 32
        assert image_content(source, index)[:2] == b"\xff\xd8"  # type: ignore[index]
    original = open_data(photos).train.load(3)
    assert abs(source.load(3).size[0] / 32 - original.size[0] / original.size[1]) < 0.05


def test_unreadable_image_is_an_error_or_left_out(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in range(3):
            pattern(30, 30, number).save(root / label / f"{number}.png")
    (root / CLASSES[0] / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"1\.png.*--skip-unreadable"):
        pack(root, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == [root]  # nothing is left behind
    result = pack(root, tmp_path / "packed", skip_unreadable=True)
    assert (result.images, result.skipped) == ({"train": 5}, 1)
    assert read_splits(tmp_path / "packed").unsplit
    with pytest.raises(UserError, match="exists already"):
        pack(root, tmp_path / "packed")


def test_pixels_in_memory_are_packed_as_png(tmp_path: Path) -> None:
    pack("digits", tmp_path / "packed")
    digits, packed = open_data("digits"), open_data(tmp_path / "packed")
    for index in (0, 7):
        assert (np.asarray(packed.train.load(index)) == np.asarray(digits.train.load(index))).all()
    assert packed.test is not None


def test_data_commands_read_packed_data(packed: Path) -> None:
    found = check_data(packed)
    assert found.complete
    assert found.class_counts == {name: {"train": 12, "validation": 4} for name in CLASSES}
    assert len(open_unlabeled(packed).train.labels) > 0
    assert short_name(packed) == "my shards"


@pytest.fixture
def address(packed: Path) -> Iterator[str]:
    """The packed data in a file system of fsspec."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe_file(f"/bucket/photos/{path.name}", path.read_bytes())
    yield "memory://bucket/photos"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_address_is_read_as_a_folder_is(packed: Path, address: str, workers: int) -> None:
    assert (absolute_name(address), short_name(address)) == (address, "photos")
    local, remote = open_data(packed), open_data(address)
    assert remote.fingerprint == local.fingerprint
    assert contents(remote.train) == contents(local.train)
    recipe = get_recipe("deit").tiny().replace(batch_size=8)
    loader = Loader(training_samples(recipe, remote.train), workers)
    batches = list(loader.run([plan for step in view_steps(recipe, 24, 0) for plan in step]))
    loader.close()
    assert sum(len(batch.labels) for batch in batches) == 24
    assert contents(pickle.loads(pickle.dumps(remote.train))) == contents(local.train)  # noqa: S301 - our own bytes


@pytest.mark.parametrize("data", ["memory://nothing/here", "unknown://nothing", "s3a1://x"])
def test_address_without_packed_data_is_an_error(data: str) -> None:
    with pytest.raises(DataError, match=r"no readable shards\.json"):
        open_data(data)


def copied(packed: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in packed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_missing_shard_stops_the_work_and_a_cut_one_is_an_unreadable_image(packed: Path, tmp_path: Path) -> None:
    folder = copied(packed, tmp_path / "packed")
    source = open_data(folder).train
    assert isinstance(source, ShardSource)
    shard = folder / source.shards[source.entries["shard"][0]]
    content = shard.read_bytes()
    shard.write_bytes(content[: int(source.entries["offset"][0]) + 10])
    with pytest.raises(ImageError, match="cut off"):
        source.load(0)
    shard.unlink()
    with pytest.raises(LoadingError, match="cannot be read"):
        source.load(0)


CHANGES: dict[str, Any] = {
    "another format": {"format": 2},
    "classes that are no text": {"classes": [1, 2]},
    "one class": {"classes": ["a"]},
    "no splits": {"splits": {}},
    "an unknown split": {"splits": {"other": {}}},
    "a split without shards": {"splits": {"train": {"images": 24}}},
    "a path": {"splits": {"train": {"images": 24, "shards": [{"name": "../train-000000.tar", "bytes": 10**9}]}}},
    "a negative size": {"splits": {"train": {"images": 24, "shards": [{"name": "train-000000.tar", "bytes": -1}]}}},
    "small shards": {"splits": {"train": {"images": 24, "shards": [{"name": f"t-{n}.tar", "bytes": 512} for n in range(99)]}}},
    "more images": {"splits": {"train": {"images": 25, "shards": [{"name": "train-000000.tar", "bytes": 10**9}]}}},
    "no count": {"splits": {"train": {"images": True, "shards": [{"name": "train-000000.tar", "bytes": 10**9}]}}},
    "a fraction that is no number": {"holdout": {"validation": "all"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_manifest_is_an_error(packed: Path, tmp_path: Path, change: str) -> None:
    folder = copied(packed, tmp_path / "packed")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, **CHANGES[change]}))
    with pytest.raises(DataError, match=r"damaged|format"):
        packed_splits(str(folder))


@given(st.data())
def test_damaged_index_makes_errors_of_ours_only(packed: Path, data: st.DataObject) -> None:
    raw = {name: bytearray((packed / name).read_bytes()) for name in ("train.index", "train.names", MANIFEST_NAME)}
    name = data.draw(st.sampled_from(sorted(raw)))
    position = data.draw(st.integers(0, len(raw[name]) - 1))
    raw[name][position] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del raw[name][position:]
    storage = shards.ShardStorage.read

    def read(self: shards.ShardStorage, file: str, limit: int) -> bytes:
        return bytes(raw[file])[: limit + 1] if file in raw else storage(self, file, limit)

    shards.ShardStorage.read = read  # type: ignore[assignment, method-assign]
    try:
        source = packed_splits(str(packed)).train
    except DeiTError:
        return
    finally:
        shards.ShardStorage.read = storage  # type: ignore[method-assign]
    for index in range(len(source.labels)):
        with suppress(DeiTError):
            source.load(index)


def test_entry_has_no_padding() -> None:
    assert ENTRY.itemsize == 37


def test_recorded_info_is_what_the_files_have(photos: Path, packed: Path) -> None:
    one, other = (file_info(open_data(data).train) for data in (photos, packed))
    assert one is not None
    assert other is not None
    assert (one.depths == other.depths).all()


def test_parquet_files_are_a_data_set(photos: Path, tmp_path: Path) -> None:
    import datasets

    source = open_data(photos).train
    rows = {
        "image": [{"bytes": content, "path": None} for content in contents(source)],
        "label": source.labels.tolist(),
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    table = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "one file.parquet")
    table.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    table.select(range(0, 24, 3)).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    for data in ("one file.parquet", "hub"):
        read = read_splits(tmp_path / data)
        assert contents(read.train) == contents(source)
        assert read.train.classes == CLASSES
        assert (read.test is None) == (data == "one file.parquet")
    assert len(open_unlabeled(tmp_path / "one file.parquet").train.labels) > 0
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_splits(tmp_path / "damaged.parquet")
