"""Sources, their parts and splits, their labels and fingerprints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.opening import open_data
from deit.data.sources import ManyLabels, fingerprint, path_key, relabeled, subset, unlabeled
from deit.data.splits import DataRecord, DatasetSplits, make_splits, split
from deit.errors import CheckpointError, DataError
from tests.helpers import MemorySource
from tests.unit.data.layouts import image_files


class Labelled(MemorySource):
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
def test_a_split_keeps_every_image_once_and_every_class_in_each_part(
    labels: list[int], seed: int, fractions: list[float]
) -> None:
    source = Labelled(labels)
    parts = split(source, seed, fractions)
    assert len(parts) == len(fractions) + 1
    assert sorted(np.concatenate([part.indices for part in parts]).tolist()) == list(range(len(labels)))
    totals = np.bincount(source.labels, minlength=5)
    for part in parts:
        assert np.array_equal(part.labels, source.labels[part.indices])
        shares = np.bincount(part.labels, minlength=5)
        assert (shares[totals >= len(parts)] > 0).all()
    for part, fraction in zip(parts[:-1], fractions, strict=True):  # the last part gets the rest
        shares = np.bincount(part.labels, minlength=5)
        assert (shares <= np.maximum(fraction * totals + 0.5, 1)).all()
    assert [part.indices.tolist() for part in split(source, seed, fractions)] == [part.indices.tolist() for part in parts]


def test_a_part_of_a_source_keeps_its_names_and_image_files() -> None:
    source = MemorySource(6)
    part = subset(source, [4, 1])
    assert (part.labels.tolist(), part.name(0)) == ([1, 1], "image 4")
    assert part.load(1) == source.load(1)


def test_labels_follow_the_order_of_another_models_classes() -> None:
    source = MemorySource(4, classes=("dog", "cat"))
    assert relabeled(source, ("dog", "cat")) is source
    turned = relabeled(source, ("cat", "cow", "dog"))
    assert (turned.labels.tolist(), turned.classes) == ([2, 0, 2, 0], ("cat", "cow", "dog"))
    assert turned.load(1) == source.load(1)
    with pytest.raises(DataError, match="1 classes that the model does not know, such as 'cat'"):
        relabeled(source, ("dog", "cow"))


def test_a_fingerprint_changes_with_a_file_a_class_or_the_order(parted: Path) -> None:
    before = open_data(parted)
    assert open_data(parted, seed=9).fingerprint == before.fingerprint
    (parted / "val" / "cat" / "000.png").rename(parted / "val" / "cat" / "new.png")
    renamed = open_data(parted).fingerprint
    image_files(parted / "test" / "dog", 2)
    assert len({before.fingerprint, renamed, open_data(parted).fingerprint}) == 3
    source = MemorySource(4)
    assert fingerprint(source) != fingerprint(subset(source, [1, 0, 2, 3]))
    assert fingerprint(source) != fingerprint(MemorySource(4, classes=("a", "b", "d")))


def test_a_record_comes_back_or_says_what_it_lacks() -> None:
    record = DataRecord("abc", 3, 0.25)
    assert DataRecord.from_dict({"fingerprint": "abc", "split_seed": 3, "validation_fraction": 0.25, "more": 1}) == record
    with pytest.raises(CheckpointError, match="split_seed"):
        DataRecord.from_dict({"fingerprint": "abc"})
    with pytest.raises(CheckpointError, match=r"training\.json"):
        DataRecord.from_dict({"fingerprint": "abc", "split_seed": [], "validation_fraction": 1})


def test_a_fingerprint_is_the_hash_of_labels_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were saved earlier hold it: another way to hash the same data set would take it for another."""
    source = MemorySource(5)
    lines = "".join(f"{label}\timage {number}\n" for number, label in enumerate([0, 1, 2, 0, 1]))
    expected = hashlib.sha256((json.dumps(["a", "b", "c"]) + lines).encode()).hexdigest()
    assert fingerprint(source) == expected
    monkeypatch.setattr("deit.data.sources.HASHED_AT_ONCE", 2)
    assert fingerprint(source) == expected


def test_a_name_that_is_no_text_has_a_fingerprint_too() -> None:
    class Odd(MemorySource):
        def name(self, index: int) -> str:
            return f"\udce9{index}"

    assert fingerprint(Odd(3)) != fingerprint(MemorySource(3))


@given(st.lists(st.lists(st.sampled_from(["a", "a-b", "a.b", "b", "é"]), min_size=1, max_size=3), max_size=8))
def test_files_are_sorted_as_paths_are(parts: list[list[str]]) -> None:
    paths = ["/".join(part) for part in parts]
    assert sorted(paths, key=path_key) == [str(path) for path in sorted(map(Path, paths))]


def test_shares_of_a_data_set_go_before_the_users() -> None:
    splits = make_splits(DatasetSplits(MemorySource(30), shares={"validation": 0.1, "test": 0.2}, origin="made"), 4, 0.5)
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    assert splits.origin == "made; of each class 10% for validation and 20% for test set aside by seed 4"
    assert splits.fingerprint == fingerprint(MemorySource(30))


def test_images_without_labels_are_of_one_class() -> None:
    source = unlabeled(MemorySource(6))
    assert (source.classes, source.labels.tolist()) == (("image",), [0] * 6)
    assert source.load(4) == MemorySource(6).load(4)


def test_several_labels_follow_the_classes_of_a_model() -> None:
    source = ManyLabels(MemorySource(3), ((0,), (2, 1), (1,)), ("a", "b", "c"))
    assert source.labels.tolist() == [0, 2, 1]
    turned = relabeled(source, ("c", "d", "b", "a"))
    assert isinstance(turned, ManyLabels)
    assert turned.right == ((3,), (0, 2), (2,))
    assert turned.right_classes(np.array([1, 0])).tolist() == [[True, False, True, False], [False, False, False, True]]
    assert (turned.load(1), turned.name(1)) == (source.load(1), "image 1")
