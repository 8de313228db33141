"""Which sample comes when: every epoch whole, every cut of a batch the same batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.sampler import BatchPlan, epoch_steps, micro_batches, share, steps_per_epoch


def chosen(plans: list[BatchPlan]) -> np.ndarray:
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


def test_an_images_repeats_stand_in_one_batch_and_close_together() -> None:
    plans = epoch_steps(3000, 300, seed=0, epoch=0, repeats=3)
    assert len(plans) == 10
    for plan in plans:
        assert set(Counter(plan.samples[:, 0].tolist()).values()) == {3}
        for index in set(plan.samples[:, 0].tolist()):
            places = np.flatnonzero(plan.samples[:, 0] == index)
            assert places.max() - places.min() < 24
            assert sorted(plan.samples[places, 1].tolist()) == [0, 1, 2]


def pairs(samples: np.ndarray) -> list[tuple[int, int]]:
    """Who is mixed with whom."""
    return [(a, b) for a, b in zip(samples[:-1:2, 0].tolist(), samples[1::2, 0].tolist(), strict=True)]


@pytest.mark.parametrize("repeats", [2, 3, 4, 5])
def test_in_a_whole_batch_every_repeat_of_an_image_has_another_partner(repeats: int) -> None:
    for batch in (1024, 1023, 96, 100):
        for plan in epoch_steps(5 * batch, batch, seed=0, epoch=0, repeats=repeats):
            met = [tuple(sorted(pair)) for pair in pairs(plan.samples)]
            assert all(a != b for a, b in met)
            again = sum(count - 1 for count in Counter(met).values())
            assert again <= 4  # at the batch's end there may be no other choice


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 16), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_an_image_meets_itself_only_where_no_other_is_left(count: int, batch: int, repeats: int, seed: int) -> None:
    for plan in epoch_steps(count, batch, seed, epoch=0, repeats=repeats):
        size = len(plan.samples)
        most = max(Counter(plan.samples[:, 0].tolist()).values())
        # With one image in more than half of the places, what is beyond the others' number has nobody else.
        unavoidable = max(most - (size - most), 0) // 2
        assert sum(a == b for a, b in pairs(plan.samples)) == unavoidable


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 1024])
@pytest.mark.parametrize("repeats", [2, 3, 16])
def test_tiny_data_sets_make_an_epoch_too(count: int, batch: int, repeats: int) -> None:
    plans = epoch_steps(count, batch, seed=0, epoch=0, repeats=repeats)
    assert len(chosen(plans)) == max(count // batch, 1) * min(count, batch)
    assert len(set(map(tuple, chosen(plans)[:, :2].tolist()))) == len(chosen(plans))


def test_repeats_beyond_a_batch_run_on_into_the_next() -> None:
    plans = epoch_steps(12, 4, seed=0, epoch=0, repeats=6)
    assert len(plans) == 3
    assert sorted(Counter(chosen(plans)[:, 0].tolist()).values()) == [6, 6]
    assert [plan.samples[:, 2].tolist() for plan in plans] == [[0, 1, 2, 3]] * 3


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
