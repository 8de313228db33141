"""Samples made with a cache: the same whether an image is kept or not, with the crops that are drawn without a cache."""

from __future__ import annotations

import errno
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deit.data.image_cache import ImageCache, decoding_settings
from deit.data.image_hashes import content_hashes
from deit.data.image_store import ImageStore
from deit.data.loader import EvaluationSamples, Loader, TrainSamples
from deit.data.sampler import epoch_steps
from deit.data.sources import FileSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.crops import Box
from deit.data.transforms.mixing import Mixing
from deit.data.workers import print_note_once
from deit.errors import ImageError
from deit.images.processor import DeiTImageProcessor
from tests.helpers import pattern

SIZES = [(800, 600), (601, 907), (1500, 333), (40, 50), (640, 640), (350, 1200)]
RESIZED = TrainTransform(Augmentation(scale=(0.3, 1.0)), 64, 48)
SIMPLE = TrainTransform(Augmentation(crop="simple"), 48, 48)
PADDED = TrainTransform(Augmentation(crop="padded"), 32, 32)
PLAIN = Augmentation(scale=(0.3, 1.0), flip=0, color_jitter=0, erasing=0, repeats=1).model_copy(
    update={"randaugment": Augmentation().randaugment.model_copy(update={"operations": 0})}
)


