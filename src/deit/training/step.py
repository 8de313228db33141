"""One optimization step: batches in, weights moved. No input or output but tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deit.config import ViTConfig
from deit.data.loader import Batch
from deit.distillation.feature_distillation import Hints
from deit.distillation.teacher import Teacher
from deit.errors import DataError
from deit.models.losses import binary_cross_entropy, soft_target_cross_entropy, training_loss
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import Precision, autocast
from deit.training.masking import masks
from deit.training.optimization import residual_scale, set_learning_rate, trainable_modules


@dataclass(frozen=True)
class StepContext:
    """What stays the same from step to step.

    Attributes:
        teacher: needed where the recipe distils and the batches do not carry a stored teacher's answers.
        config: of the transformer; None for a convolutional network.
        precision: of the matrix products.
        hints: learn beside the model, where the recipe asks for them.
    """

    recipe: Recipe
    device: torch.device
    precision: Precision
    teacher: Teacher | None
    config: ViTConfig | None
    hints: Hints | None = None


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    context: StepContext,
    epoch: int,
    step: int,
    lr: float,
) -> Tensor:
    """Gradients of all micro-batches, then one step of the optimizer. A loss that is not finite moves nothing.

    Args:
        batches: the micro-batches of one global batch.
        epoch: counted from 0; likewise ``step``, within the epoch.
        lr: learning rate of this step.

    Raises:
        DataError: the batches are all empty, which skipped images leave.

    Returns:
        The global batch's mean loss, a scalar on the device.
    """
    batches = [batch for batch in batches if len(batch.labels)]
    total = sum(len(batch.labels) for batch in batches)
    if not total:
        raise DataError("No image of a whole batch is readable", "`deit data check` lists the unreadable files")
    loss = torch.zeros((), device=context.device)
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        part = batch_loss(model, batch, context, epoch, step) * (len(batch.labels) / total)
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.detach()
    if not torch.isfinite(loss):
        return loss
    clip = context.recipe.optimizer.clip_norm
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(trainable_modules(model, context.hints).parameters(), clip)
    set_learning_rate(optimizer, lr)
    optimizer.step()
    return loss


def batch_loss(model: nn.Module, batch: Batch, context: StepContext, epoch: int, step: int) -> Tensor:
    """The training loss of one micro-batch, with its graph."""
    recipe = context.recipe
    if recipe.masked:
        return _reconstruction_loss(model, batch, context, epoch)
    scale = None
    if isinstance(recipe.model, Transformer) and not recipe.model.evaluation_mode:
        assert context.config is not None
        positions, layers = batch.samples[:, 2], context.config.num_hidden_layers
        scale = residual_scale(recipe.model.drop_path, layers, recipe.seed, epoch, step, positions)
    batch = batch.to(context.device)
    with autocast(context.device, context.precision):
        scale = None if scale is None else scale.to(context.device)
        if context.hints is None:
            answer = batch.teacher_targets if context.teacher is None else context.teacher(batch.pixel_values)
            heads = model(batch.pixel_values, residual_scale=scale).heads
        else:
            assert context.teacher is not None
            answer, maps = context.teacher.forward_intermediates(batch.pixel_values)
            output = model(batch.pixel_values, residual_scale=scale, output_hidden_states=True)
            heads, distance = output.heads, context.hints(output.hidden_states, maps)
    part = binary_cross_entropy if recipe.loss == "binary" else soft_target_cross_entropy
    loss = training_loss(recipe.distillation, heads["class"], batch.targets, heads.get("distillation"), answer, part)
    return loss if context.hints is None else loss + recipe.distillation.hints * distance


def _reconstruction_loss(model: nn.Module, batch: Batch, context: StepContext, epoch: int) -> Tensor:
    """Of masked image modeling: the hidden patches' pixels; labels and targets are not looked at."""
    recipe = context.recipe
    assert context.config is not None
    hidden = masks(recipe.masking, recipe.seed, epoch, batch.samples, context.config.grid).to(context.device)
    with autocast(context.device, context.precision):
        loss: Tensor = model(batch.pixel_values.to(context.device, non_blocking=True), bool_masked_pos=hidden).loss
    return loss
