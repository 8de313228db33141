"""The training losses: pure functions of logits (section 4 of the paper, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from deit.errors import UserError

HARD_WEIGHT = 0.5
SOFT_WEIGHT = 0.1  # lambda
SOFT_TEMPERATURE = 3.0  # tau


class Distillation(BaseModel):
    """How a student learns from its teacher.

    Attributes:
        mode: ``none``; ``hard``, the teacher's most likely class; ``soft``, its whole distribution.
        weight: of the teacher's part, in 0..1; the paper's (hard 0.5, soft 0.1) when None.
        temperature: tau of soft distillation.
        average: what the soft divergence is divided by: ``batch`` is the paper's; ``elements``, batch times classes, is what
            the released code does, which makes the term smaller by the number of classes.
        hints: weight of the feature loss (:mod:`deit.distillation.feature_distillation`), which is added to the other terms; 0
            disables it. It needs a live convolutional teacher: cached logits hold no feature maps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["none", "hard", "soft"] = "none"
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(gt=0, le=1000)] = SOFT_TEMPERATURE
    average: Literal["batch", "elements"] = "batch"
    hints: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @property
    def teacher_weight(self) -> float:
        """The weight in force."""
        if self.weight is not None:
            return self.weight
        return {"none": 0.0, "hard": HARD_WEIGHT, "soft": SOFT_WEIGHT}[self.mode]


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft targets, averaged over the batch.

    With smoothed one-hot targets this is label-smoothed cross-entropy; with mixed ones it is the loss of mixup.

    Args:
        logits: (B, K).
        targets: (B, K), rows that sum to 1.
    """
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Each class for itself, averaged over batch and classes; every class that a mixed image shows is wholly right.

    As the released code of DeiT III (arXiv 2204.07118) has it.

    Args:
        logits: (B, K).
        targets: (B, K), not smoothed.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), (targets > 0).float())


def hard_distillation(logits: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most likely class: no temperature, no smoothing.

    Args:
        logits: (B, K), of the distillation head.
        answer: of the teacher: logits (B, K), or the number of its most likely class (B,).
    """
    return F.cross_entropy(logits.float(), answer if answer.ndim == 1 else answer.argmax(dim=-1))


def soft_distillation(
    logits: Tensor, teacher_logits: Tensor, temperature: float, average: Literal["batch", "elements"] = "batch"
) -> Tensor:
    """tau^2 KL(teacher || student), both softened by tau.

    Args:
        logits: (B, K), of the distillation head.
        teacher_logits: (B, K).
        temperature: tau.
        average: see :class:`Distillation`.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    return divergence / (logits.shape[0] if average == "batch" else logits.numel())


def training_loss(
    settings: Distillation,
    class_logits: Tensor,
    targets: Tensor,
    distillation_logits: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    labels_part: Callable[[Tensor, Tensor], Tensor] = soft_target_cross_entropy,
) -> Tensor:
    """The loss that training minimizes: (1 - weight) x labels' part + weight x teacher's part.

    Args:
        settings: mode and weights.
        class_logits: (B, K), of the head on the class token.
        targets: (B, K), smoothed and mixed labels.
        distillation_logits: (B, K), of the head on the distillation token; needed unless the mode is ``none``.
        teacher_logits: (B, K), likewise; (B,) labels will do for the mode ``hard``.
        labels_part: of class logits and targets; :func:`binary_cross_entropy` is the other one.

    Returns:
        A scalar in float32.
    """
    base = labels_part(class_logits, targets)
    if settings.mode == "none":
        return base
    assert distillation_logits is not None
    assert teacher_logits is not None
    if settings.mode == "hard":
        taught = hard_distillation(distillation_logits, teacher_logits)
    else:
        taught = soft_distillation(distillation_logits, teacher_logits, settings.temperature, settings.average)
    return torch.lerp(base, taught, settings.teacher_weight)


def labels_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """The loss that transformers has for ``labels``.

    Args:
        logits: (B, K).
        labels: (B,) class numbers; (B, K) 0 and 1 for several labels an image; (B,) or (B, K) values for regression.
        problem_type: ``regression`` is the squared error, ``single_label_classification`` cross-entropy,
            ``multi_label_classification`` binary cross-entropy. When None: regression for one class, a single label for whole
            numbers, else several.

    Raises:
        UserError: labels of another shape.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        single = "single_label_classification" if whole else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else single
    expected = logits.shape[:1] if problem_type == "single_label_classification" else logits.shape
    if labels.shape != expected and (problem_type != "regression" or labels.numel() != logits.numel()):
        raise UserError(f"The labels are {tuple(labels.shape)}", f"{problem_type} takes {tuple(expected)}")
    if problem_type == "regression":
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.long())
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """(B,) class numbers -> (B, K) ones and zeros; (B, K) as they are."""
    return F.one_hot(labels.long(), classes).float() if labels.ndim == 1 else labels
