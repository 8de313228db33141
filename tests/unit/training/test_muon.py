"""Muon: batches of matrices are updated as each matrix alone, and all other parameters as by AdamW."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deit.training.muon import ITERATIONS, LOWER_BOUNDS, RMS, Muon, orthogonalize
from tests.helpers import noise

SHAPES = [(12, 30), (30, 12), (12, 30), (8, 8), (10, 4, 3, 3), (4, 20, 1, 1)]


def singular_values(update: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(update.flatten(1).float())
    return values


def with_gradients(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    parameters = []
    for index, shape in enumerate(shapes):
        parameter = nn.Parameter(noise(*shape, seed=seed + index))
        parameter.grad = noise(*shape, seed=100 + seed + index)
        parameters.append(parameter)
    return parameters


def optimizer_of(parameters: list[nn.Parameter], use_muon: bool = True, weight_decay: float = 0.0) -> Muon:
    group = {"params": parameters, "lr": 0.1, "weight_decay": weight_decay, "use_muon": use_muon}
    return Muon([group], momentum=0.9, betas=(0.8, 0.9), eps=1e-6)


def test_batch_is_updated_as_each_matrix_alone() -> None:
    together, alone = with_gradients(SHAPES), with_gradients(SHAPES)
    together[4].data = together[4].data.to(memory_format=torch.channels_last)
    optimizers = [optimizer_of(together), *(optimizer_of([parameter]) for parameter in alone)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first, second)


def test_update_is_the_polar_factor_of_the_momentum() -> None:
    parameters = with_gradients(SHAPES)
    before = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    optimizer = optimizer_of(parameters, weight_decay=0.5)
    for step in range(2):
        for parameter, momentum in zip(parameters, momenta, strict=True):
            parameter.grad = noise(*parameter.shape, seed=7 + step)
            momentum.lerp_(parameter.grad, 0.1)
        optimizer.step()
        for parameter, old, momentum in zip(parameters, before, momenta, strict=True):
            u, _, vh = torch.linalg.svd(momentum.flatten(1), full_matrices=False)
            expected = (0.95 * old - parameter.detach()).flatten(1) / (0.1 * RMS * max(momentum.flatten(1).shape) ** 0.5)
            assert ((u @ vh) * expected).sum() > 0.95 * (u @ vh).norm() * expected.norm()
            old.copy_(parameter.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("iterations", ITERATIONS)
def test_singular_values_approach_one(iterations: int, dtype: torch.dtype) -> None:
    u, _ = torch.linalg.qr(noise(24, 24))
    v, _ = torch.linalg.qr(noise(96, 96, seed=1))
    values = torch.logspace(math.log10(LOWER_BOUNDS[iterations]), 0, 24)
    matrix = u @ torch.diag(values) @ v[:24]
    for scale in (1.0, values.norm()):  # as they are, and divided by the norm
        bounded = matrix * scale
        updates = orthogonalize(bounded[None].to(dtype), iterations)
        assert updates.dtype == dtype
        large = singular_values(updates[0])[: int((values / values.norm() >= LOWER_BOUNDS[iterations]).sum())]
        assert (large - 1).abs().max() < (0.26 if dtype == torch.float32 else 0.35)


def test_size_of_the_gradient_does_not_matter_and_zeros_stay() -> None:
    matrices = noise(3, 6, 10)
    scaled = matrices * torch.tensor([1e-12, 1.0, 1e12])[:, None, None]
    torch.testing.assert_close(orthogonalize(scaled, 4), orthogonalize(matrices, 4))
    assert not orthogonalize(torch.zeros(2, 3, 4), 4).any()


def test_others_are_updated_as_by_adamw() -> None:
    shapes: list[tuple[int, ...]] = [(5,), (4, 6), (2, 3, 2, 2)]
    ours, theirs = with_gradients(shapes), with_gradients(shapes)
    optimizers = [
        optimizer_of(ours, use_muon=False, weight_decay=0.2),
        torch.optim.AdamW(theirs, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2),
    ]
    for _ in range(4):
        for optimizer in optimizers:
            optimizer.step()
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    parameters = with_gradients([(4, 6), (4, 6)])
    parameters[0].grad = None
    before = parameters[0].detach().clone()
    optimizer = optimizer_of(parameters, weight_decay=0.3)
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert parameters[0] not in optimizer.state
