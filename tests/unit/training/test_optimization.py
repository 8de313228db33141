"""Parameter groups, optimizers, the learning rate schedule, stochastic depth and the EMA."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.recipes.schema import Ema, Optimizer
from deit.training.optimization import (
    ModelEma,
    freeze,
    learning_rate,
    make_optimizer,
    parameter_groups,
    residual_scale,
    set_learning_rate,
    trainable_modules,
)
from tests.helpers import backward, noise, randomized, tiny_deit

PAPER = Optimizer()


def test_biases_norms_tokens_and_positions_do_not_decay() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    decayed, undecayed_group = parameter_groups(model, 0.05)
    assert decayed["scale"] == undecayed_group["scale"] == 1
    assert (decayed["weight_decay"], undecayed_group["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = {names[id(parameter)] for parameter in undecayed_group["params"]}
    expected = {
        name for name in names.values() if name.endswith((".bias", "_token", "position_embeddings")) or "layernorm" in name
    }
    assert undecayed == expected
    assert len(decayed["params"]) + len(undecayed) == len(names)


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1]


def test_schedule_matches_the_released_code() -> None:
    # timm's cosine without warmup_prefix: it spans all epochs, and the warm-up replaces its first five.
    peak = 1e-3

    def rate(epoch: float) -> float:
        return learning_rate(PAPER, peak, 300, epoch)

    assert rate(0) == 1e-6
    assert rate(4) == pytest.approx(1e-6 + (peak - 1e-6) * 4 / 5)
    assert rate(5) == pytest.approx(1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * 5 / 300)) / 2)
    assert rate(150) == pytest.approx((peak + 1e-5) / 2)
    assert rate(5.9) == rate(5)  # updated once per epoch


def test_schedule_matches_timm() -> None:
    from timm.scheduler.cosine_lr import CosineLRScheduler

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(300):
        theirs.step(epoch)
        assert learning_rate(PAPER, 1e-3, 300, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_schedule_per_step_changes_within_an_epoch() -> None:
    by_step = Optimizer(lr_update="step", warmup_epochs=2)
    assert learning_rate(by_step, 1.0, 10, 0.5) == pytest.approx(1e-6 + (1 - 1e-6) / 4)
    assert learning_rate(by_step, 1.0, 10, 5.5) < learning_rate(by_step, 1.0, 10, 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 20))
def test_learning_rate_stays_within_bounds(epochs: int, share: float, warmup: float) -> None:
    by_step = Optimizer(lr_update="step", warmup_epochs=warmup)
    rate = learning_rate(by_step, 1e-3, epochs, share * epochs)
    assert 1e-6 - 1e-12 <= rate <= 1e-3 + 1e-12


def test_stochastic_depth_keeps_the_mean_and_increases_linearly() -> None:
    positions = torch.arange(20_000)
    scale = residual_scale(0.5, 3, seed=1, epoch=2, step=3, positions=positions)
    assert scale is not None
    assert scale.shape == (3, 2, 20_000)
    assert scale.mean(dim=-1) == pytest.approx(torch.ones(3, 2), abs=0.03)
    dropped = (scale == 0).float().mean(dim=(1, 2))
    assert dropped.tolist() == pytest.approx([0, 0.25, 0.5], abs=0.01)
    assert set(scale[2].flatten().tolist()) == {0.0, 2.0}


def test_stochastic_depth_depends_on_the_position_in_the_batch() -> None:
    whole = residual_scale(0.5, 4, 0, 1, 2, torch.arange(10))
    part = residual_scale(0.5, 4, 0, 1, 2, torch.tensor([7, 3]))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[:, :, [7, 3]])
    other = residual_scale(0.5, 4, 0, 1, 3, torch.arange(10))
    assert other is not None
    assert not torch.equal(whole, other)
    assert residual_scale(0.0, 4, 0, 1, 2, torch.arange(10)) is None


def test_ema_follows_by_its_decay() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    ema = ModelEma(model, Ema(decay=0.9))
    before = ema.model.state_dict()["cls_classifier.weight"].clone()
    with torch.no_grad():
        model.cls_classifier.weight.add_(1)
    ema.update(model, step=0)
    after = ema.model.state_dict()["cls_classifier.weight"]
    torch.testing.assert_close(after, before + 0.1)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_ema_warmup_starts_with_a_short_memory() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    ema = ModelEma(model, Ema(decay=0.9, warmup=True))
    before = ema.model.state_dict()["cls_classifier.bias"].clone()
    with torch.no_grad():
        model.cls_classifier.bias.add_(1)
    ema.update(model, step=0)  # decay min(0.9, 1 / 10)
    torch.testing.assert_close(ema.model.state_dict()["cls_classifier.bias"], before + 0.9)


def test_adamw_has_the_paper_s_values() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), PAPER)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8


TRAINABLE = {
    "heads": ["cls_classifier.bias", "cls_classifier.weight", "distillation_classifier.bias", "distillation_classifier.weight"],
    "attention": [
        *("cls_classifier.bias", "cls_classifier.weight"),
        "deit.embeddings.position_embeddings",
        *(
            f"deit.layers.{layer}.attention.{part}.{kind}"
            for layer in (0, 1)
            for part in ("o_proj", "qkv")
            for kind in ("bias", "weight")
        ),
        *("distillation_classifier.bias", "distillation_classifier.weight"),
    ],
}


@pytest.mark.parametrize("part", ["heads", "attention", "all"])
def test_freeze_keeps_the_named_parameters_trainable(part: Literal["all", "heads", "attention"]) -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    freeze(model, part)
    names = [name for name, _ in model.named_parameters()]
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(learning) == sorted(TRAINABLE.get(part, names))
    grouped = {id(parameter) for group in parameter_groups(model, 0.1, 0.5) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    freeze(model, "all")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layer_decay_scales_the_learning_rate_per_layer() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=3, layer_scale=0.1))
    optimizer = make_optimizer(model, Optimizer(layer_decay=0.5, weight_decay=0.2))
    set_learning_rate(optimizer, 0.8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]], decays[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        if "embeddings." in name:
            expected = 0.05
        elif "layers." in name:
            expected = {"0": 0.1, "1": 0.2, "2": 0.4}[name.split(".")[2]]
        else:  # heads and last norm
            expected = 0.8
        assert rate == pytest.approx(expected), name
        still = name.endswith((".bias", "_token", "position_embeddings", "layer_scale")) or "layernorm" in name
        assert decays[name] == (0.0 if still else 0.2), name


def test_step_size_follows_the_layer_s_learning_rate() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    optimizer = make_optimizer(model, Optimizer(layer_decay=0.1, weight_decay=0.0, eps=1e-20))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_learning_rate(optimizer, 1e-2)
    backward(model(noise(4, 3, 32, 32)).logits.square().sum())
    optimizer.step()  # the first step of Adam changes each weight by the learning rate
    moved = {name: (parameter - before[name]).abs().median().item() for name, parameter in model.named_parameters()}
    assert moved["cls_classifier.weight"] == pytest.approx(1e-2, rel=1e-2)
    assert moved["deit.layers.1.mlp.fc1.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["deit.layers.0.mlp.fc1.weight"] == pytest.approx(1e-4, rel=1e-2)
    assert moved["deit.embeddings.patch_embeddings.projection.weight"] == pytest.approx(1e-5, rel=2e-2)


def test_lamb_is_adam_with_a_trust_ratio() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    settings = Optimizer(name="lamb", weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    optimizer = make_optimizer(model, settings)
    weights = [parameter.detach().double() for parameter in (model.weight, model.bias)]
    first, second = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    for step in (1, 2, 3):
        set_learning_rate(optimizer, 0.05)
        optimizer.zero_grad()
        backward((model(noise(6, 5, seed=step)) - 1).square().sum() * 40)  # a large gradient, which nothing here clips
        gradients = [parameter.grad.double() for parameter in (model.weight, model.bias) if parameter.grad is not None]
        optimizer.step()
        for index, (gradient, decay) in enumerate(zip(gradients, (0.1, 0.0), strict=True)):
            first[index] = 0.8 * first[index] + 0.2 * gradient
            second[index] = 0.9 * second[index] + 0.1 * gradient**2
            scaled = first[index] / (1 - 0.8**step) / ((second[index] / (1 - 0.9**step)).sqrt() + 1e-6)
            update = scaled + decay * weights[index]
            trust = weights[index].norm() / update.norm() if decay else 1.0  # biases and the like are plain Adam's
            weights[index] = weights[index] - 0.05 * trust * update
    torch.testing.assert_close(model.weight.detach().double(), weights[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.detach().double(), weights[1], rtol=1e-5, atol=1e-6)


def test_sgd_has_momentum_and_weight_decay() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, Optimizer(name="sgd", momentum=0.5, weight_decay=0.1))
    weight, velocity = model.weight.detach().clone(), torch.zeros(2, 3)
    for _ in range(3):
        set_learning_rate(optimizer, 0.2)
        optimizer.zero_grad()
        backward(model.weight.sum() + model.bias.sum())
        optimizer.step()
        velocity = 0.5 * velocity + 1 + 0.1 * weight
        weight = weight - 0.2 * velocity
    torch.testing.assert_close(model.weight.detach(), weight)
    assert torch.equal(optimizer.param_groups[1]["params"][0], model.bias)
    assert optimizer.param_groups[1]["weight_decay"] == 0


@pytest.mark.parametrize("lr_update", ["epoch", "step"])
def test_constant_schedule_after_warmup(lr_update: Literal["epoch", "step"]) -> None:
    constant = Optimizer(schedule="constant", warmup_epochs=4, lr_update=lr_update)
    rates = [learning_rate(constant, 5e-6, 30, epoch) for epoch in (0, 2, 4, 17, 29.5)]
    assert rates == pytest.approx([1e-6, 3e-6, 5e-6, 5e-6, 5e-6])
    assert learning_rate(constant, 5e-6, 30, 1.5) == pytest.approx(1e-6 + 4e-6 * ((1 if lr_update == "epoch" else 1.5) / 4))


def test_muon_updates_kernels_and_adamw_the_rest() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    optimizer = make_optimizer(model, Optimizer(name="muon", weight_decay=0.2, adamw_lr_scale=0.25))
    set_learning_rate(optimizer, 0.1)
    by_muon = {id(parameter) for group in optimizer.param_groups if group["use_muon"] for parameter in group["params"]}
    kernels = {name for name, parameter in model.named_parameters() if id(parameter) in by_muon}
    parts = ("attention.qkv", "attention.o_proj", "mlp.fc1", "mlp.fc2")
    assert kernels == {f"deit.layers.{layer}.{part}.weight" for layer in range(2) for part in parts}
    rates = {(group["use_muon"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups}
    assert rates == {(True, 0.2, 0.1), (False, 0.2, 0.025), (False, 0.0, 0.025)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_muon_skips_input_and_depthwise_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6, 2))
    groups = make_optimizer(model, Optimizer(name="muon")).param_groups
    chosen = [parameter for group in groups if group["use_muon"] for parameter in group["params"]]
    assert [id(parameter) for parameter in chosen] == [id(model[2].weight)]


def test_muon_update_is_orthogonal_and_as_large_as_adam_s() -> None:
    linear = nn.Linear(48, 32, bias=False)
    model = nn.ModuleDict({"layers": nn.ModuleList([linear])})
    optimizer = make_optimizer(model, Optimizer(name="muon", weight_decay=0.0))
    before = linear.weight.detach().clone()
    set_learning_rate(optimizer, 0.01)
    backward((linear(noise(64, 48)) * noise(64, 32, seed=1)).sum())
    optimizer.step()
    update = (before - linear.weight.detach()) / 0.01
    values = torch.linalg.svdvals(update) / (0.2 * 48**0.5)
    assert values.min() > 0.5  # as close to 1 as five Newton-Schulz iterations come
    assert values.max() < 1.5


def test_feature_distillation_heads_are_in_the_optimizer() -> None:
    model, module = nn.Linear(3, 2), nn.Linear(2, 5)
    assert trainable_modules(model, None) is model
    groups = make_optimizer(trainable_modules(model, module), PAPER).param_groups
    learning = {id(parameter) for group in groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in [*model.parameters(), *module.parameters()]}
