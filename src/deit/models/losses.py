"""Training losses: pure functions of logits (section 4 of the paper, equations 2 and 3).

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from deit.errors import UserError

HARD_WEIGHT = 0.5
SOFT_WEIGHT = 0.1  # lambda in the paper
SOFT_TEMPERATURE = 3.0  # tau in the paper

Reduction = Literal["batchmean", "mean"]


class Distillation(BaseModel):
    """How a student learns from its teacher.

    Attributes:
        mode: ``none``; ``hard``, the teacher's most likely class as a label; ``soft``, the teacher's distribution.
        weight: weight of the distillation loss, in 0..1; the label loss has the rest. None takes the paper's: 0.5 for hard,
            0.1 for soft distillation.
        temperature: tau of soft distillation.
        reduction: of the KL divergence, as in :func:`torch.nn.functional.kl_div`. ``batchmean`` divides by B, as the paper
            does; ``mean`` divides by B x K, as the released code does, which makes the term smaller by a factor of K.
        features: weight of the feature loss (:mod:`deit.distillation.feature_distillation`), which is added to the other
            terms; 0 disables it. Convolutional teachers have feature maps, and caches of them may.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["none", "hard", "soft"] = "none"
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(gt=0, le=1000)] = SOFT_TEMPERATURE
    reduction: Reduction = "batchmean"
    features: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @property
    def teacher_weight(self) -> float:
        """Weight of the distillation loss, with the default of the mode filled in."""
        if self.weight is not None:
            return self.weight
        return {"none": 0.0, "hard": HARD_WEIGHT, "soft": SOFT_WEIGHT}[self.mode]


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes cross-entropy with soft targets, averaged over the batch.

    With smoothed one-hot targets this is label-smoothed cross-entropy; with mixed targets it is the mixup loss.

    Args:
        logits: (B, K).
        targets: (B, K), rows sum to 1.
    """
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes binary cross-entropy per class, averaged over batch and classes.

    Every class with a positive target is a full positive, as in the released code of DeiT III (arXiv 2204.07118).

    Args:
        logits: (B, K).
        targets: (B, K), not smoothed.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), (targets > 0).float())


def hard_distillation(logits: Tensor, teacher_targets: Tensor) -> Tensor:
    """Computes cross-entropy with the teacher's most likely class, without temperature or smoothing.

    The loss is NaN if the teacher has no most likely class, because its logits are NaN or infinite.

    Args:
        logits: (B, K), of the distillation head.
        teacher_targets: teacher logits (B, K), or class indices (B,).
    """
    if teacher_targets.ndim == 1:
        return F.cross_entropy(logits.float(), teacher_targets)
    loss = F.cross_entropy(logits.float(), teacher_targets.argmax(dim=-1))
    return loss + (0 * teacher_targets.amax(dim=-1)).sum().float()  # plus 0, or NaN


def soft_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: Reduction = "batchmean") -> Tensor:
    """Computes tau^2 KL(teacher || student), both softened by the temperature tau.

    Args:
        logits: (B, K), of the distillation head.
        teacher_logits: (B, K).
        temperature: tau.
        reduction: see :class:`Distillation`.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    return divergence / (logits.shape[0] if reduction == "batchmean" else logits.numel())


def loss_terms(
    settings: Distillation,
    class_logits: Tensor,
    targets: Tensor,
    distillation_logits: Tensor | None = None,
    teacher_targets: Tensor | None = None,
    label_loss: Callable[[Tensor, Tensor], Tensor] = soft_target_cross_entropy,
) -> dict[str, Tensor]:
    """Computes the unweighted terms of the training loss.

    Args:
        settings: mode, temperature and reduction.
        class_logits: (B, K), of the head on the class token.
        targets: (B, K), smoothed and mixed labels.
        distillation_logits: (B, K), of the head on the distillation token; required unless the mode is ``none``.
        teacher_targets: teacher logits (B, K); class indices (B,) suffice for the mode ``hard``. Required unless the mode is
            ``none``.
        label_loss: loss of class logits and targets; alternatively :func:`binary_cross_entropy`.

    Returns:
        Float32 scalars: ``label_loss``, and ``distillation_loss`` unless the mode is ``none``.
    """
    terms = {"label_loss": label_loss(class_logits, targets)}
    if settings.mode == "none":
        return terms
    assert distillation_logits is not None
    assert teacher_targets is not None
    if settings.mode == "hard":
        terms["distillation_loss"] = hard_distillation(distillation_logits, teacher_targets)
    else:
        terms["distillation_loss"] = soft_distillation(
            distillation_logits, teacher_targets, settings.temperature, settings.reduction
        )
    return terms


def total_loss(settings: Distillation, terms: Mapping[str, Tensor]) -> Tensor:
    """Combines the terms of the training loss: (1 - weight) label + weight distillation + features x feature loss.

    Args:
        settings: the weights.
        terms: what :func:`loss_terms` returned, and ``feature_loss`` where features are distilled.

    Returns:
        Float32 scalar.
    """
    loss = terms["label_loss"]
    if "distillation_loss" in terms:
        loss = torch.lerp(loss, terms["distillation_loss"], settings.teacher_weight)
    if "feature_loss" in terms:
        loss = loss + settings.features * terms["feature_loss"]
    return loss


def training_loss(
    settings: Distillation,
    class_logits: Tensor,
    targets: Tensor,
    distillation_logits: Tensor | None = None,
    teacher_targets: Tensor | None = None,
    label_loss: Callable[[Tensor, Tensor], Tensor] = soft_target_cross_entropy,
) -> Tensor:
    """Computes the training loss of logits: :func:`total_loss` of their :func:`loss_terms`."""
    terms = loss_terms(settings, class_logits, targets, distillation_logits, teacher_targets, label_loss)
    return total_loss(settings, terms)


def labels_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """Computes the loss that transformers computes when ``labels`` are passed to a model.

    Args:
        logits: (B, K).
        labels: (B,) class indices; (B, K) zeros and ones for multi-label classification; (B,) or (B, K) values for
            regression.
        problem_type: ``regression`` (mean squared error), ``single_label_classification`` (cross-entropy) or
            ``multi_label_classification`` (binary cross-entropy). None infers it: regression if K is 1, single-label for
            integer labels, otherwise multi-label.

    Raises:
        UserError: the labels have another shape.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        is_index = not labels.is_floating_point() and labels.dtype != torch.bool
        classification = "single_label_classification" if is_index else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else classification
    expected = logits.shape[:1] if problem_type == "single_label_classification" else logits.shape
    if labels.shape != expected and (problem_type != "regression" or labels.numel() != logits.numel()):
        raise UserError(f"The labels have shape {tuple(labels.shape)}", f"{problem_type} needs {tuple(expected)}")
    if problem_type == "regression":
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.long())
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def as_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Converts class indices (B,) to one-hot targets (B, K); targets (B, K) are returned unchanged."""
    return F.one_hot(labels.long(), num_classes).float() if labels.ndim == 1 else labels
