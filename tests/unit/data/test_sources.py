"""Image sources: subsets, labels and fingerprints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from deit.data.opening import open_data
from deit.data.sources import FileSource, MultiLabelSource, fingerprint, open_encoded, relabeled, subset, unlabeled
from deit.errors import DataError
from tests.helpers import MemorySource, pattern
from tests.unit.data.layouts import image_files


def test_subset_keeps_names_and_images() -> None:
    source = MemorySource(6)
    images = subset(source, [4, 1])
    assert (images.labels.tolist(), images.name(0)) == ([1, 1], "image 4")
    assert images.load(1) == source.load(1)


def test_relabeling_follows_the_model_s_classes() -> None:
    source = MemorySource(4, classes=("dog", "cat"))
    assert relabeled(source, ("dog", "cat")) is source
    relabeled_source = relabeled(source, ("cat", "cow", "dog"))
    assert (relabeled_source.labels.tolist(), relabeled_source.classes) == ([2, 0, 2, 0], ("cat", "cow", "dog"))
    assert relabeled_source.load(1) == source.load(1)
    with pytest.raises(DataError, match="1 classes that the model does not have, such as 'cat'"):
        relabeled(source, ("dog", "cow"))


def test_fingerprint_changes_with_files_classes_and_order(split_folder: Path) -> None:
    before = open_data(split_folder)
    assert open_data(split_folder, seed=9).fingerprint == before.fingerprint
    (split_folder / "val" / "cat" / "000.png").rename(split_folder / "val" / "cat" / "new.png")
    renamed = open_data(split_folder).fingerprint
    image_files(split_folder / "test" / "dog", 2)
    assert len({before.fingerprint, renamed, open_data(split_folder).fingerprint}) == 3
    source = MemorySource(4)
    assert fingerprint(source) != fingerprint(subset(source, [1, 0, 2, 3]))
    assert fingerprint(source) != fingerprint(MemorySource(4, classes=("a", "b", "d")))


def test_fingerprint_is_the_hash_of_labels_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models hold the fingerprint: it must not depend on how it is computed."""
    source = MemorySource(5)
    lines = "".join(f"{label}\timage {number}\n" for number, label in enumerate([0, 1, 2, 0, 1]))
    expected = hashlib.sha256((json.dumps(["a", "b", "c"]) + lines).encode()).hexdigest()
    assert fingerprint(source) == expected
    monkeypatch.setattr("deit.data.sources.NAMES_PER_HASH", 2)
    assert fingerprint(source) == expected


def test_fingerprint_of_names_that_are_not_valid_text() -> None:
    class SurrogateNames(MemorySource):
        def name(self, index: int) -> str:
            return f"\udce9{index}"

    assert fingerprint(SurrogateNames(3)) != fingerprint(MemorySource(3))


def test_unlabeled_images_have_one_class() -> None:
    source = unlabeled(MemorySource(6))
    assert (source.classes, source.labels.tolist()) == (("image",), [0] * 6)
    assert source.load(4) == MemorySource(6).load(4)


def test_relabeling_of_multiple_labels() -> None:
    source = MultiLabelSource(MemorySource(3), ((0,), (2, 1), (1,)), ("a", "b", "c"))
    assert source.labels.tolist() == [0, 2, 1]
    relabeled_source = relabeled(source, ("c", "d", "b", "a"))
    assert isinstance(relabeled_source, MultiLabelSource)
    assert relabeled_source.correct == ((3,), (0, 2), (2,))
    correct = relabeled_source.correct_classes(np.array([1, 0]))
    assert correct.tolist() == [[True, False, True, False], [False, False, False, True]]
    assert (relabeled_source.load(1), relabeled_source.name(1)) == (source.load(1), "image 1")


def test_size_of_a_file_is_known_before_decoding(tmp_path: Path) -> None:
    for seed in range(2):
        pattern(64 + 32 * seed, 48, seed).save(tmp_path / f"{seed}.jpg")
    files = FileSource(tmp_path, ("0.jpg", "1.jpg"), ("a", "b"), np.arange(2))
    labeled = MultiLabelSource(files, ((0,), (1, 0)), ("a", "b"))
    for source, index in ((files, 1), (subset(files, [1]), 0), (labeled, 1), (subset(labeled, [0, 1]), 1)):
        with open_encoded(source, index) as encoded:
            assert (encoded.height, encoded.width) == (48, 96)
            assert encoded.decode(reduction=2).size == (48, 24)


def test_images_that_are_not_files_are_decoded_at_full_size() -> None:
    source = MemorySource(2)
    with open_encoded(subset(source, [1]), 0) as encoded:
        image = encoded.decode(reduction=2)
        assert (encoded.width, encoded.height) == image.size
        assert image == source.load(1)
