"""Mixup and cutmix: pixels and targets are mixed with the same weights, and a pair depends only on itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deit.data.transforms.mixing import MixDraw, Mixing, draw, mix_images, soft_targets
from tests.helpers import noise

PAPER = Mixing(mixup=0.8, cutmix=1.0)


def mixed_copy(images: torch.Tensor, mix: MixDraw) -> torch.Tensor:
    images = images.clone()
    mix_images(images, mix)
    return images


def samples(count: int) -> np.ndarray:
    return np.column_stack([np.arange(count) * 3 + 1, np.arange(count) % 2, np.arange(count)])


def test_neighbors_are_mixed_and_a_last_odd_image_is_not() -> None:
    mix = draw(PAPER, 0, 0, samples(5), 32, 32)
    assert mix.partner.tolist() == [1, 0, 3, 2, 4]
    assert mix.weight[4] == 1
    assert not mix.box[4].any()


def test_mixup_is_the_weighted_sum() -> None:
    images = noise(2, 3, 4, 4)
    mix = MixDraw(np.array([1, 0]), np.array([0.75, 0.75]), np.zeros((2, 4), np.int64))
    mixed = mixed_copy(images, mix)
    assert torch.allclose(mixed[0], 0.75 * images[0] + 0.25 * images[1], atol=1e-6)
    assert torch.allclose(mixed[1], 0.75 * images[1] + 0.25 * images[0], atol=1e-6)


def test_cutmix_takes_the_rectangle_from_the_partner() -> None:
    images = torch.stack([torch.zeros(3, 4, 6), torch.ones(3, 4, 6)])
    mix = MixDraw(np.array([1, 0]), np.array([0.75, 0.75]), np.array([[1, 3, 2, 5]] * 2))
    mixed = mixed_copy(images, mix)
    for channel in mixed[0]:
        assert channel.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    assert torch.equal(mixed[1], 1 - mixed[0])


def test_empty_rectangle_or_no_partner_does_not_change_an_image() -> None:
    images = noise(3, 3, 4, 4)
    mix = MixDraw(np.array([1, 0, 2]), np.ones(3), np.array([[2, 2, 1, 3], [2, 2, 1, 3], [0, 0, 0, 0]]))
    assert torch.equal(mixed_copy(images, mix), images)


def test_selected_images_without_a_partner_are_not_mixed() -> None:
    mix = draw(PAPER, 0, 0, samples(7), 24, 16)
    selected = mix.select(np.array([0, 1, 3, 4, 5, 6]))
    assert selected.partner.tolist() == [1, 0, 2, 4, 3, 5]
    assert selected.weight.tolist() == mix.weight[[0, 1, 3, 4, 5, 6]].tolist()
    assert selected.box.tolist() == mix.box[[0, 1, 3, 4, 5, 6]].tolist()
    assert mix.select(np.zeros(0, np.int64)).partner.shape == (0,)


def test_targets_are_smoothed_and_then_mixed() -> None:
    # smoothing 0.2 over 4 classes: 0.05 everywhere and 0.85 for the label; then 0.7 of the own target and 0.3 of the partner's
    mix = MixDraw(np.array([1, 0, 2]), np.array([0.7, 0.7, 1.0]), np.zeros((3, 4), np.int64))
    targets = soft_targets(torch.tensor([0, 2, 2]), mix, 4, smoothing=0.2)
    expected = [[0.61, 0.05, 0.29, 0.05], [0.29, 0.05, 0.61, 0.05], [0.05, 0.05, 0.85, 0.05]]
    assert targets.dtype == torch.float32
    assert np.allclose(targets.numpy(), expected, atol=1e-6)


def test_pair_depends_only_on_its_samples() -> None:
    whole = samples(8)
    mix = draw(PAPER, 3, 5, whole, 24, 16)
    for first in range(0, 8, 2):
        pair = draw(PAPER, 3, 5, whole[first : first + 2], 24, 16)
        assert pair.partner.tolist() == [1, 0]
        assert np.array_equal(pair.weight, mix.weight[first : first + 2])
        assert np.array_equal(pair.box, mix.box[first : first + 2])


def test_draw_depends_on_epoch_seed_and_repeat() -> None:
    first, repeat = samples(2), samples(2)
    repeat[0, 1] += 1
    weights = [
        draw(PAPER, 3, 5, first, 24, 16).weight[0],
        draw(PAPER, 3, 6, first, 24, 16).weight[0],
        draw(PAPER, 4, 5, first, 24, 16).weight[0],
        draw(PAPER, 3, 5, repeat, 24, 16).weight[0],
    ]
    assert len(set(weights)) == 4


def mixed_fractions(settings: Mixing) -> tuple[float, float]:
    """Returns the fraction of 2,000 pairs that are mixed, and that are mixed by cutmix."""
    mix = draw(settings, 0, 0, samples(4000), 64, 64)
    mixed, cut = mix.partner != np.arange(4000), mix.box.any(axis=1)
    return mixed.mean().item(), cut.mean().item()


@pytest.mark.parametrize(
    ("settings", "mixed", "cut"),
    [
        (Mixing(), 0, 0),
        (Mixing(mixup=0.8, probability=0), 0, 0),
        (Mixing(mixup=0.8), 1, 0),
        (Mixing(cutmix=1.0), 1, 1),
        (PAPER, 1, 0.5),
        (Mixing(mixup=0.8, cutmix=1.0, switch=0.1), 1, 0.1),
        (Mixing(mixup=0.8, cutmix=1.0, probability=0.3), 0.3, 0.15),
    ],
)
def test_frequency_of_mixup_and_cutmix(settings: Mixing, mixed: float, cut: float) -> None:
    assert settings.enabled == (mixed > 0)
    assert mixed_fractions(settings) == pytest.approx((mixed, cut), abs=0.04)


def test_weights_follow_the_beta_distribution() -> None:
    weight = draw(Mixing(mixup=0.8), 0, 0, samples(8000), 64, 64).weight[::2]
    assert weight.mean() == pytest.approx(0.5, abs=0.02)
    assert weight.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05)  # of Beta(a, a)


positive = st.floats(0.01, 5) | st.just(0.0)


@given(positive, positive, st.floats(0, 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rectangle_weight_and_targets_agree(
    mixup: float, cutmix: float, switch: float, height: int, width: int, count: int, seed: int
) -> None:
    mix = draw(Mixing(mixup=mixup, cutmix=cutmix, switch=switch), seed, 1, samples(count), height, width)
    assert ((mix.weight >= 0) & (mix.weight <= 1)).all()
    top, bottom, left, right = mix.box.T
    assert ((top >= 0) & (top <= bottom) & (bottom <= height)).all()
    assert ((left >= 0) & (left <= right) & (right <= width)).all()
    # Black and white images: the fraction of its pixels that an image keeps equals its weight.
    images = torch.zeros(count, 1, height, width)
    images[::2] = 1.0
    mixed = mixed_copy(images, mix)
    kept = torch.where(images.mean((1, 2, 3)) > 0, mixed.mean((1, 2, 3)), 1 - mixed.mean((1, 2, 3)))
    assert np.allclose(kept.numpy(), mix.weight, atol=1e-5)
    targets = soft_targets(torch.arange(count) % 2, mix, 3, smoothing=0.1)
    assert torch.allclose(targets.sum(dim=1), torch.ones(count), atol=1e-6)
    assert (targets >= 0).all()


@pytest.mark.parametrize("fields", [{"mixup": -1}, {"cutmix": float("nan")}, {"probability": 1.1}, {"mixupp": 1}])
def test_invalid_settings_are_an_error(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Mixing(**fields)
