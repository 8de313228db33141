"""The table of named data sets, and the names that refer to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.data.datasets.named import NAMED, ROOT_VARIABLE, Reference, digits_splits, named_reference, named_splits
from deit.errors import DataError


def test_every_data_set_can_be_trained_or_evaluated_on() -> None:
    for name, data in NAMED.items():
        assert data.read or data.evaluate, name
        assert data.classes > 1 and data.images and all(count > 0 for count in data.images.values()), name
        assert ("train" in data.images) == (data.read is not None), name


@pytest.mark.parametrize("text", ["", "cifar", "cifar10:", "CIFAR10", "photos:cifar10", "./cifar10"])
def test_other_text_is_not_a_reference(text: str) -> None:
    assert named_reference(text) is None


def test_reference_with_a_folder() -> None:
    assert named_reference("cifar10:a folder") == Reference("cifar10", Path("a folder"))
    assert named_reference("cifar10:~/x") == Reference("cifar10", Path.home() / "x")
    assert named_reference("cifar10:/a:b") == Reference("cifar10", Path("/a:b"))


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert named_reference("cifar10") == Reference("cifar10", Path.home() / ".cache/deit/cifar10")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert named_reference("cifar10") == Reference("cifar10", tmp_path / "cifar10")
    assert named_reference("imagenet-real") == Reference("imagenet-real", tmp_path / "imagenet")


@pytest.mark.parametrize("name", [name for name, data in NAMED.items() if data.read is None])
def test_evaluation_only_data_set_has_no_splits(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name} is for evaluation only: deit evaluate MODEL {name}"):
        named_splits(Reference(name, tmp_path))


def test_digits() -> None:
    splits = digits_splits()
    assert (len(splits.train.labels), splits.train.classes) == (1797, tuple("0123456789"))
    assert splits.holdout == {"validation": 0.2, "test": 0.2}
    assert splits.origin == "scikit-learn's digits"
