"""Who agrees with whom, and who is right where they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.evaluation.agreement import agreements, voter_predictions
from deit.evaluation.metrics import Evaluation
from tests.unit.evaluation.test_report import make_evaluation

CLASSES = ("cat", "dog", "fox")
LABELS = [0, 0, 1, 1, 2, 2]
CLASS_HEAD = np.array([0, 1, 1, 1, 2, 0])
DISTILLATION_HEAD = np.array([0, 0, 1, 2, 2, 1])
TEACHER_LABELS = [0, 0, 0, 1, 2, 2]


def distilled() -> Evaluation:
    heads = {"class": CLASS_HEAD, "distillation": DISTILLATION_HEAD, "both": CLASS_HEAD}
    return replace(make_evaluation(LABELS, CLASS_HEAD.tolist(), CLASSES), head_predictions=heads)


def test_three_voters() -> None:
    groups = agreements(distilled(), make_evaluation(LABELS, TEACHER_LABELS, CLASSES))
    assert {group.name: group.rows.tolist() for group in groups} == {
        "all agree": [0, 4],
        "class head differs": [1],
        "distillation head differs": [3],
        "teacher differs": [2],
        "all differ": [5],
    }
    by_name = {group.name: group.accuracy for group in groups}
    assert by_name["all agree"] == {"class head": 1, "distillation head": 1, "teacher": 1}
    assert by_name["teacher differs"] == {"class head": 1, "distillation head": 1, "teacher": 0}
    assert by_name["all differ"] == {"class head": 0, "distillation head": 0, "teacher": 1}


def test_two_voters() -> None:
    agreeing, differing = agreements(distilled())
    assert (agreeing.name, agreeing.rows.tolist()) == ("all agree", [0, 2, 4])
    assert (differing.name, differing.rows.tolist()) == ("they differ", [1, 3, 5])
    assert differing.accuracy == pytest.approx({"class head": 1 / 3, "distillation head": 1 / 3})


def test_one_head_alone_has_nobody_to_agree_with() -> None:
    assert agreements(make_evaluation(LABELS, LABELS, CLASSES)) == []
    alone = replace(make_evaluation(LABELS, LABELS, CLASSES), head_predictions={"class": np.array(LABELS)})
    assert agreements(alone) == []
    assert [group.name for group in agreements(alone, make_evaluation(LABELS, LABELS, CLASSES))] == ["all agree", "they differ"]
    assert math.isnan(agreements(alone, make_evaluation(LABELS, LABELS, CLASSES))[1].accuracy["teacher"])


def test_teacher_on_other_images_is_left_out() -> None:
    teacher = replace(make_evaluation(LABELS, LABELS, CLASSES), indices=np.arange(1, 7))
    assert list(voter_predictions(distilled(), teacher)) == ["class head", "distillation head"]


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=40))
def test_every_image_is_in_one_group(votes: list[tuple[int, int, int, int]]) -> None:
    labels, first, second, third = (list(column) for column in zip(*votes, strict=True))
    heads = {"class": np.array(first), "distillation": np.array(second)}
    evaluation = replace(make_evaluation(labels, first, CLASSES), head_predictions=heads)
    for teacher in (None, make_evaluation(labels, third, CLASSES)):
        rows = np.concatenate([group.rows for group in agreements(evaluation, teacher)])
        assert sorted(rows.tolist()) == list(range(len(votes)))