@pytest.fixture
def photos(tmp_path: Path) -> FileSource:
    """Files of two formats and many sizes, some with an EXIF orientation."""
    for index, size in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = (1, 6, 3)[index % 3]
        image = pattern(max(size[0] // 90, 2), max(size[1] // 90, 2), index).resize(size, Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{index}.{'png' if index % 2 else 'jpg'}", quality=92, exif=exif)
    names = tuple(f"{index}.{'png' if index % 2 else 'jpg'}" for index in range(len(SIZES)))
    return FileSource(tmp_path, names, ("a", "b", "c"), np.arange(len(SIZES)) % 3)


def with_cache(
    source: FileSource, transform: TrainTransform, directory: Path | None, capacity: int = 10**9, reduces: bool = True
) -> TrainSamples:
    store = None if directory is None else ImageStore(directory, capacity)
    cache = ImageCache(content_hashes(source), decoding_settings(None), store, reduces)
    return TrainSamples(source, transform, Mixing(mixup=0.8, cutmix=1.0), seed=3, cache=cache)


def every_sample(samples: TrainSamples, epochs: int = 2) -> np.ndarray:
    count = len(samples.source.labels)
    return np.stack([samples.sample(epoch, index, 1) for epoch in range(epochs) for index in range(count)])


@pytest.mark.parametrize("transform", [RESIZED, SIMPLE, PADDED], ids=["resized", "simple", "padded"])
def test_sample_does_not_depend_on_what_is_kept(photos: FileSource, transform: TrainTransform, tmp_path: Path) -> None:
    nothing_kept = every_sample(with_cache(photos, transform, None))
    samples = with_cache(photos, transform, tmp_path / "images")
    for _ in range(2):  # first they are written, then read
        assert np.array_equal(every_sample(samples), nothing_kept)
    assert samples.cache is not None
    assert samples.cache.store is not None
    assert len(samples.cache.store.files()) == len(SIZES)


def test_finer_pyramid_of_another_run_gives_the_same_samples(photos: FileSource, tmp_path: Path) -> None:
    fine = TrainTransform(Augmentation(scale=(0.05, 1.0)), 96, 96)
    expected = every_sample(with_cache(photos, RESIZED, None)), every_sample(with_cache(photos, fine, None))
    for transforms in ((RESIZED, fine), (fine, RESIZED)):
        for transform in transforms:
            samples = with_cache(photos, transform, tmp_path / f"{transforms[0].size}")
            for _ in range(2):
                assert np.array_equal(every_sample(samples), expected[int(transform is fine)])


def test_image_is_decoded_once(photos: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = with_cache(photos, RESIZED, tmp_path / "images")
    every_sample(samples)

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("deit.data.image_cache.build_pyramid", fail)
    every_sample(samples)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_change_nothing(
    photos: FileSource, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deit.data.loader.worker_context", lambda: multiprocessing.get_context(method))
    samples = with_cache(photos, RESIZED, tmp_path / "images")
    plans = epoch_steps(len(SIZES), 3, samples.seed, 0, repeats=3)
    expected = [with_cache(photos, RESIZED, None).batch(plan) for plan in plans]
    loader = Loader(samples, 2)
    for _ in range(2):
        for batch, other in zip(loader.run(plans), expected, strict=True):
            assert torch.equal(batch.pixel_values, other.pixel_values)
            assert torch.equal(batch.targets, other.targets)
    loader.close()


def test_damaged_files_are_replaced(photos: FileSource, tmp_path: Path) -> None:
    samples = with_cache(photos, RESIZED, tmp_path / "images")
    expected = every_sample(samples)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        content = bytearray(path.read_bytes())
        for position in (-1, -3000, 5) if number % 2 else (5,):
            content[position] ^= 0xFF
        path.write_bytes(content)
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert np.array_equal(every_sample(samples), expected)
    assert all((tmp_path / "images" / name).read_bytes() != content for name, content in before.items())


def test_full_disk_is_a_note_and_changes_nothing(
    photos: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    print_note_once.cache_clear()
    monkeypatch.setattr("deit.data.image_store.os.replace", fail)
    samples = with_cache(photos, RESIZED, tmp_path / "images")
    assert np.array_equal(every_sample(samples), every_sample(with_cache(photos, RESIZED, None)))
    assert list((tmp_path / "images").iterdir()) == []
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"Note:      Decoded images are not kept in {tmp_path / 'images'} any more: No space left on device."]


def test_copies_and_renamed_files_share_a_kept_image(photos: FileSource, tmp_path: Path) -> None:
    every_sample(with_cache(photos, RESIZED, tmp_path / "images"))
    count = len(list((tmp_path / "images").iterdir()))
    renamed = tmp_path / "0.jpg"
    renamed.rename(tmp_path / "other name.jpeg")
    moved = replace(photos, names=("other name.jpeg", *photos.names[1:]))
    every_sample(with_cache(moved, RESIZED, tmp_path / "images"))
    assert len(list((tmp_path / "images").iterdir())) == count


def test_changed_image_and_other_settings_are_kept_apart(photos: FileSource, tmp_path: Path) -> None:
    cache = with_cache(photos, RESIZED, tmp_path / "images").cache
    assert cache is not None
    pattern(800, 600, 99).save(tmp_path / "0.jpg")
    changed = with_cache(photos, RESIZED, tmp_path / "images").cache
    assert changed is not None
    names = {cache.name(0, "training"), changed.name(0, "training"), cache.name(1, "training"), cache.name(0, "{}")}
    names |= {replace(cache, decoding=decoding_settings("integers 0 to 4095")).name(0, "training")}
    assert len(names) == 5


@pytest.mark.parametrize("skip", [True, False])
def test_unreadable_image(photos: FileSource, tmp_path: Path, skip: bool) -> None:
    (tmp_path / "0.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:5000])
    (tmp_path / "1.png").unlink()
    samples = replace(with_cache(photos, RESIZED, tmp_path / "images"), skip_unreadable=skip)
    (plan,) = epoch_steps(len(SIZES), len(SIZES), 3, 0)
    for _ in range(2):
        if skip:
            assert samples.batch(plan).skipped == 2
        else:
            with pytest.raises(ImageError, match=r"0\.jpg|1\.png"):
                samples.batch(plan)


class Recorder(TrainTransform):
    """Records the boxes that are drawn, and whether the generator is in the same state after them."""

    drawn: list[tuple[Box, int]]

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        box = super().box(width, height, rng)
        self.drawn.append((box, int(rng.bit_generator.state["state"]["counter"][0])))
        return box


@pytest.mark.parametrize("crop", ["resized", "simple", "padded"])
def test_the_same_crops_are_drawn_with_and_without_a_cache(photos: FileSource, crop: str, tmp_path: Path) -> None:
    """The pixels differ by little, where those of another crop differ by tens of levels."""
    transform = Recorder(PLAIN.model_copy(update={"crop": crop}), 48, 40, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    transform.drawn = []
    cached = with_cache(photos, transform, tmp_path / "images")
    without = replace(cached, cache=None)
    for index in range(len(SIZES)):
        for epoch in range(4):
            difference = np.abs(cached.sample(epoch, index) - without.sample(epoch, index)) * 255
            assert difference.mean() < 4
            assert transform.drawn[-1] == transform.drawn[-2]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0.2, 1))
def test_no_crop_is_smaller_than_the_smallest(width: int, height: int, seed: int, area: float, ratio: float) -> None:
    augmentation = Augmentation(scale=(area, 1.0), ratio=(ratio, 1 / ratio))
    transform = TrainTransform(augmentation, 40, 56)
    left, top, right, bottom = transform.box(width, height, np.random.default_rng(seed))
    smallest = transform.smallest_scale(width, height)
    assert right - left >= 56 * smallest - 0.51
    assert bottom - top >= 40 * smallest - 0.51


def test_hidden_sizes_of_simple_crops_are_those_of_the_original() -> None:
    transform = TrainTransform(Augmentation(crop="simple"), 32, 32)
    assert transform.smallest_scale(640, 320) == 10
    assert TrainTransform(Augmentation(crop="padded"), 32, 64).smallest_scale(640, 640) == 10


def test_validation_images_are_exact(photos: FileSource, tmp_path: Path) -> None:
    processor = DeiTImageProcessor.for_size(48, 48)
    plain = EvaluationSamples(photos, processor)
    cache = ImageCache(content_hashes(photos), decoding_settings(None), ImageStore(tmp_path / "images", 10**9), True)
    samples = EvaluationSamples(photos, processor, cache=cache)
    (plan,) = plain.plans(len(SIZES))
    for _ in range(2):
        assert torch.equal(samples.batch(plan).pixel_values, plain.batch(plan).pixel_values)
    assert {file.size < 8000 for file in ImageStore(tmp_path / "images", 0).files()} == {True}
    other = EvaluationSamples(photos, DeiTImageProcessor.for_size(48, 48, crop="squash"), cache=cache)
    expected = EvaluationSamples(photos, other.processor).batch(plan)
    assert torch.equal(other.batch(plan).pixel_values, expected.pixel_values)


def test_damaged_validation_image_is_replaced(photos: FileSource, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", 10**9)
    cache = ImageCache(content_hashes(photos), decoding_settings(None), store, True)
    samples = EvaluationSamples(photos, DeiTImageProcessor.for_size(48, 48), cache=cache)
    (plan,) = samples.plans(len(SIZES))
    expected = samples.batch(plan).pixel_values
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert torch.equal(samples.batch(plan).pixel_values, expected)


def test_measuring_uses_a_few_images(photos: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.data.loader.MEASURED_IMAGES", 2)
    samples = with_cache(photos, RESIZED, tmp_path / "images").for_measuring()
    (plan,) = epoch_steps(len(samples.source.labels), 6, 3, 0)
    assert samples.batch(plan).pixel_values.shape[0] == 6
    assert len(list((tmp_path / "images").iterdir())) == 2
    unchanged = TrainSamples(photos, RESIZED, Mixing(), seed=3)
    assert unchanged.for_measuring() is unchanged
    cached: Any = SimpleNamespace(for_measuring=lambda: None)
    assert replace(samples, teacher_targets=cached).for_measuring().teacher_targets is None
