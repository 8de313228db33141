"""The gate lets out what is near enough and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deit.errors import WorkError
from deit.export.parity import LIMITS, Limit, Parity, check, compare, parts

LOGITS = np.random.default_rng(0).normal(size=(50, 7))


def test_the_same_answers_have_no_error() -> None:
    assert compare(LOGITS, LOGITS.copy()) == Parity(50, 0.0, 0.0, 1.0)


def test_the_error_is_relative_to_the_logits_about_their_mean() -> None:
    found = LOGITS + 0.1
    scale = math.sqrt(((LOGITS - LOGITS.mean(axis=1, keepdims=True)) ** 2).mean())
    parity = compare(LOGITS + 1000, found + 1000)  # a shift of all of an image's logits changes no answer
    assert parity.error == pytest.approx(0.1 / scale)
    assert parity.largest == pytest.approx(0.1 / scale)
    assert parity.agreement == 1.0


def test_agreement_counts_first_answers() -> None:
    found = LOGITS.copy()
    for row in range(10):
        found[row] = -found[row]
    assert compare(LOGITS, found).agreement == pytest.approx(0.8)


def test_one_class_and_equal_logits_are_no_crash() -> None:
    assert compare(np.ones((3, 1)), np.ones((3, 1))).error == 0
    assert compare(np.ones((3, 4)), np.ones((3, 4))).agreement == 1


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_error_and_agreement_are_in_range(logits: np.ndarray) -> None:
    parity = compare(LOGITS[:4, :3], logits)
    assert parity.error >= 0 and parity.largest >= parity.error / 2 and 0 <= parity.agreement <= 1


@pytest.mark.parametrize("parity", [Parity(9, 0.3, 0.3, 1.0), Parity(9, 0.0, 0.0, 0.97), Parity(9, math.nan, math.nan, 1.0)])
def test_what_is_too_far_is_not_let_out(parity: Parity) -> None:
    with pytest.raises(WorkError, match="nothing was kept"):
        check(parity, "int8", "openvino")


def test_what_is_near_enough_is_let_out() -> None:
    for precision, limit in LIMITS.items():
        check(Parity(9, limit.error, 9.0, limit.agreement), precision, "openvino")
    assert LIMITS["bf16"].agreement >= 0.99 and LIMITS["int8"].agreement >= 0.98
    assert not Parity(9, 0.1, 0.1, 0.5).within(Limit(0.2, 0.6))


def test_a_long_array_is_cut_into_batches() -> None:
    assert [len(part) for part in parts(np.zeros((10, 2)), 4)] == [4, 4, 2]
