"""One optimizer step: forward, loss and backward of all micro-batches, then the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deit.config import ViTConfig
from deit.data.loader import Batch
from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.protocol import DistillationTeacher
from deit.errors import DataError, InterruptedWorkError, PeerError
from deit.models.losses import binary_cross_entropy, loss_terms, soft_target_cross_entropy, total_loss
from deit.recipes.schema import ConvNet, Recipe, Transformer
from deit.system.devices import Precision, autocast
from deit.system.distributed import connected, whole
from deit.system.signals import check_stop
from deit.training.data_parallel import DataParallel
from deit.training.first_phase import first_phase, half_size, kept_patches
from deit.training.masking import random_masks
from deit.training.optimization import residual_scale, set_learning_rate, trainable_modules
from deit.training.parallel_batches import ParallelBatches, Replica
from deit.training.sharding import Sharding

TOTAL = "loss"  # key of the total among the losses of a step


class NonFiniteStepError(Exception):
    """The loss or a gradient of a step is NaN or infinite. Never reaches the user: the training loop decides what to do.

    Attributes:
        loss: mean loss of the global batch.
        gradient_norm: norm of all gradients together.
    """

    def __init__(self, loss: float, gradient_norm: float) -> None:
        super().__init__(loss, gradient_norm)
        self.loss, self.gradient_norm = loss, gradient_norm


@dataclass(frozen=True)
class StepContext:
    """What stays the same from step to step.

    Attributes:
        recipe: the resolved recipe.
        precision: precision of the matrix products.
        teacher: the teacher; None if the recipe does not distill.
        features: trained along with the model if feature maps are distilled.
        parallel: runs micro-batches at the same time; None runs them one after the other.
        data_parallel: shares each batch, and possibly the model, with the other processes of the run; None without others.
    """

    recipe: Recipe
    precision: Precision
    teacher: DistillationTeacher | None = None
    features: FeatureDistillation | None = None
    parallel: ParallelBatches | None = None
    data_parallel: DataParallel | Sharding | None = None


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    context: StepContext,
    epoch: int,
    step: int,
    lr: float,
    progress: float = 1.0,
    total_images: int | None = None,
) -> dict[str, Tensor]:
    """Accumulates the gradients of all micro-batches and updates the weights.

    Args:
        model: the model, in training mode.
        optimizer: over :func:`deit.training.optimization.trainable_modules`.
        batches: the micro-batches of one global batch, or of the share of this process.
        context: what stays the same from step to step.
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        lr: learning rate of this step.
        progress: fraction of the training that precedes the step, which decides its phase (:mod:`deit.training.first_phase`).
        total_images: images of the global batch; None counts those of ``batches``.

    Raises:
        DataError: all batches are empty, because all of their images are unreadable and skipped.
        NonFiniteStepError: the loss or a gradient is not finite; no weight was changed.
        InterruptedWorkError: a stop was requested between two micro-batches; no weight was changed.
        PeerError: another process has ended; no weight was changed.

    Returns:
        Means over the global batch, scalars on the model's device: the total ``loss`` and its unweighted terms
        (``label_loss``, ``distillation_loss``, ``feature_loss``).
    """
    batches = readable_batches(batches)
    optimizer.zero_grad(set_to_none=True)
    may_fail = len(batches) > 1 or context.recipe.optimizer.max_skipped_steps > 0 or context.data_parallel is not None
    buffers = _Buffers(model) if may_fail else None
    try:
        means = accumulate_gradients(model, batches, context, epoch, step, progress, total_images)
        norm = _clip_gradients(trainable_modules(model, context.features), context.recipe.optimizer.clip_norm)
        if not torch.isfinite(torch.stack([means[TOTAL].float(), norm.float()])).all():
            raise NonFiniteStepError(means[TOTAL].item(), norm.item())
    except (InterruptedWorkError, NonFiniteStepError, PeerError):
        if buffers is not None:
            buffers.restore()
        raise
    set_learning_rate(optimizer, lr)
    optimizer.step()
    return means


def readable_batches(batches: Sequence[Batch]) -> list[Batch]:
    """Returns the micro-batches that have images.

    Raises:
        DataError: there are none, because all images are unreadable and skipped.
    """
    readable = [batch for batch in batches if len(batch.labels)]
    if not readable:
        raise DataError("No image of a whole batch is readable", "`deit data check` lists the unreadable files")
    return readable


def _clip_gradients(model: nn.Module, clip_norm: float | None) -> Tensor:
    """Clips the norm of all gradients together, and returns what it was; NaN or infinity if one of them is not finite."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    with connected():
        if clip_norm is not None:
            return whole(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
        return whole(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))


