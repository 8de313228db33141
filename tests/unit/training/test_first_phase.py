"""The first phase of training: which patches are kept, images of half the size, and what its steps cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deit.recipes.schema import ConvNet, Transformer
from deit.training.first_phase import first_phase, half_size, kept_patches, mean_cost
from tests.helpers import noise

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


def test_recipes_decide_how_long_the_first_phase_is() -> None:
    assert first_phase(Transformer(patch_dropout=0.4, patch_dropout_until=0.75)) == 0.75
    assert first_phase(ConvNet(half_size_until=0.3)) == 0.3
    assert first_phase(Transformer()) == first_phase(ConvNet()) == 0
    assert kept_patches(0.0, 16, 0, 0, 0, POSITIONS) is None


def test_half_size_averages_two_by_two_pixels() -> None:
    pixels = noise(2, 3, 6, 9)
    halved = half_size(pixels)
    assert halved.shape == (2, 3, 3, 4)
    torch.testing.assert_close(halved[1, 2, 1, 3], pixels[1, 2, 2:4, 6:8].mean())


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.4, 0.7])
def test_mean_cost_is_that_of_the_remaining_steps(progress: float) -> None:
    steps = torch.linspace(progress, 1, 10_001)[:-1]
    expected = torch.where(steps < 0.4, 0.25, 1.0).mean().item()
    assert mean_cost(0.4, 0.25, progress) == pytest.approx(expected, abs=1e-3)
