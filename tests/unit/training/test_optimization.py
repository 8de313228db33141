"""Parameter groups, the schedule, stochastic depth, the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deit.modeling import DeiTForImageClassificationWithTeacher
from deit.training.optimization import MovingAverage, learning_rate, make_optimizer, parameter_groups, residual_scale
from deit.training.recipe import Average, Optimizer
from tests.helpers import tiny_deit

PAPER = Optimizer()


def test_biases_norms_tokens_and_positions_do_not_decay() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    decayed, kept = parameter_groups(model, 0.05)
    assert decayed["scale"] == kept["scale"] == 1
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = {names[id(parameter)] for parameter in kept["params"]}
    expected = {
        name for name in names.values() if name.endswith((".bias", "_token", "position_embeddings")) or "layernorm" in name
    }
    assert undecayed == expected
    assert len(decayed["params"]) + len(undecayed) == len(names)


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1]


def test_the_schedule_is_the_released_code_s() -> None:
    # timm's cosine without a warm-up prefix: the cosine counts from epoch 0, and the warm-up hides its first five epochs.
    peak = 1e-3

    def rate(epoch: float) -> float:
        return learning_rate(PAPER, peak, 300, epoch)

    assert rate(0) == 1e-6
    assert rate(4) == pytest.approx(1e-6 + (peak - 1e-6) * 4 / 5)
    assert rate(5) == pytest.approx(1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * 5 / 300)) / 2)
    assert rate(150) == pytest.approx((peak + 1e-5) / 2)
    assert rate(5.9) == rate(5)  # it moves once an epoch


def test_the_schedule_is_timm_s() -> None:
    from timm.scheduler.cosine_lr import CosineLRScheduler

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(300):
        theirs.step(epoch)
        assert learning_rate(PAPER, 1e-3, 300, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_a_schedule_by_step_moves_within_the_epoch() -> None:
    by_step = Optimizer(by="step", warmup_epochs=2)
    assert learning_rate(by_step, 1.0, 10, 0.5) == pytest.approx(1e-6 + (1 - 1e-6) / 4)
    assert learning_rate(by_step, 1.0, 10, 5.5) < learning_rate(by_step, 1.0, 10, 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 20))
def test_the_rate_never_leaves_its_bounds(epochs: int, share: float, warmup: float) -> None:
    by_step = Optimizer(by="step", warmup_epochs=warmup)
    rate = learning_rate(by_step, 1e-3, epochs, share * epochs)
    assert 1e-6 - 1e-12 <= rate <= 1e-3 + 1e-12


def test_stochastic_depth_keeps_the_mean_and_rises_linearly() -> None:
    positions = torch.arange(20_000)
    scale = residual_scale(0.5, 3, seed=1, epoch=2, step=3, positions=positions)
    assert scale is not None
    assert scale.shape == (3, 2, 20_000)
    assert scale.mean(dim=-1) == pytest.approx(torch.ones(3, 2), abs=0.03)
    dropped = (scale == 0).float().mean(dim=(1, 2))
    assert dropped.tolist() == pytest.approx([0, 0.25, 0.5], abs=0.01)
    assert set(scale[2].flatten().tolist()) == {0.0, 2.0}


def test_a_draw_of_stochastic_depth_belongs_to_its_place() -> None:
    whole = residual_scale(0.5, 4, 0, 1, 2, torch.arange(10))
    part = residual_scale(0.5, 4, 0, 1, 2, torch.tensor([7, 3]))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[:, :, [7, 3]])
    other = residual_scale(0.5, 4, 0, 1, 3, torch.arange(10))
    assert other is not None
    assert not torch.equal(whole, other)
    assert residual_scale(0.0, 4, 0, 1, 2, torch.arange(10)) is None


def test_the_average_follows_by_its_decay() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    average = MovingAverage(model, Average(decay=0.9))
    before = average.model.state_dict()["cls_classifier.weight"].clone()
    with torch.no_grad():
        model.cls_classifier.weight.add_(1)
    average.update(model, step=0)
    after = average.model.state_dict()["cls_classifier.weight"]
    torch.testing.assert_close(after, before + 0.1)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_the_average_s_memory_is_short_at_first() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    average = MovingAverage(model, Average(decay=0.9, warmup=True))
    before = average.model.state_dict()["cls_classifier.bias"].clone()
    with torch.no_grad():
        model.cls_classifier.bias.add_(1)
    average.update(model, step=0)  # decay min(0.9, 1 / 10)
    torch.testing.assert_close(average.model.state_dict()["cls_classifier.bias"], before + 0.9)


def test_the_optimizer_is_the_paper_s() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), PAPER)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
