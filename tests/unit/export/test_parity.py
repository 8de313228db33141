"""The parity check: errors by hand, and what passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deit.errors import WorkError
from deit.export.parity import LIMITS, Limit, Parity, batches, check_parity, compare_logits

LOGITS = np.random.default_rng(0).normal(size=(50, 7))


def test_equal_logits_have_no_error() -> None:
    assert compare_logits(LOGITS, LOGITS.copy()) == Parity(50, 0.0, 0.0, 1.0)


def test_error_is_relative_to_the_logits_about_their_mean() -> None:
    shifted = LOGITS + 0.1
    scale = math.sqrt(((LOGITS - LOGITS.mean(axis=1, keepdims=True)) ** 2).mean())
    parity = compare_logits(LOGITS + 1000, shifted + 1000)  # a constant added to all logits changes nothing
    assert parity.error == pytest.approx(0.1 / scale)
    assert parity.max_error == pytest.approx(0.1 / scale)
    assert parity.agreement == 1.0


def test_agreement_counts_top1_predictions() -> None:
    changed = LOGITS.copy()
    for row in range(10):
        changed[row] = -changed[row]
    assert compare_logits(LOGITS, changed).agreement == pytest.approx(0.8)


def test_single_class_and_constant_logits() -> None:
    assert compare_logits(np.ones((3, 1)), np.ones((3, 1))).error == 0
    assert compare_logits(np.ones((3, 4)), np.ones((3, 4))).agreement == 1


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_error_and_agreement_are_in_range(logits: np.ndarray) -> None:
    parity = compare_logits(LOGITS[:4, :3], logits)
    assert parity.error >= 0 and parity.max_error >= parity.error / 2 and 0 <= parity.agreement <= 1


@pytest.mark.parametrize("parity", [Parity(9, 0.3, 0.3, 1.0), Parity(9, 0.0, 0.0, 0.97), Parity(9, math.nan, math.nan, 1.0)])
def test_parity_beyond_the_limit_is_an_error(parity: Parity) -> None:
    with pytest.raises(WorkError, match="nothing was written"):
        check_parity(parity, "int8", "openvino")


def test_parity_at_the_limit_passes() -> None:
    for precision, limit in LIMITS.items():
        check_parity(Parity(9, limit.error, 9.0, limit.agreement), precision, "openvino")
    assert LIMITS["bf16"].agreement >= 0.99 and LIMITS["int8"].agreement >= 0.98
    assert not Parity(9, 0.1, 0.1, 0.5).within(Limit(0.2, 0.6))


def test_batches() -> None:
    assert [len(batch) for batch in batches(np.zeros((10, 2)), 4)] == [4, 4, 2]
