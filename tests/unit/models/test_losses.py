"""Training losses against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deit.models.losses import (
    Distillation,
    binary_cross_entropy,
    hard_distillation,
    loss_terms,
    soft_distillation,
    soft_target_cross_entropy,
    total_loss,
    training_loss,
)
from tests.helpers import backward, noise

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)

# Two images, three classes. The class head's softmaxes are (1/2, 1/4, 1/4) and (1/3, 1/3, 1/3).
CLASS_LOGITS = torch.tensor([[LN2, 0.0, 0.0], [5.0, 5.0, 5.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
BASE = (LN2 + LN3) / 2  # -ln(1/2) = 0.6931, and -(0.5 ln(1/3) + 0.5 ln(1/3)) = 1.0986; their mean is 0.8959

# The distillation head's softmaxes are (1/4, 1/4, 1/2) and (1/3, 1/3, 1/3); the teacher predicts class 2, then class 0.
HEAD_LOGITS = torch.tensor([[0.0, 0.0, LN2], [1.0, 1.0, 1.0]])
TEACHER_LOGITS = torch.tensor([[-1.0, 0.5, 3.0], [0.2, 0.1, 0.0]])
HARD = (LN2 + LN3) / 2

# Soft, tau = 3: logits of 3 ln 2 become ln 2, so the softened softmaxes are (1/2, 1/4, 1/4) for the teacher and
# (1/4, 1/2, 1/4) for the student. KL = 1/2 ln(2) + 1/4 ln(1/2) + 0 = ln(2) / 4 = 0.1733; times tau^2 = 9: 1.5596.
SOFT_TEACHER = torch.tensor([[3 * LN2, 0.0, 0.0], [7.0, 7.0, 7.0]])
SOFT_HEAD = torch.tensor([[0.0, 3 * LN2, 0.0], [2.0, 2.0, 2.0]])  # the second image agrees: KL = 0
SOFT = 9 * LN2 / 4 / 2  # the mean over the two images: 0.7798


def test_hand_computed_values() -> None:
    assert pytest.approx([0.895880, 0.895880, 0.779791], abs=1e-6) == [BASE, HARD, SOFT]


def test_loss_without_distillation_is_cross_entropy() -> None:
    assert soft_target_cross_entropy(CLASS_LOGITS, TARGETS).item() == pytest.approx(0.895880, abs=1e-6)
    assert training_loss(Distillation(), CLASS_LOGITS, TARGETS).item() == pytest.approx(0.895880, abs=1e-6)


def test_mode_none_ignores_head_and_teacher() -> None:
    loss = training_loss(Distillation(), CLASS_LOGITS, TARGETS, HEAD_LOGITS, TEACHER_LOGITS)
    assert loss.item() == pytest.approx(0.895880, abs=1e-6)


def test_smoothed_targets_give_label_smoothing() -> None:
    # smoothing 0.3 over 3 classes: targets 0.8, 0.1, 0.1; 0.8 ln 2 + 0.2 ln 4 = 0.8318
    targets = torch.tensor([[0.8, 0.1, 0.1]])
    assert soft_target_cross_entropy(CLASS_LOGITS[:1], targets).item() == pytest.approx(0.831777, abs=1e-6)


def test_hard_distillation_is_cross_entropy_with_teacher_argmax() -> None:
    assert hard_distillation(HEAD_LOGITS, TEACHER_LOGITS).item() == pytest.approx(0.895880, abs=1e-6)
    confident = hard_distillation(HEAD_LOGITS, 100 * TEACHER_LOGITS)
    assert confident.item() == pytest.approx(0.895880, abs=1e-6)  # the teacher's confidence has no effect


def test_hard_distillation_has_weight_one_half() -> None:
    # with a teacher that predicts class 0 twice: -ln(1/4) and -ln(1/3) -> (1.3863 + 1.0986) / 2 = 1.2425
    teacher = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    loss = training_loss(Distillation(mode="hard"), CLASS_LOGITS, TARGETS, HEAD_LOGITS, teacher)
    assert loss.item() == pytest.approx(0.5 * 0.895880 + 0.5 * 1.242453, abs=1e-6)


def test_soft_distillation_is_kl_times_squared_temperature() -> None:
    assert soft_distillation(SOFT_HEAD, SOFT_TEACHER, 3.0).item() == pytest.approx(0.779791, abs=1e-6)


def test_soft_distillation_has_weight_one_tenth_at_temperature_three() -> None:
    loss = training_loss(Distillation(mode="soft"), CLASS_LOGITS, TARGETS, SOFT_HEAD, SOFT_TEACHER)
    assert loss.item() == pytest.approx(0.9 * 0.895880 + 0.1 * 0.779791, abs=1e-6)


def test_kl_direction_is_teacher_to_student() -> None:
    # teacher (1/2, 1/2, ~0), student (1/2, 1/4, 1/4): 1/2 ln 1 + 1/2 ln 2 = ln(2) / 2; the reverse KL is infinite
    teacher, student = torch.tensor([[0.0, 0.0, -1e4]]), torch.tensor([[LN2, 0.0, 0.0]])
    assert soft_distillation(student, teacher, 1.0).item() == pytest.approx(LN2 / 2, abs=1e-6)


def test_mean_reduction_is_batchmean_divided_by_number_of_classes() -> None:
    assert soft_distillation(SOFT_HEAD, SOFT_TEACHER, 3.0, "mean").item() == pytest.approx(0.779791 / 3, abs=1e-6)
    settings = Distillation(mode="soft", weight=1.0, reduction="mean")
    loss = training_loss(settings, CLASS_LOGITS, TARGETS, SOFT_HEAD, SOFT_TEACHER)
    assert loss.item() == pytest.approx(0.259930, abs=1e-6)


@pytest.mark.parametrize(("mode", "weight"), [("none", 0.0), ("hard", 0.5), ("soft", 0.1)])
def test_default_weights_are_those_of_the_paper(mode: str, weight: float) -> None:
    settings = Distillation.model_validate({"mode": mode})
    assert (settings.teacher_weight, settings.temperature, settings.reduction) == (weight, 3.0, "batchmean")
    assert Distillation.model_validate({"mode": mode, "weight": 0.7}).teacher_weight == 0.7


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize(("weight", "expected"), [(0.0, (True, False)), (1.0, (False, True)), (0.5, (True, True))])
def test_each_term_trains_only_its_own_head(mode: str, weight: float, expected: tuple[bool, bool]) -> None:
    head, classes = HEAD_LOGITS.clone().requires_grad_(), CLASS_LOGITS.clone().requires_grad_()
    teacher = TEACHER_LOGITS.clone().requires_grad_()
    settings = Distillation.model_validate({"mode": mode, "weight": weight})
    backward(training_loss(settings, classes, TARGETS, head, teacher.detach()))
    has_gradient = [logits.grad is not None and bool(logits.grad.abs().sum() > 0) for logits in (classes, head)]
    assert tuple(has_gradient) == expected


@pytest.mark.parametrize("mode", ["none", "hard", "soft"])
def test_loss_is_float32_scalar_for_any_logits_dtype(mode: str) -> None:
    settings = Distillation.model_validate({"mode": mode})
    half = [(noise(2, 3, seed=seed) * 3).bfloat16() for seed in range(3)]
    full = [tensor.float() for tensor in half]
    loss = training_loss(settings, half[0], TARGETS, half[1], half[2])
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert torch.equal(loss, training_loss(settings, full[0], TARGETS, full[1], full[2]))


def test_large_logits_do_not_overflow() -> None:
    huge = torch.tensor([[3e4, -3e4, 0.0]]).half()
    for mode in ("none", "hard", "soft"):
        loss = training_loss(Distillation.model_validate({"mode": mode}), huge, TARGETS[:1], -huge, huge)
        assert torch.isfinite(loss)


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.5, 20), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_kl_is_nonnegative_and_zero_for_equal_distributions(batch: int, classes: int, temperature: float, seed: int) -> None:
    student, teacher = 3 * noise(batch, classes, seed=seed), 3 * noise(batch, classes, seed=seed + 1)
    assert soft_distillation(student, teacher, temperature).item() >= -1e-5
    assert soft_distillation(teacher + 4, teacher, temperature).item() == pytest.approx(0, abs=1e-4)
    batchmean = soft_distillation(student, teacher, temperature)
    mean = soft_distillation(student, teacher, temperature, "mean")
    assert mean.item() * classes == pytest.approx(batchmean.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("fields", [{"mode": "medium"}, {"weight": 1.5}, {"temperature": 0}, {"reduction": "sum"}, {"tau": 3}])
def test_invalid_settings_raise(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Distillation.model_validate(fields)


@given(st.integers(1, 6), st.integers(2, 9), st.floats(0, 1), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_binary_cross_entropy_treats_every_mixed_class_as_positive(batch: int, classes: int, weight: float, seed: int) -> None:
    logits = 4 * noise(batch, classes, seed=seed)
    labels = noise(2, batch, classes, seed=seed + 1).argmax(dim=-1)
    first, second = torch.nn.functional.one_hot(labels, classes).float()
    targets = weight * first + (1 - weight) * second
    expected = torch.nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).type(targets.dtype))  # as in the released code
    assert torch.equal(binary_cross_entropy(logits, targets), expected)
    settings = Distillation()
    assert torch.equal(training_loss(settings, logits, targets, label_loss=binary_cross_entropy), expected)


def test_total_loss_is_the_weighted_sum_of_its_terms() -> None:
    settings = Distillation(mode="hard", weight=0.25, features=40.0)
    terms = {"label_loss": torch.tensor(2.0), "distillation_loss": torch.tensor(4.0), "feature_loss": torch.tensor(0.5)}
    assert total_loss(settings, terms).item() == 0.75 * 2 + 0.25 * 4 + 40 * 0.5
    assert total_loss(Distillation(), {"label_loss": torch.tensor(2.0)}).item() == 2


def test_loss_terms_are_unweighted() -> None:
    terms = loss_terms(Distillation(mode="soft"), CLASS_LOGITS, TARGETS, SOFT_HEAD, SOFT_TEACHER)
    assert {name: term.item() for name, term in terms.items()} == {
        "label_loss": pytest.approx(BASE),
        "distillation_loss": pytest.approx(SOFT),
    }


def test_binary_cross_entropy_of_hand_computed_values() -> None:
    logits = torch.tensor([[0.0, LN3], [-LN3, 0.0]])  # sigmoids (1/2, 3/4), (1/4, 1/2)
    targets = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    assert binary_cross_entropy(logits, targets).item() == pytest.approx((LN2 + LN4 + LN4 + LN2) / 4)
    loss = training_loss(
        Distillation(mode="hard"), logits, targets, logits, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), binary_cross_entropy
    )
    hard = hard_distillation(logits, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert loss.item() == pytest.approx(((LN2 + LN4) / 2 + hard.item()) / 2)
