"""The order of samples in an epoch, and its cut into steps, ranks and micro-batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.sampler import BatchPlan, epoch_steps, micro_batches, rank_share, steps_per_epoch


def all_samples(plans: list[BatchPlan]) -> np.ndarray:
    return np.concatenate([plan.samples for plan in plans])


def test_epoch_without_repeats_has_each_image_once() -> None:
    plans = epoch_steps(12, 4, seed=1, epoch=0)
    assert [plan.step for plan in plans] == [0, 1, 2]
    assert sorted(all_samples(plans)[:, 0].tolist()) == list(range(12))
    assert (all_samples(plans)[:, 1] == 0).all()
    assert plans[2].samples[:, 2].tolist() == [0, 1, 2, 3]


def test_incomplete_batch_is_dropped_and_other_epochs_have_its_images() -> None:
    epochs = [set(all_samples(epoch_steps(10, 4, seed=1, epoch=epoch))[:, 0].tolist()) for epoch in range(20)]
    assert all(len(images) == 8 for images in epochs)
    assert set.union(*epochs) == set(range(10))


def test_data_set_smaller_than_a_batch_is_one_batch() -> None:
    assert steps_per_epoch(3, 1024) == 1
    (plan,) = epoch_steps(3, 1024, seed=0, epoch=0)
    assert sorted(plan.samples[:, 0].tolist()) == [0, 1, 2]


def test_repeated_augmentation_of_less_than_a_batch() -> None:
    (plan,) = epoch_steps(5, 1024, seed=0, epoch=0, repeats=3)
    counts = Counter(plan.samples[:, 0].tolist())
    assert sorted(counts.values()) == [2, 3]
    assert set(map(tuple, plan.samples[:, :2].tolist())) == {(i, r) for i, n in counts.items() for r in range(n)}
    (single,) = epoch_steps(1, 1024, seed=0, epoch=0, repeats=3)
    assert single.samples.tolist() == [[0, 0, 0]]


def test_repeats_of_an_image_are_close_together_in_one_batch() -> None:
    plans = epoch_steps(3000, 300, seed=0, epoch=0, repeats=3)
    assert len(plans) == 10
    for plan in plans:
        assert set(Counter(plan.samples[:, 0].tolist()).values()) == {3}
        for index in set(plan.samples[:, 0].tolist()):
            positions = np.flatnonzero(plan.samples[:, 0] == index)
            assert positions.max() - positions.min() < 24
            assert sorted(plan.samples[positions, 1].tolist()) == [0, 1, 2]


def pairs(samples: np.ndarray) -> list[tuple[int, int]]:
    """Returns the pairs of images that are mixed."""
    return [(a, b) for a, b in zip(samples[:-1:2, 0].tolist(), samples[1::2, 0].tolist(), strict=True)]


@pytest.mark.parametrize("repeats", [2, 3, 4, 5])
def test_repeats_of_an_image_have_different_partners(repeats: int) -> None:
    for batch in (1024, 1023, 96, 100):
        for plan in epoch_steps(5 * batch, batch, seed=0, epoch=0, repeats=repeats):
            partners = [tuple(sorted(pair)) for pair in pairs(plan.samples)]
            assert all(a != b for a, b in partners)
            repeated = sum(count - 1 for count in Counter(partners).values())
            assert repeated <= 4  # unavoidable at the end of a batch


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 16), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_image_is_paired_with_itself_only_if_no_other_is_left(count: int, batch: int, repeats: int, seed: int) -> None:
    for plan in epoch_steps(count, batch, seed, epoch=0, repeats=repeats):
        size = len(plan.samples)
        most = max(Counter(plan.samples[:, 0].tolist()).values())
        # An image with more than half of the samples has more samples than partners.
        unavoidable = max(most - (size - most), 0) // 2
        assert sum(a == b for a, b in pairs(plan.samples)) == unavoidable


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 1024])
@pytest.mark.parametrize("repeats", [2, 3, 16])
def test_epochs_of_tiny_data_sets(count: int, batch: int, repeats: int) -> None:
    plans = epoch_steps(count, batch, seed=0, epoch=0, repeats=repeats)
    assert len(all_samples(plans)) == max(count // batch, 1) * min(count, batch)
    assert len(set(map(tuple, all_samples(plans)[:, :2].tolist()))) == len(all_samples(plans))


def test_repeats_continue_in_the_next_batch() -> None:
    plans = epoch_steps(12, 4, seed=0, epoch=0, repeats=6)
    assert len(plans) == 3
    assert sorted(Counter(all_samples(plans)[:, 0].tolist()).values()) == [6, 6]
    assert [plan.samples[:, 2].tolist() for plan in plans] == [[0, 1, 2, 3]] * 3


def test_images_are_equally_frequent_over_many_epochs() -> None:
    counts = Counter(np.concatenate([all_samples(epoch_steps(60, 20, 0, epoch, 3))[:, 0] for epoch in range(60)]).tolist())
    assert len(counts) == 60
    assert sum(counts.values()) == 3600
    assert max(counts.values()) < 120  # 60 expected, 11 standard deviation


def test_order_depends_on_epoch_and_seed() -> None:
    orders = [all_samples(epoch_steps(50, 10, seed, epoch))[:, 0].tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


count, batch, seeds, repeat = st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32), st.integers(1, 5)


@given(count, batch, seeds, st.integers(0, 1000), repeat)
@settings(max_examples=60, deadline=None)
def test_epoch_is_valid_for_any_sizes(count: int, batch: int, seed: int, epoch: int, repeats: int) -> None:
    plans = epoch_steps(count, batch, seed, epoch, repeats)
    assert len(plans) == steps_per_epoch(count, batch) >= 1
    assert [len(plan.samples) for plan in plans] == [min(batch, count)] * len(plans)
    samples = all_samples(plans)
    assert samples.dtype == np.int64
    assert samples[:, 0].min() >= 0
    assert samples[:, 0].max() < count
    assert len(set(map(tuple, samples[:, :2].tolist()))) == len(samples)
    assert set(samples[:, 1].tolist()) <= set(range(repeats))
    for plan in plans:
        assert (plan.epoch, plan.samples[:, 2].tolist()) == (epoch, list(range(len(plan.samples))))
    again = epoch_steps(count, batch, seed, epoch, repeats)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(plans, again, strict=True))


@given(count, st.integers(1, 9), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_ranks_and_micro_batches_partition_a_batch_between_pairs(size: int, ranks: int, half: int) -> None:
    (plan,) = epoch_steps(size, size, seed=0, epoch=2)
    for pieces in ([rank_share(plan, rank, ranks) for rank in range(ranks)], micro_batches(plan, 2 * half)):
        assert np.array_equal(all_samples(pieces), plan.samples)
        assert all((piece.epoch, piece.step) == (2, 0) for piece in pieces)
        assert all(len(piece.samples) % 2 == 0 for piece in pieces if piece.samples[-1:, 2].tolist() != [size - 1])
    assert all(len(piece.samples) <= 2 * half for piece in micro_batches(plan, 2 * half))
    sizes = [len(rank_share(plan, rank, ranks).samples) for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 2
