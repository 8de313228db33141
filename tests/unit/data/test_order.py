"""Which sample comes when: every epoch whole, every cut of a batch the same batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.order import Plan, epoch_steps, micro_batches, share, steps_per_epoch


def chosen(plans: list[Plan]) -> np.ndarray:
    return np.concatenate([plan.samples for plan in plans])


def test_an_epoch_without_repeats_shows_each_image_once() -> None:
    plans = epoch_steps(12, 4, seed=1, epoch=0)
    assert [plan.step for plan in plans] == [0, 1, 2]
    assert sorted(chosen(plans)[:, 0].tolist()) == list(range(12))
    assert (chosen(plans)[:, 1] == 0).all()
    assert plans[2].samples[:, 2].tolist() == [0, 1, 2, 3]


def test_what_fills_no_batch_waits_for_another_epoch() -> None:
    shown = [set(chosen(epoch_steps(10, 4, seed=1, epoch=epoch))[:, 0].tolist()) for epoch in range(20)]
    assert all(len(images) == 8 for images in shown)
    assert set.union(*shown) == set(range(10))


def test_a_data_set_smaller_than_a_batch_is_one_batch() -> None:
    assert steps_per_epoch(3, 1024) == 1
    (plan,) = epoch_steps(3, 1024, seed=0, epoch=0)
    assert sorted(plan.samples[:, 0].tolist()) == [0, 1, 2]


def test_repeated_augmentation_works_below_a_batch_too() -> None:
    (plan,) = epoch_steps(5, 1024, seed=0, epoch=0, repeats=3)
    counts = Counter(plan.samples[:, 0].tolist())
    assert sorted(counts.values()) == [2, 3]
    assert set(map(tuple, plan.samples[:, :2].tolist())) == {(i, r) for i, n in counts.items() for r in range(n)}
    (single,) = epoch_steps(1, 1024, seed=0, epoch=0, repeats=3)
    assert single.samples.tolist() == [[0, 0, 0]]


def test_an_images_repeats_stand_in_one_batch_and_not_side_by_side() -> None:
    plans = epoch_steps(3000, 300, seed=0, epoch=0, repeats=3)
    assert len(plans) == 10
    for plan in plans:
        assert set(Counter(plan.samples[:, 0].tolist()).values()) == {3}
    neighbours = sum(int((plan.samples[::2, 0] == plan.samples[1::2, 0]).sum()) for plan in plans)
    assert neighbours < 30  # of 1500 pairs, about 10 by chance


def test_every_image_comes_about_as_often_over_many_epochs() -> None:
    counts = Counter(np.concatenate([chosen(epoch_steps(60, 20, 0, epoch, 3))[:, 0] for epoch in range(60)]).tolist())
    assert len(counts) == 60
    assert sum(counts.values()) == 3600
    assert max(counts.values()) < 120  # 60 expected, 11 standard deviation


def test_another_epoch_and_another_seed_are_another_order() -> None:
    orders = [chosen(epoch_steps(50, 10, seed, epoch))[:, 0].tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


count, batch, seeds, repeat = st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32), st.integers(1, 5)


@given(count, batch, seeds, st.integers(0, 1000), repeat)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_sound_whatever_the_sizes(count: int, batch: int, seed: int, epoch: int, repeats: int) -> None:
    plans = epoch_steps(count, batch, seed, epoch, repeats)
    assert len(plans) == steps_per_epoch(count, batch) >= 1
    assert [len(plan.samples) for plan in plans] == [min(batch, count)] * len(plans)
    samples = chosen(plans)
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
def test_ranks_and_micro_batches_cut_a_batch_without_loss_and_between_pairs(size: int, ranks: int, half: int) -> None:
    (plan,) = epoch_steps(size, size, seed=0, epoch=2)
    for pieces in ([share(plan, rank, ranks) for rank in range(ranks)], micro_batches(plan, 2 * half)):
        assert np.array_equal(chosen(pieces), plan.samples)
        assert all((piece.epoch, piece.step) == (2, 0) for piece in pieces)
        assert all(len(piece.samples) % 2 == 0 for piece in pieces if piece.samples[-1:, 2].tolist() != [size - 1])
    assert all(len(piece.samples) <= 2 * half for piece in micro_batches(plan, 2 * half))
    sizes = [len(share(plan, rank, ranks).samples) for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 2
