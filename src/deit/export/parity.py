"""How far an exported model's answers are from those of the model it was made of, and whether that is too far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deit.errors import WorkError
from deit.inference.bundle import Precision
from deit.inference.runtimes import Runtime


@dataclass(frozen=True)
class Limit:
    """What is still let out.

    Attributes:
        error: of the logits, see :class:`Parity`.
        agreement: least share of images with the same first answer, in 0..1.
    """

    error: float
    agreement: float


# Two programs in fp32 differ by the order of their sums. bf16 rounds each product's factors to 8 bits of mantissa.
LIMITS: dict[Precision, Limit] = {
    "fp32": Limit(error=1e-3, agreement=0.998),
    "bf16": Limit(error=0.06, agreement=0.99),
    "int8": Limit(error=0.25, agreement=0.98),
}


@dataclass(frozen=True)
class Parity:
    """Two models' answers to the same images.

    Attributes:
        images: how many.
        error: root mean square of the difference of all logits, relative to that of the fp32 logits about their image's mean.
        largest: the largest difference of a logit, relative to the same.
        agreement: share of images with the same first answer, in 0..1.
    """

    images: int
    error: float
    largest: float
    agreement: float

    def within(self, limit: Limit) -> bool:
        """Whether this may be let out; not a number is not."""
        return bool(self.error <= limit.error and self.agreement >= limit.agreement)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def compare(expected: np.ndarray, found: np.ndarray) -> Parity:
    """Logits (n, K) of the fp32 model and of another, to the same images."""
    expected, difference = expected.astype(np.float64), found.astype(np.float64) - expected
    centred = expected - expected.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((centred**2).mean())) or 1.0
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    error = float(np.sqrt((difference**2).mean())) / scale
    return Parity(len(expected), error, float(np.abs(difference).max()) / scale, float(same.mean()))


def check(parity: Parity, precision: Precision, runtime: str) -> None:
    """Let a model out, or not.

    Raises:
        WorkError: it is too far from the fp32 model.
    """
    limit = LIMITS[precision]
    if not parity.within(limit):
        raise WorkError(
            f"In {precision} on {runtime} the model agrees with its fp32 self on {parity.agreement:.1%} of {parity.images} "
            f"images and its logits are {parity.error:.3g} off; at least {limit.agreement:.1%} and at most {limit.error:g} are "
            "let out",
            "nothing was kept; choose a higher precision, or calibrate on images like those that the model was trained on",
        )


def answers(runtime: Runtime, pixels: np.ndarray) -> np.ndarray:
    """The logits of a runtime's last head, (n, K)."""
    return np.concatenate([runtime(part)[runtime.heads[-1]] for part in parts(pixels, runtime.batch)])


def parts(pixels: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Cut a long array into batches."""
    return (pixels[start : start + batch] for start in range(0, len(pixels), batch))
