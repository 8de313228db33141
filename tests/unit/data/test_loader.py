"""The data loader: batches do not depend on worker processes, ranks or micro-batches, nor samples on their batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deit.data.loader import Batch, EvaluationSamples, Loader, TrainSamples, default_workers
from deit.data.sampler import BatchPlan, epoch_steps, micro_batches, rank_share
from deit.data.sources import FileSource, subset
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.crops import Box
from deit.data.transforms.mixing import Mixing
from deit.errors import ImageError, LoadingError
from deit.images.processor import DeiTImageProcessor
from tests.helpers import MemorySource, pattern

TRANSFORM = TrainTransform(Augmentation(), 24, 16)
PAPER_MIXING = Mixing(mixup=0.8, cutmix=1.0)
PROCESSOR = DeiTImageProcessor.for_size(16, 16)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")


def train_samples(source: MemorySource, mixing: Mixing = PAPER_MIXING, skip: bool = False, seed: int = 5) -> TrainSamples:
    return TrainSamples(source, TRANSFORM, mixing, seed=seed, smoothing=0.1, skip_unreadable=skip)


def assert_equal(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("pixel_values", "labels", "targets", "samples"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.skipped == b.skipped


def concatenated(batches: Sequence[Batch]) -> Batch:
    def cat(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    return Batch(cat("pixel_values"), cat("labels"), cat("targets"), cat("samples"))


@pytest.mark.parametrize("workers", [1, 4])
def test_number_of_workers_does_not_change_batches(workers: int) -> None:
    samples = train_samples(MemorySource(22))
    serial, parallel = Loader(samples, 0), Loader(samples, workers)
    for epoch in (0, 1):  # the worker processes persist
        plans = epoch_steps(22, 6, samples.seed, epoch, repeats=3)
        batches = list(serial.run(plans))
        assert_equal(list(parallel.run(plans)), batches)
        assert_equal([samples.batch(plan) for plan in plans], batches)


def test_interrupted_epoch_does_not_leak_into_the_next() -> None:
    samples = train_samples(MemorySource(24))
    loader = Loader(samples, 2)
    first, second = (epoch_steps(24, 4, samples.seed, epoch) for epoch in (0, 1))
    batches = loader.run(first)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert_equal(list(loader.run(second)), [samples.batch(plan) for plan in second])


def test_batch_shapes() -> None:
    (plan,) = epoch_steps(5, 8, 5, epoch=0)
    batch = train_samples(MemorySource(5)).batch(plan)
    assert (batch.pixel_values.shape, batch.pixel_values.dtype) == ((5, 3, 24, 16), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((5,), torch.int64)
    assert (batch.targets.shape, batch.targets.dtype) == ((5, 3), torch.float32)
    assert torch.equal(batch.samples, torch.from_numpy(plan.samples))
    assert batch.labels.tolist() == [index % 3 for index in plan.samples[:, 0].tolist()]


def test_sample_does_not_depend_on_its_batch() -> None:
    samples = train_samples(MemorySource(12), mixing=Mixing())
    for plan in epoch_steps(12, 6, samples.seed, epoch=2, repeats=2):
        batch = samples.batch(plan)
        for row, (index, repeat, _) in enumerate(plan.samples.tolist()):
            assert np.array_equal(samples.sample(2, index, repeat), batch.pixel_values[row].numpy())
            expected = torch.full((3,), 0.1 / 3)
            expected[index % 3] += 0.9
            assert torch.allclose(batch.targets[row], expected)


@dataclass(frozen=True)
class CountingSource(MemorySource):
    loads: list[int] = field(default_factory=list)

    def load(self, index: int) -> Image.Image:
        self.loads.append(index)
        return super().load(index)


def test_image_is_decoded_once_for_its_repeats() -> None:
    source = CountingSource(30)
    (plan,) = epoch_steps(30, 30, 5, epoch=0, repeats=3)
    train_samples(source).batch(plan)
    assert sorted(source.loads) == sorted(set(plan.samples[:, 0].tolist()))
    assert len(source.loads) == 10


def test_micro_batches_of_the_recipe_share_few_images() -> None:
    """Hardly any image is decoded for more than one micro-batch of 128."""
    (plan,) = epoch_steps(1024, 1024, 0, epoch=0, repeats=3)
    decoded = sum(len(set(piece.samples[:, 0].tolist())) for piece in micro_batches(plan, 128))
    assert decoded < 1.1 * 1024 / 3


@pytest.fixture
def photos(tmp_path: Path) -> FileSource:
    """Large files of several formats, some with an EXIF orientation."""
    files = []
    for seed in range(6):
        exif = Image.Exif()
        exif[0x0112] = (1, 6, 3)[seed % 3]
        image = pattern(400 + 30 * seed, 300, seed).resize((800 + 60 * seed, 600), Image.Resampling.BICUBIC)
        files.append(tmp_path / f"{seed}.{'png' if seed == 5 else 'jpg'}")
        image.save(files[-1], quality=92, exif=exif)
    return FileSource(tmp_path, tuple(file.name for file in files), ("a", "b", "c"), np.arange(6) % 3)


LARGE = TrainTransform(Augmentation(scale=(0.3, 1.0)), 64, 48)


def test_sample_of_a_reduced_jpeg_does_not_depend_on_its_batch(photos: FileSource) -> None:
    samples = TrainSamples(photos, LARGE, PAPER_MIXING, seed=1)
    (plan,) = epoch_steps(6, 6, 1, epoch=0, repeats=3)
    whole = samples.batch(plan)
    pieces = [samples.batch(piece) for piece in micro_batches(plan, 2)]
    assert_equal([concatenated(pieces)], [whole])
    unmixed = TrainSamples(subset(photos, range(6)), LARGE, Mixing(), seed=1)
    for row, (index, repeat, _) in enumerate(plan.samples.tolist()):
        assert np.array_equal(unmixed.batch(plan).pixel_values[row].numpy(), unmixed.sample(0, index, repeat))


def test_reduction_follows_from_all_repeats_of_an_image(photos: FileSource) -> None:
    """Including those in other batches, since a sample must not depend on its batch."""
    box_counts: list[int] = []

    class Recorder(TrainTransform):
        def reduction(self, boxes: Iterable[Box]) -> int:
            boxes = list(boxes)
            box_counts.append(len(boxes))
            return super().reduction(boxes)

    samples = TrainSamples(photos, Recorder(LARGE.settings, *LARGE.size), Mixing(), seed=1)
    samples.sample(0, 2, repeat=1)
    samples.batch(BatchPlan(0, 0, np.array([[2, 0, 0]])))
    assert box_counts == [3, 3]


def test_sample_depends_on_epoch_repeat_and_seed() -> None:
    samples, other = train_samples(MemorySource(12)), train_samples(MemorySource(12), seed=6)
    variants = [samples.sample(0, 4), samples.sample(1, 4), samples.sample(0, 4, repeat=1), other.sample(0, 4)]
    for position, sample in enumerate(variants):
        assert not any(np.array_equal(sample, later) for later in variants[position + 1 :])


def test_mixed_pair_does_not_depend_on_its_batch() -> None:
    samples = train_samples(MemorySource(13))
    (plan,) = epoch_steps(13, 13, samples.seed, epoch=1)
    whole = samples.batch(plan)
    for first in range(0, 13, 2):
        pair = samples.batch(BatchPlan(1, 0, plan.samples[first : first + 2]))
        assert torch.equal(pair.pixel_values, whole.pixel_values[first : first + 2])
        assert torch.equal(pair.targets, whole.targets[first : first + 2])


@pytest.mark.parametrize("size", [12, 13])
def test_ranks_and_micro_batches_do_not_change_the_global_batch(size: int) -> None:
    samples = train_samples(MemorySource(size))
    (plan,) = epoch_steps(size, size, samples.seed, epoch=3, repeats=3)
    whole = samples.batch(plan)
    for pieces in (
        [rank_share(plan, rank, 2) for rank in range(2)],
        [rank_share(plan, rank, 3) for rank in range(3)],
        micro_batches(plan, 4),
        [piece for rank in range(2) for piece in micro_batches(rank_share(plan, rank, 2), 2)],
    ):
        assert_equal([concatenated([samples.batch(piece) for piece in pieces])], [whole])


def test_mixing_changes_pixels_and_targets() -> None:
    (plan,) = epoch_steps(12, 12, 5, epoch=0)
    mixed, unmixed = train_samples(MemorySource(12)).batch(plan), train_samples(MemorySource(12), mixing=Mixing()).batch(plan)
    assert not torch.equal(mixed.pixel_values, unmixed.pixel_values)
    assert torch.equal(mixed.labels, unmixed.labels)
    assert torch.allclose(mixed.targets.sum(dim=1), torch.ones(12))
    assert (mixed.targets.max(dim=1).values < unmixed.targets.max(dim=1).values - 0.01).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_an_image_error(workers: int) -> None:
    loader = Loader(train_samples(MemorySource(8, broken=frozenset({3}))), workers)
    with pytest.raises(ImageError, match=r"\Aimage 3 is broken: replace it\.\Z"):
        list(loader.run(epoch_steps(8, 4, 5, epoch=0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_lack_of_memory_is_a_loading_error(workers: int) -> None:
    class LargeImages(MemorySource):
        def load(self, _index: int) -> Image.Image:
            raise MemoryError

    with pytest.raises(LoadingError, match="Memory ran out while images were loaded: pass a smaller batch size"):
        list(Loader(train_samples(LargeImages(8)), workers).run(epoch_steps(8, 4, 5, epoch=0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_counted(workers: int) -> None:
    source = MemorySource(12, broken=frozenset({3, 7}))
    samples = train_samples(source, skip=True)
    plans = epoch_steps(12, 12, 5, epoch=0)
    (batch,) = Loader(samples, workers).run(plans)
    assert batch.skipped == 2
    kept = [row for row, index in enumerate(plans[0].samples[:, 0]) if index not in source.broken]
    assert batch.samples.tolist() == plans[0].samples[kept].tolist()
    assert batch.labels.tolist() == [index % 3 for index in plans[0].samples[kept, 0]]
    assert torch.allclose(batch.targets.sum(dim=1), torch.ones(10))


def test_image_without_a_partner_is_not_mixed_and_other_pairs_do_not_change() -> None:
    plan = BatchPlan(0, 0, np.array([[0, 0, 0], [1, 0, 1], [2, 0, 2], [3, 0, 3], [4, 0, 4], [5, 0, 5]]))
    samples = train_samples(MemorySource(6, broken=frozenset({2})), skip=True)
    whole, remaining = train_samples(MemorySource(6)).batch(plan), samples.batch(plan)
    for row, original in enumerate([0, 1, 3, 4, 5]):
        if original == 3:
            assert np.array_equal(remaining.pixel_values[row].numpy(), samples.sample(0, 3))
            assert remaining.targets[row].max().item() == pytest.approx(0.9 + 0.1 / 3)
        else:
            assert torch.equal(remaining.pixel_values[row], whole.pixel_values[original])
            assert torch.equal(remaining.targets[row], whole.targets[original])


def test_batch_of_unreadable_images_is_empty() -> None:
    samples = train_samples(MemorySource(4, broken=frozenset(range(4))), skip=True)
    batch = samples.batch(epoch_steps(4, 4, 5, epoch=0)[0])
    assert (batch.skipped, len(batch.labels)) == (4, 0)
    assert (
        batch.pixel_values.shape[1:]
        == train_samples(MemorySource(4)).batch(epoch_steps(4, 4, 5, epoch=0)[0]).pixel_values.shape[1:]
    )


def test_evaluation_has_every_image_once_as_preprocessed_by_the_processor() -> None:
    samples = EvaluationSamples(MemorySource(10), PROCESSOR)
    plans = samples.plans(4)
    assert [len(plan.samples) for plan in plans] == [4, 4, 2]
    batch = concatenated(list(Loader(samples, 0).run(plans)))
    assert batch.samples[:, 0].tolist() == list(range(10))
    assert batch.labels.tolist() == [index % 3 for index in range(10)]
    assert torch.equal(batch.targets, torch.nn.functional.one_hot(batch.labels, 3).float())
    assert torch.equal(batch.pixel_values, PROCESSOR([MemorySource(10).load(index) for index in range(10)]).pixel_values)


def test_evaluation_skips_unreadable_images() -> None:
    source = MemorySource(6, broken=frozenset({0, 1, 4}))
    with pytest.raises(ImageError, match="image 0 is broken"):
        EvaluationSamples(source, PROCESSOR).batch(EvaluationSamples(source, PROCESSOR).plans(6)[0])
    samples = EvaluationSamples(source, PROCESSOR, skip_unreadable=True)
    batches = list(Loader(samples, 0).run(samples.plans(2)))
    assert [batch.skipped for batch in batches] == [2, 0, 1]
    assert [batch.samples[:, 0].tolist() for batch in batches] == [[], [2, 3], [5]]
    assert batches[0].pixel_values.shape == (0, 3, 16, 16)


def test_batch_moves_to_a_device() -> None:
    (plan,) = epoch_steps(4, 4, 5, epoch=0)
    batch = train_samples(MemorySource(4)).batch(plan)
    moved = batch.to(torch.device("meta"))
    assert {moved.pixel_values.device.type, moved.labels.device.type, moved.targets.device.type} == {"meta"}
    assert torch.equal(moved.samples, batch.samples)  # stays on the CPU


def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 1), (6, 5), (64, 8)):
        monkeypatch.setattr("deit.data.loader.cores", lambda cores=cores: cores)
        assert default_workers() == expected
