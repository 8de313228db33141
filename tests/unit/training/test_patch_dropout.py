"""Patch dropout: which patches are kept, and when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deit.recipes.schema import Transformer
from deit.training.patch_dropout import kept_patches, patch_dropout

POSITIONS = torch.arange(200)


@pytest.mark.parametrize(("rate", "count"), [(0.1, 58), (0.5, 32), (0.75, 16), (0.99, 1)])
def test_as_many_patches_as_asked_for_are_kept(rate: float, count: int) -> None:
    kept = kept_patches(rate, 64, 0, 0, 0, POSITIONS)
    assert kept is not None
    assert kept.shape == (200, count)
    assert kept.min() >= 0 and kept.max() < 64
    assert (kept[:, 1:] > kept[:, :-1]).all()


def test_patches_are_equally_likely() -> None:
    kept = kept_patches(0.5, 16, 0, 0, 0, torch.arange(4000))
    assert kept is not None
    frequencies = torch.bincount(kept.flatten(), minlength=16) / 4000
    assert (frequencies - 0.5).abs().max() < 0.04  # five standard deviations


def drawn(rate: float = 0.5, seed: int = 7, epoch: int = 1, step: int = 2, positions: Tensor = POSITIONS) -> Tensor:
    kept = kept_patches(rate, 16, seed, epoch, step, positions)
    assert kept is not None
    return kept


def test_draws_depend_on_the_step_and_the_position_in_the_global_batch() -> None:
    whole = drawn()
    assert torch.equal(drawn(positions=torch.tensor([7, 3])), whole[[7, 3]])
    for other in (drawn(seed=8), drawn(epoch=2), drawn(step=3)):
        assert not torch.equal(other, whole)


def test_last_part_of_training_keeps_all_patches() -> None:
    model = Transformer(patch_dropout=0.4, patch_dropout_until=0.75)
    assert [patch_dropout(model, progress) for progress in (0, 0.74, 0.75, 1)] == [0.4, 0.4, 0, 0]
    assert patch_dropout(Transformer(), 0) == 0
    assert kept_patches(0.0, 16, 0, 0, 0, POSITIONS) is None
