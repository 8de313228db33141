"""Muon (Jordan et al., 2024; arXiv 2502.16982) for matrices and AdamW for all other parameters.

Muon's update of a matrix is its momentum, orthogonalized by a few Newton-Schulz iterations. A small transformer has many small
matrices of few shapes: those of equal or transposed shape are orthogonalized in one batch.

Shapes: n matrices of a batch, each (R, C) with R <= C. A convolution (outputs, inputs, height, width) is the matrix
(outputs, inputs * height * width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from deit.system.distributed import divided_like, whole

# Factors of X, X X^T X and (X X^T)^2 X in each iteration, by number of iterations: as in Polar Express (arXiv 2505.16932), each
# iteration is the best polynomial for the singular values that the ones before it leave. The result is within 25% of 1 for
# singular values of at least LOWER_BOUNDS times the norm.
ITERATIONS = {
    2: ((6.8983, -18.9222, 13.716), (2.6152, -1.9392, 0.4484)),
    3: ((8.0672, -23.5173, 17.3642), (3.604, -2.6983, 0.5339), (2.6152, -1.9392, 0.4484)),
    4: ((8.4048, -24.8496, 18.4237), (4.0766, -3.0346, 0.5722), (3.604, -2.6983, 0.5339), (2.6152, -1.9392, 0.4484)),
    5: (
        (8.4884, -25.1797, 18.6863),
        (4.213, -3.1296, 0.583),
        (4.0766, -3.0346, 0.5722),
        (3.604, -2.6983, 0.5339),
        (2.6152, -1.9392, 0.4484),
    ),
}
LOWER_BOUNDS = {2: 0.0449, 3: 0.0107, 4: 0.0026, 5: 0.0006}
RMS = 0.2  # root mean square of an update, as that of AdamW (arXiv 2502.16982, equation 4)
MIN_NORM = 1e-30


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with ``use_muon``, AdamW for all others.

    Args:
        groups: parameter groups with ``lr``, ``weight_decay`` and ``use_muon``.
        momentum: momentum of Muon.
        iterations: Newton-Schulz iterations, 2 to 5.
        betas: Adam betas.
        eps: Adam epsilon.
        dtype: of the Newton-Schulz iterations.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "betas": betas, "eps": eps})
        self.iterations, self.dtype = iterations, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                update = self._update_matrices if group["use_muon"] else self._update_others
                update(parameters, [parameter.grad for parameter in parameters], group)

    def _update_matrices(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momenta = self._states(parameters, "momentum_buffer")
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        batches: dict[tuple[int, int], list[int]] = {}
        matrices = [_wide(whole(momentum).flatten(1)) for momentum in momenta]
        for index, matrix in enumerate(matrices):
            batches.setdefault((matrix.shape[0], matrix.shape[1]), []).append(index)
        for (_, columns), indices in batches.items():
            batch = torch.stack([matrices[index] for index in indices]).to(self.dtype)  # (n, R, C)
            updates = orthogonalize(batch, self.iterations).float().unbind()
            updated = [parameters[index] for index in indices]
            shaped = [
                divided_like(_shaped_as(parameter, update), parameter)
                for parameter, update in zip(updated, updates, strict=True)
            ]
            torch._foreach_add_(updated, shaped, alpha=-group["lr"] * RMS * columns**0.5)

    def _update_others(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "step" not in self.state[parameter]:  # the fused kernel wants its counters on the device
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            self._states(parameters, "exp_avg"),
            self._states(parameters, "exp_avg_sq"),
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _states(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """Returns the moments of this name, zero at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in parameters]


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Replaces the singular values of each matrix by values within 25% of 1, except for very small ones.

    Args:
        matrices: (n, R, C) with R <= C.
        iterations: Newton-Schulz iterations, a key of ``ITERATIONS``; the more, the smaller a singular value may be.

    Returns:
        (n, R, C), of the same dtype.
    """
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x: Tensor = matrices * (1 / norms.clamp(min=MIN_NORM)).to(matrices.dtype)
    for linear, cubic, quintic in ITERATIONS[iterations]:
        gram = torch.bmm(x, x.mT)  # (n, R, R)
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, polynomial, x, beta=linear)
    return x


def _wide(matrix: Tensor) -> Tensor:
    """Returns a matrix with no more rows than columns."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _shaped_as(parameter: Tensor, update: Tensor) -> Tensor:
    """Undoes :func:`_wide` and the flattening."""
    is_tall = len(parameter) > parameter.numel() // len(parameter)
    return (update.T if is_tall else update).reshape(parameter.shape)
