"""Stratified splits, and the record that a model keeps of its data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.sources import fingerprint
from deit.data.splits import DataRecord, DatasetSplits, make_splits, read_record, stratified_split, without_labels
from deit.errors import CheckpointError, DataError
from tests.helpers import MemorySource


class LabeledSource(MemorySource):
    def __init__(self, labels: list[int]) -> None:
        super().__init__(len(labels), classes=tuple("abcde"))
        object.__setattr__(self, "given", np.asarray(labels, np.int64))

    @property
    def labels(self) -> np.ndarray:
        return self.given  # type: ignore[attr-defined, no-any-return]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 2**32),
    st.lists(st.floats(0.01, 0.9), min_size=1, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_stratified_split_has_every_image_once_and_every_class_in_each_subset(
    labels: list[int], seed: int, fractions: list[float]
) -> None:
    source = LabeledSource(labels)
    subsets = stratified_split(source, seed, fractions)
    assert len(subsets) == len(fractions) + 1
    assert sorted(np.concatenate([subset.indices for subset in subsets]).tolist()) == list(range(len(labels)))
    totals = np.bincount(source.labels, minlength=5)
    for subset in subsets:
        assert np.array_equal(subset.labels, source.labels[subset.indices])
        counts = np.bincount(subset.labels, minlength=5)
        assert (counts[totals >= len(subsets)] > 0).all()
    for subset, fraction in zip(subsets[:-1], fractions, strict=True):  # the last subset gets the rest
        counts = np.bincount(subset.labels, minlength=5)
        assert (counts <= np.maximum(fraction * totals + 0.5, 1)).all()
    again = stratified_split(source, seed, fractions)
    assert [subset.indices.tolist() for subset in again] == [subset.indices.tolist() for subset in subsets]


def test_record_round_trip_and_missing_values() -> None:
    record = DataRecord("abc", 3, 0.25)
    assert DataRecord.from_dict({"fingerprint": "abc", "split_seed": 3, "validation_fraction": 0.25, "more": 1}) == record
    with pytest.raises(CheckpointError, match="split_seed"):
        DataRecord.from_dict({"fingerprint": "abc"})
    with pytest.raises(CheckpointError, match=r"training\.json"):
        DataRecord.from_dict({"fingerprint": "abc", "split_seed": [], "validation_fraction": 1})


def test_holdout_of_the_data_set_overrides_the_user_s_fraction() -> None:
    splits = make_splits(DatasetSplits(MemorySource(30), holdout={"validation": 0.1, "test": 0.2}, origin="generated"), 4, 0.5)
    assert splits.test is not None
    assert [len(source.labels) for source in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    assert splits.origin == "generated; 10% for validation and 20% for test set aside from each class by seed 4"
    assert splits.fingerprint == fingerprint(MemorySource(30))


def test_validation_fraction_is_set_aside_if_there_is_no_validation_split() -> None:
    splits = make_splits(DatasetSplits(MemorySource(30), unsplit=True), 4, 0.2)
    assert [len(source.labels) for source in (splits.train, splits.validation)] == [24, 6]
    assert splits.origin == "no validation split: 20% of each class set aside by seed 4"
    assert splits.held_out == ("validation", splits.validation)


def test_splits_of_the_data_set_are_kept() -> None:
    train, validation, test = MemorySource(9), MemorySource(6), MemorySource(3)
    splits = make_splits(DatasetSplits(train, validation, test, origin="three folders"), 0, 0.2)
    assert (splits.train, splits.validation, splits.origin) == (train, validation, "three folders")
    assert splits.held_out == ("test", test)
    assert splits.classes == train.classes
    assert splits.fingerprint == fingerprint(train, validation, test)


def test_one_image_per_class_cannot_be_split() -> None:
    with pytest.raises(DataError, match="one image per class"):
        make_splits(DatasetSplits(MemorySource(3)), 0, 0.2)


def test_splits_without_labels_have_one_class_and_no_test_split() -> None:
    labeled = make_splits(DatasetSplits(MemorySource(30), test=MemorySource(3)), 0, 0.2)
    splits = without_labels(labeled)
    assert splits.classes == splits.validation.classes == ("image",)
    assert splits.test is None
    assert splits.fingerprint != labeled.fingerprint


def test_record_is_next_to_a_model_directory_or_file(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    content = {"fingerprint": "abc", "split_seed": 3, "validation_fraction": 0.25}
    (tmp_path / "training.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").touch()
    assert read_record(tmp_path) == read_record(tmp_path / "model.safetensors") == DataRecord("abc", 3, 0.25)
