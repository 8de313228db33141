"""Mixup, cutmix, label smoothing and repeated augmentation against timm: equal values for equal draws, equal distributions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy

from deit.data.sampler import epoch_steps
from deit.data.transforms.mixing import MixDraw, Mixing, cutmix_box, draw, mix_images, soft_targets
from tests.helpers import noise
from tests.parity.distributions import assert_same_distribution

data: Any = timm.data  # untyped
PAPER = Mixing(mixup=0.8, cutmix=1.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)


def draw_pairs(settings: Mixing, pairs: int, height: int = 48, width: int = 64) -> MixDraw:
    """Returns one row per pair."""
    samples = np.column_stack([np.arange(2 * pairs), np.zeros(2 * pairs, np.int64), np.arange(2 * pairs)])
    mix = draw(settings, 0, 0, samples, height, width)
    return MixDraw(mix.partner[::2], mix.weight[::2], mix.box[::2])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_match_timm(weight: float, smoothing: float) -> None:
    labels = torch.tensor([4, 0])  # the reverse of a batch of two pairs neighbors
    mix = MixDraw(np.array([1, 0]), np.array([weight, weight]), np.zeros((2, 4), np.int64))
    expected = data.mixup.mixup_target(labels, 6, weight, smoothing)
    assert torch.allclose(soft_targets(labels, mix, 6, smoothing), expected, atol=1e-6)


def test_loss_of_smoothed_targets_matches_torch_and_timm() -> None:
    logits, labels = noise(5, 7), torch.tensor([0, 3, 6, 3, 2])
    unmixed = MixDraw(np.arange(5), np.ones(5), np.zeros((5, 4), np.int64))
    loss = -(soft_targets(labels, unmixed, 7, 0.1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item(), abs=1e-6)
    timm_loss: Any = LabelSmoothingCrossEntropy
    assert loss.item() == pytest.approx(timm_loss(0.1)(logits, labels).item(), abs=1e-6)


def test_mixed_images_match_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = data.mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5, label_smoothing=0.1)
    labels = torch.tensor([1, 3])
    for box in ([0, 0, 0, 0], [2, 9, 1, 5]):
        top, bottom, left, right = box
        weight = 1 - (bottom - top) * (right - left) / (12 * 16) if any(box) else 0.37
        mix = MixDraw(np.array([1, 0]), np.array([weight] * 2), np.array([box] * 2))
        monkeypatch.setattr(mixer, "_params_per_batch", lambda box=box, weight=weight: (weight, any(box)))
        monkeypatch.setattr("timm.data.mixup.rand_bbox", lambda *_, box=box, **__: tuple(box))
        images = noise(2, 3, 12, 16)
        theirs, targets = mixer(images.clone(), labels)
        mix_images(images, mix)
        assert torch.allclose(images, theirs, atol=1e-6)
        assert torch.allclose(soft_targets(labels, mix, 5, 0.1), targets, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.51, 0.93, 1.0])
@pytest.mark.parametrize("center", [(0, 0), (24, 32), (47, 63), (13, 60)])
def test_cutmix_box_matches_timm(monkeypatch: pytest.MonkeyPatch, weight: float, center: tuple[int, int]) -> None:
    draws = iter(center)
    monkeypatch.setattr(np.random, "randint", lambda *_args, **_named: next(draws))
    assert cutmix_box(weight, center, 48, 64) == data.mixup.rand_bbox((3, 48, 64), weight)


def test_distribution_of_cutmix_boxes_matches_timm() -> None:
    theirs = np.array([data.mixup.rand_bbox((3, 48, 64), np.random.beta(1.0, 1.0)) for _ in range(4000)])
    mix = draw_pairs(Mixing(cutmix=1.0), 4000)
    for side in range(4):
        assert_same_distribution(mix.box[:, side], theirs[:, side])
    kept = 1 - (theirs[:, 1] - theirs[:, 0]) * (theirs[:, 3] - theirs[:, 2]) / (48 * 64)
    assert_same_distribution(mix.weight, kept)


@pytest.mark.parametrize("probability", [1.0, 0.4])
@pytest.mark.parametrize("switch", [0.5, 0.2])
def test_frequency_of_mixup_and_cutmix_matches_timm(probability: float, switch: float) -> None:
    mixer = data.mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=probability, switch_prob=switch)
    weights, cut = mixer._params_per_elem(6000)
    mix = draw_pairs(PAPER.model_copy(update={"probability": probability, "switch": switch}), 6000)
    mixed, ours_cut = mix.partner != 2 * np.arange(6000), mix.box.any(axis=1)
    assert mixed.mean() == pytest.approx((weights != 1).mean(), abs=0.03)
    assert ours_cut.mean() == pytest.approx((cut & (weights != 1)).mean(), abs=0.03)
    assert_same_distribution(mix.weight[mixed & ~ours_cut], weights[(weights != 1) & ~cut])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 256, 1000])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_augmentation_matches_timm(count: int, repeats: int) -> None:
    """An epoch has as many samples as images; each image in it has ``repeats`` samples, except perhaps the last."""
    timm_sampler: Any = RepeatAugSampler
    sampler = timm_sampler(range(count), 1, 0, num_repeats=repeats, selected_round=0)
    (plan,) = epoch_steps(count, 10_000, seed=0, epoch=0, repeats=repeats)
    ours = Counter(plan.samples[:, 0].tolist())
    assert len(plan.samples) == len(sampler) == count
    assert sorted(ours.values()) == sorted(Counter(sampler).values())
