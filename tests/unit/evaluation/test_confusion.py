"""Confusion matrix as its nonzero cells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.config import DeiTConfig
from deit.data.class_names import check_class_names
from deit.errors import DataError
from deit.evaluation.confusion import MAX_STORED_CELLS, Confusion
from deit.evaluation.metrics import Evaluation, HeadMetrics, Scores
from deit.system.files import MAX_JSON_BYTES, json_text

CLASS_INDEX = st.integers(0, 6)


@given(st.lists(st.tuples(CLASS_INDEX, CLASS_INDEX), min_size=1, max_size=40))
def test_cells_are_those_of_the_matrix(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.asarray(pairs).T
    matrix = np.zeros((7, 7), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    confusion = Confusion.of(labels, predictions, 7)
    np.testing.assert_array_equal(confusion.to_array(), matrix)
    np.testing.assert_array_equal(confusion.totals, matrix.sum(axis=1))
    np.testing.assert_array_equal(confusion.correct, np.diag(matrix))
    np.testing.assert_array_equal(confusion.shares, (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[matrix > 0])
    stored = confusion.to_dict()
    assert list(zip(stored["true"], stored["predicted"], strict=True)) == sorted(set(pairs))
    assert (sum(stored["images"]), stored["omitted"]) == (len(pairs), 0)
    cells = confusion.mistakes()
    assert len(cells) == len({pair for pair in pairs if pair[0] != pair[1]})
    assert sorted(confusion.counts[cells], reverse=True) == confusion.counts[cells].tolist()


def evaluation(num_classes: int, images: int, name: str = "n{:08d}") -> Evaluation:
    """Returns an evaluation in which almost every image is a cell of its own."""
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, num_classes, (2, images))
    confidence = np.full(images, 0.123456789)
    scores = Scores(labels, predictions, confidence, confidence, labels == predictions)
    classes = tuple(name.format(i) for i in range(num_classes))
    return Evaluation(classes, {"class": HeadMetrics(0.1, 0.2, 3.0, 0.4)}, scores, np.arange(images), 0, 1.0)


def test_evaluation_on_imagenet_21k_is_stored_in_a_few_megabytes() -> None:
    result = evaluation(21_841, 522_500)
    text = json_text(result.to_dict())
    assert len(text) < 4_000_000
    stored = json.loads(text)["confusion"]
    assert len(stored["true"]) == len(stored["predicted"]) == len(stored["images"]) == MAX_STORED_CELLS
    assert sum(stored["images"]) + stored["omitted"] == 522_500
    assert max(stored["images"]) == result.confusion.counts.max()


@pytest.mark.parametrize(
    ("count", "name"), [(21_841, "{:0250d}"), (150_000, "{}"), (10_000, "{:0580d}"), (12_000, "{:0165d}🐟")]
)
def test_class_names_that_pass_the_check_fit_into_every_file(count: int, name: str) -> None:
    result = evaluation(count, 200_000, name)
    check_class_names(result.classes)
    assert len(json_text(result.to_dict()).encode()) <= MAX_JSON_BYTES
    assert len(DeiTConfig().with_classes(result.classes).to_json_string().encode()) <= MAX_JSON_BYTES


@pytest.mark.parametrize(("count", "name"), [(21_841, "{:0300d}"), (300_000, "{}"), (30_000, "{:0200d}")])
def test_too_many_or_too_long_class_names_are_an_error(count: int, name: str) -> None:
    with pytest.raises(DataError, match=r"classes take \d+ MiB in the files of a model: the limit is 12 MiB"):
        check_class_names([name.format(i) for i in range(count)])
