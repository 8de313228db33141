"""Optimizers, parameter groups, the learning rate schedule, stochastic depth, and the EMA of the weights."""

from __future__ import annotations

import copy
import math
import re
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from deit.recipes.schema import Ema, Optimizer
from deit.rng import RngStream, generator
from deit.system.devices import Precision
from deit.training.muon import Muon

IMAGE_CHANNELS = 3
NO_DECAY = ("cls_token", "distillation_token", "mask_token", "position_embeddings", "layer_scale")
HEAD_MARK = "classifier."  # part of the parameter names of every head
M = TypeVar("M", bound=nn.Module)
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def trainable_modules(model: nn.Module, features: nn.Module | None) -> nn.Module:
    """Returns everything that is trained as one module: the model, and the feature distillation heads if there are any."""
    return model if features is None else nn.ModuleDict({"model": model, "features": features})


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups parameters by weight decay and learning rate.

    Biases, norms, tokens and position embeddings do not decay (section 6).

    Args:
        model: what is trained.
        weight_decay: weight decay of all other parameters.
        layer_decay: layer-wise learning rate decay (BEiT, arXiv 2106.08254): the heads have the full learning rate, the last
            block ``layer_decay`` times that, and so on down to the embeddings. 1 disables it.

    Returns:
        Parameter groups for an optimizer; ``scale`` is the factor of the learning rate.
    """
    top = 1 + max((int(match[1]) + 1 for name, _ in model.named_parameters() if (match := _LAYER.search(name))), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(NO_DECAY)
            distance = top - _layer_index(name, top) if layer_decay < 1 else 0
            groups.setdefault((distance, not decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if no_decay else weight_decay, "scale": layer_decay**distance}
        for (distance, no_decay), parameters in sorted(groups.items())
    ]


def _layer_index(name: str, top: int) -> int:
    """Returns 0 for the embeddings, n + 1 for block n, ``top`` for everything after the blocks."""
    match = _LAYER.search(name)
    if match:
        return int(match[1]) + 1
    return 0 if "embeddings." in name else top


def freeze(model: nn.Module, trainable: Literal["all", "heads", "attention"]) -> None:
    """Freezes all parameters but the ``trainable`` ones, see :class:`deit.recipes.schema.Transformer`."""
    marks = {"all": ("",), "heads": (HEAD_MARK,), "attention": (HEAD_MARK, ".attention.", "position_embeddings")}[trainable]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(mark in name for mark in marks))


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon updates a parameter: weights of hidden layers, but not embeddings, heads or depthwise filters."""
    in_block = parameter.ndim == 2 and _LAYER.search(name) is not None
    return in_block or (parameter.ndim == 4 and parameter.shape[1] > IMAGE_CHANNELS)


def make_optimizer(model: nn.Module, settings: Optimizer, precision: Precision = "fp32") -> torch.optim.Optimizer:
    """Builds the recipe's optimizer for all parameters that are not frozen. The step sets its learning rate.

    ``precision`` is that of Muon's matrix products; all other updates are in fp32.
    """
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    if settings.name == "lamb":  # the step clips gradients; LAMB would clip them again
        return Lamb(groups, lr=0.0, betas=settings.betas, eps=settings.eps, max_grad_norm=None)
    if settings.name == "muon":
        return Muon(
            _muon_groups(model, groups, settings),
            momentum=settings.momentum,
            iterations=settings.muon_iterations,
            betas=settings.betas,
            eps=settings.eps,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def _muon_groups(model: nn.Module, groups: list[dict[str, Any]], settings: Optimizer) -> list[dict[str, Any]]:
    """Splits each group into kernels, for Muon, and all other parameters, for AdamW with its own learning rate factor."""
    kernels = {id(parameter) for name, parameter in model.named_parameters() if _is_kernel(name, parameter)}
    split_groups = []
    for group in groups:
        for use_muon in (True, False):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in kernels) == use_muon]
            scale = group["scale"] * (1.0 if use_muon else settings.adamw_lr_scale)
            if parameters:
                split_groups.append({**group, "params": parameters, "scale": scale, "use_muon": use_muon})
    return split_groups


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of the next step, scaled per parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def learning_rate(settings: Optimizer, peak: float, epochs: float, epoch: float) -> float:
    """Linear warm-up, then cosine decay to ``min_lr`` or a constant learning rate.

    The cosine spans all epochs, including the warm-up, as in the released code.

    Args:
        settings: the schedule.
        peak: learning rate after the warm-up.
        epochs: total number of epochs; may be fractional.
        epoch: training progress in epochs, 0 <= epoch <= epochs; may be fractional.
    """
    if settings.lr_update == "epoch":
        epoch = math.floor(epoch)
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr + (peak - settings.warmup_lr) * epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return peak
    min_lr = min(settings.min_lr, peak)
    return min_lr + (peak - min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def residual_scale(rate: float, layers: int, seed: int, epoch: int, step: int, positions: Tensor) -> Tensor | None:
    """Draws stochastic depth (Huang et al., arXiv 1603.09382) for the residual branches of a batch.

    The drop probability increases linearly from 0 at the first block to ``rate`` at the last.

    Args:
        rate: drop probability at the last block.
        layers: L, the depth of the model.
        seed: seed of the run.
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        positions: (B,), positions of the images in the global batch; draws depend on them, not on the process.

    Returns:
        (L, 2, B) float32: 0 for a dropped branch, 1 / (1 - its rate) for a kept one; None if ``rate`` is 0.
    """
    if rate == 0:
        return None
    rates = np.linspace(0, rate, layers)
    rng = generator(seed, RngStream.DROP_PATH, epoch, step)
    draws = rng.random((int(positions.max()) + 1, layers, 2))[positions.numpy()]  # (B, L, 2)
    kept = draws >= rates[:, None]
    scale = kept / (1 - rates[:, None])
    return torch.from_numpy(np.ascontiguousarray(scale.transpose(1, 2, 0), dtype=np.float32))


class ModelEma(Generic[M]):
    """Exponential moving average of a model's weights and buffers.

    Args:
        model: the model; the EMA starts from its current weights.
        settings: decay and warm-up.

    Attributes:
        model: a copy of the model with the averaged weights.
    """

    def __init__(self, model: M, settings: Ema) -> None:
        self.settings = settings
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average with the model's weights after step ``step``, counted from 0."""
        decay = self.settings.decay
        if self.settings.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        averaged, current = self.model.state_dict(), model.state_dict()
        counters = [name for name, value in current.items() if not value.is_floating_point()]  # of batch norms
        for name in counters:
            averaged.pop(name).copy_(current.pop(name))
        torch._foreach_lerp_(list(averaged.values()), list(current.values()), 1 - decay)
