"""What moves the weights: parameter groups, the schedule, stochastic depth's draws, the moving average."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from deit.distillation.classifiers import Classifier
from deit.draws import Stream, generator
from deit.training.recipe import Average, Optimizer

NO_DECAY = ("cls_token", "distillation_token", "mask_token", "position_embeddings")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights that decay, and those that do not: biases, norms, tokens, position embeddings (section 6)."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim > 1 and not name.endswith(NO_DECAY)
            (decayed if plain else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over a model's parameters; the learning rate is set anew before each step."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def learning_rate(settings: Optimizer, peak: float, epochs: int, epoch: float) -> float:
    """Linear warm-up, then a cosine over all epochs, which the warm-up hides the beginning of (as the released code has it).

    Args:
        peak: the rate that the cosine starts from.
        epochs: of the whole training.
        epoch: how far training is, 0 <= epoch <= epochs; whole where the rate moves once an epoch.
    """
    if settings.by == "epoch":
        epoch = math.floor(epoch)
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr + (peak - settings.warmup_lr) * epoch / settings.warmup_epochs
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
    rng = generator(seed, Stream.DROP_PATH, epoch, step)
    draws = rng.random((int(positions.max()) + 1, layers, 2))[positions.numpy()]  # (B, L, 2)
    kept = draws >= rates[:, None]
    scale = kept / (1 - rates[:, None])
    return torch.from_numpy(np.ascontiguousarray(scale.transpose(1, 2, 0), dtype=np.float32))


class MovingAverage:
    """The exponential moving average of a model's weights and buffers, as a model of its own.

    Args:
        model: whose present weights the average begins with.
        settings: decay and warm-up.
    """

    def __init__(self, model: Classifier, settings: Average) -> None:
        self.settings = settings
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

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
