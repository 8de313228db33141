"""What moves the weights: parameter groups, the schedule, stochastic depth's draws, the moving average."""

from __future__ import annotations

import copy
import math
import re
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from timm.optim.lamb import Lamb
from timm.optim.muon import Muon
from torch import Tensor, nn

from deit.recipes.schema import Average, Optimizer
from deit.rng import RngStream, generator

IMAGE_CHANNELS = 3
NO_DECAY = ("cls_token", "distillation_token", "mask_token", "position_embeddings", "layer_scale")
HEADS = ("classifier.",)  # part of the names of all heads
M = TypeVar("M", bound=nn.Module)
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def trainable_modules(model: nn.Module, hints: nn.Module | None) -> nn.Module:
    """Everything that learns, as one module: the model itself where nothing learns beside it."""
    return model if hints is None else nn.ModuleDict({"model": model, "hints": hints})


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Weights that decay, and those that do not: biases, norms, tokens, position embeddings (section 6).

    Args:
        layer_decay: 1, or the factor from a layer's learning rate to that of the layer below: the heads learn at the whole
            rate, the last block at ``layer_decay`` of it, the embeddings at the smallest share (BEiT, arXiv 2106.08254).

    Returns:
        Groups for an optimizer; ``scale`` is the share of the learning rate.
    """
    top = 1 + max((int(match[1]) + 1 for name, _ in model.named_parameters() if (match := _LAYER.search(name))), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim > 1 and not name.endswith(NO_DECAY)
            below = top - _depth(name, top) if layer_decay < 1 else 0
            groups.setdefault((below, not plain), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if kept else weight_decay, "scale": layer_decay**below}
        for (below, kept), parameters in sorted(groups.items())
    ]


def _depth(name: str, top: int) -> int:
    """0 for the embeddings, n + 1 for block n, ``top`` for what comes after the blocks."""
    match = _LAYER.search(name)
    if match:
        return int(match[1]) + 1
    return 0 if "embeddings." in name else top


def freeze(model: nn.Module, trainable: Literal["all", "heads", "attention"]) -> None:
    """Let only a part of a transformer learn: :class:`deit.recipes.schema.Transformer` says which."""
    parts = {"all": ("",), "heads": HEADS, "attention": (*HEADS, ".attention.", "position_embeddings")}[trainable]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight maps features to features, which is what Muon is for: no embedding, no head, no depthwise filter."""
    in_block = parameter.ndim == 2 and _LAYER.search(name) is not None
    return in_block or (parameter.ndim == 4 and parameter.shape[1] > IMAGE_CHANNELS)


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer over what is not frozen; the learning rate is set anew before each step."""
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    if settings.name == "lamb":  # clips by itself unless told not to; the step clips
        return Lamb(groups, lr=0.0, betas=settings.betas, eps=settings.eps, max_grad_norm=None)
    if settings.name == "muon":
        return Muon(_split(model, groups, settings), lr=0.0, betas=settings.betas, eps=settings.eps, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def _split(model: nn.Module, groups: list[dict[str, Any]], settings: Optimizer) -> list[dict[str, Any]]:
    """Each group's kernels for Muon and its other weights for AdamW, at their share of the rate."""
    kernels = {id(parameter) for name, parameter in model.named_parameters() if _is_kernel(name, parameter)}
    parts = []
    for group in groups:
        for by_muon in (True, False):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in kernels) == by_muon]
            scale = group["scale"] * (1.0 if by_muon else settings.adamw_lr_scale)
            if parameters:
                parts.append({**group, "params": parameters, "scale": scale, "use_muon": by_muon})
    return parts


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for each group its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(settings: Optimizer, peak: float, epochs: int, epoch: float) -> float:
    """Linear warm-up, then a cosine over all epochs, which the warm-up hides the beginning of (as the released code has it);
    or a constant rate.

    Args:
        peak: the rate that the cosine starts from.
        epochs: of the whole training.
        epoch: how far training is, 0 <= epoch <= epochs; whole where the rate moves once an epoch.
    """
    if settings.by == "epoch":
        epoch = math.floor(epoch)
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr + (peak - settings.warmup_lr) * epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return peak
    low = min(settings.min_lr, peak)
    return low + (peak - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def residual_scale(rate: float, layers: int, seed: int, epoch: int, step: int, positions: Tensor) -> Tensor | None:
    """Stochastic depth (Huang et al., arXiv 1603.09382): which residual branches of which images are dropped.

    The probability of a drop rises linearly from 0 at the first block to ``rate`` at the last.

    Args:
        layers: L, of the model.
        positions: (B,), of the images in the global batch: a draw belongs to a place, whatever machine it is on.

    Returns:
        (L, 2, B), float32: 0 where a branch is dropped, 1 / (1 - its rate) where it is kept; None where nothing is dropped.
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
    """The exponential moving average of a model's weights and buffers, as a model of its own.

    Args:
        model: whose present weights the average begins with.
        settings: decay and warm-up.
    """

    def __init__(self, model: M, settings: Average) -> None:
        self.settings = settings
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights after its ``step``-th step, counted from 0."""
        decay = self.settings.decay
        if self.settings.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        average, new = self.model.state_dict(), model.state_dict()
        counters = [name for name, value in new.items() if not value.is_floating_point()]  # of batch norms
        for name in counters:
            average.pop(name).copy_(new.pop(name))
        torch._foreach_lerp_(list(average.values()), list(new.values()), 1 - decay)
