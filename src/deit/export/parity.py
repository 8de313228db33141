"""Parity check: how far the logits of an exported model are from those of the original, and whether that is too far.

Shapes: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deit.errors import WorkError
from deit.inference.bundle import Precision
from deit.inference.logits import check_logits
from deit.inference.runtimes import Runtime


@dataclass(frozen=True)
class Limit:
    """Tolerance of the parity check.

    Attributes:
        error: maximum of :attr:`Parity.error`.
        agreement: minimum of :attr:`Parity.agreement`, in 0..1.
    """

    error: float
    agreement: float


# In fp32, two runtimes differ by the order of their sums. bf16 rounds the factors of each product to 8 bits of mantissa.
LIMITS: dict[Precision, Limit] = {
    "fp32": Limit(error=1e-3, agreement=0.998),
    "bf16": Limit(error=0.06, agreement=0.99),
    "int8": Limit(error=0.25, agreement=0.98),
}


@dataclass(frozen=True)
class Parity:
    """Comparison of two models' logits for the same images.

    The scale of both errors is the root mean square of the fp32 logits about the mean of their image.

    Attributes:
        images: number of images.
        error: root mean square difference of the logits, relative to the scale.
        max_error: largest difference of a logit, relative to the scale.
        agreement: share of images with the same top-1 prediction, in 0..1.
    """

    images: int
    error: float
    max_error: float
    agreement: float

    def within(self, limit: Limit) -> bool:
        """True if within the limit. NaN fails."""
        return bool(self.error <= limit.error and self.agreement >= limit.agreement)

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON values."""
        return asdict(self)


def compare_logits(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """Compares logits (n, K) of the fp32 model with those of another for the same images.

    Raises:
        NonFiniteOutputError: logits are NaN or infinite.
    """
    check_logits(actual, "The exported model", "nothing was written; choose a higher precision")
    expected, difference = expected.astype(np.float64), actual.astype(np.float64) - expected
    centered = expected - expected.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((centered**2).mean())) or 1.0
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    error = float(np.sqrt((difference**2).mean())) / scale
    return Parity(len(expected), error, float(np.abs(difference).max()) / scale, float(same.mean()))


def check_parity(parity: Parity, precision: Precision, runtime: str) -> None:
    """Checks a comparison against the limit of its precision.

    Raises:
        WorkError: the exported model is too far from the fp32 model.
    """
    limit = LIMITS[precision]
    if not parity.within(limit):
        raise WorkError(
            f"In {precision} on {runtime}, the exported model agrees with the fp32 model on {parity.agreement:.1%} of "
            f"{parity.images} images with a logit error of {parity.error:.3g}; the limits are {limit.agreement:.1%} and "
            f"{limit.error:g}",
            "nothing was written; choose a higher precision, or calibrate on images like the training data",
        )


def main_logits(runtime: Runtime, pixels: np.ndarray) -> np.ndarray:
    """Runs a runtime and returns the logits (n, K) of its last head, the model's prediction."""
    return np.concatenate([runtime(batch)[runtime.heads[-1]] for batch in batches(pixels, runtime.batch_size)])


def batches(pixels: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Splits an array into batches along its first axis."""
    return (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
