"""From logits to probabilities. The logits of a diverged model are refused: their softmax is NaN, and its maximum any class.

Shapes: B images, K classes.
"""

from __future__ import annotations

import numpy as np

from deit.errors import NonFiniteOutputError

DIVERGED = "it has diverged or is damaged; take an earlier checkpoint, or train again with a lower learning rate"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities (B, K), float64, of logits (B, K).

    Raises:
        NonFiniteOutputError: as :func:`check_logits`.
    """
    check_logits(logits)
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def check_logits(logits: np.ndarray, model: str = "The model", remedy: str = DIVERGED) -> None:
    """Checks that the softmax of logits (B, K) exists: none is NaN or infinite. Minus infinity is a probability of 0.

    Args:
        logits: (B, K).
        model: what the message calls the model.
        remedy: what the user can do about it.

    Raises:
        NonFiniteOutputError: it does not exist for an image.
    """
    if not np.isfinite(logits.max(axis=1)).all():
        raise NonFiniteOutputError(f"{model} predicts NaN or infinite values", remedy)