class _Buffers:
    """The buffers of a model, such as the statistics of batch norms, which a forward pass changes."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, value in self._saved:
            buffer.copy_(value)


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    context: StepContext,
    epoch: int,
    step: int,
    progress: float = 1.0,
    total_images: int | None = None,
) -> dict[str, Tensor]:
    """Adds the gradients of the mean loss of all micro-batches to those of the model. Returns the means of the losses."""
    count = total_images or sum(len(batch.labels) for batch in batches)

    def losses(replica: Replica, batch: Batch) -> dict[str, Tensor]:
        module, features = replica
        values = batch_losses(module, batch, replace(context, features=features), epoch, step, progress)
        return {name: value * (len(batch.labels) / count) for name, value in values.items()}

    def backward(replica: Replica, batch: Batch) -> dict[str, Tensor]:
        check_stop()
        values = losses(replica, batch)
        values[TOTAL].backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in values.items()}

    if context.data_parallel is not None:
        return context.data_parallel.accumulate(losses, batches, TOTAL)
    if context.parallel is None:
        parts = [backward((model, context.features), batch) for batch in batches]
    else:
        parts = context.parallel.run(backward, batches)
    return {name: torch.stack([losses[name] for losses in parts]).sum() for name in parts[0]}


def batch_losses(
    model: nn.Module, batch: Batch, context: StepContext, epoch: int, step: int, progress: float = 1.0
) -> dict[str, Tensor]:
    """Computes the training losses of one micro-batch, with their graphs: the total ``loss`` and its unweighted terms."""
    device = next(model.parameters()).device
    recipe = context.recipe
    if recipe.masked:
        return {TOTAL: _reconstruction_loss(model, batch, context, epoch, device)}
    is_first_phase = progress < first_phase(recipe.model)
    draws = _draws(model, batch, recipe, epoch, step, is_first_phase)
    batch = batch.to(device)
    if is_first_phase and isinstance(recipe.model, ConvNet):
        batch = replace(batch, pixel_values=half_size(batch.pixel_values))
    feature_loss = None
    with autocast(device, context.precision):
        draws = {name: draw.to(device) for name, draw in draws.items()}
        taught = None if context.teacher is None else context.teacher.targets(batch, features=context.features is not None)
        if context.features is None:
            heads = model(batch.pixel_values, **draws).heads
        else:
            assert taught is not None
            output = model(batch.pixel_values, output_hidden_states=True, **draws)
            heads = output.heads
            feature_loss = context.features(output.hidden_states, taught.feature_maps, draws.get("kept_patches"))
    terms = loss_terms(
        recipe.distillation,
        heads["class"],
        batch.targets,
        heads.get("distillation"),
        None if taught is None else taught.targets,
        binary_cross_entropy if recipe.loss == "binary" else soft_target_cross_entropy,
    )
    if feature_loss is not None:
        terms["feature_loss"] = feature_loss
    return {TOTAL: total_loss(recipe.distillation, terms), **terms}


def _draws(model: nn.Module, batch: Batch, recipe: Recipe, epoch: int, step: int, is_first_phase: bool) -> dict[str, Tensor]:
    """Draws stochastic depth and patch dropout, as arguments of a transformer; none where they are off."""
    if not isinstance(recipe.model, Transformer):
        return {}
    config: ViTConfig = model.config  # type: ignore[assignment]  # a compiled model forwards the attribute
    positions = batch.samples[:, 2]
    drop_path = 0.0 if recipe.model.eval_mode else recipe.model.drop_path
    patch_dropout = recipe.model.patch_dropout if is_first_phase else 0.0
    draws = {
        "residual_scale": residual_scale(drop_path, config.num_hidden_layers, recipe.seed, epoch, step, positions),
        "kept_patches": kept_patches(patch_dropout, math.prod(config.grid), recipe.seed, epoch, step, positions),
    }
    return {name: draw for name, draw in draws.items() if draw is not None}


def _reconstruction_loss(model: nn.Module, batch: Batch, context: StepContext, epoch: int, device: torch.device) -> Tensor:
    """Computes the loss of masked image modeling."""
    recipe = context.recipe
    config: ViTConfig = model.config  # type: ignore[assignment]
    masked = random_masks(recipe.masking, recipe.seed, epoch, batch.samples, config.grid).to(device)
    with autocast(device, context.precision):
        loss: Tensor = model(batch.pixel_values.to(device, non_blocking=True), bool_masked_pos=masked).loss
    return loss
