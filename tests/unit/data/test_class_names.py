"""Matching of class names, and ImageNet's classes by WordNet ID, description and order."""

from __future__ import annotations

from collections import Counter

import pytest

from deit.data.class_names import (
    class_indices,
    imagenet_ids,
    imagenet_names,
    imagenet_subset,
    is_imagenet,
    reassessed_labels,
)
from deit.errors import DataError


def published() -> list[str]:
    """Returns the class names of a published model: `crane` twice, and some names spelled differently."""
    names = [name.partition(" (n")[0] for name in imagenet_names()]
    for index in range(90):
        names[index] = f"{names[index]}!"
    return names


def test_imagenet_classes_are_in_the_order_of_the_models() -> None:
    assert len(imagenet_ids()) == len(set(imagenet_ids())) == 1000
    assert list(imagenet_ids()) == sorted(imagenet_ids())
    assert imagenet_ids()[0] == "n01440764"
    assert imagenet_names()[0] == "tench, Tinca tinca"
    assert [name for name in imagenet_names() if "crane" in name.split(",")[0].split()] == [
        *("crane (n02012849)", "crane (n03126707)")
    ]
    assert max(Counter(imagenet_names()).values()) == 1


@pytest.mark.parametrize("letter", ["a", "r"])
def test_imagenet_a_and_r_have_200_classes(letter: str) -> None:
    indices = imagenet_subset(letter)
    assert len(set(indices)) == 200
    assert list(indices) == sorted(indices)
    assert 0 <= indices[0] < indices[-1] < 1000


def test_some_images_have_no_reassessed_label() -> None:
    labels = reassessed_labels()
    assert len(labels) == 50_000
    assert sum(map(bool, labels)) == 46_837  # as Beyer et al. count them
    assert max(len(row) for row in labels) > 1


def test_imagenet_model_is_recognized_by_any_of_its_names() -> None:
    assert is_imagenet(imagenet_ids())
    assert is_imagenet(imagenet_names())
    assert is_imagenet(published())
    assert is_imagenet([str(index) for index in range(1000)])
    assert is_imagenet([f"LABEL_{index}" for index in range(1000)])
    assert not is_imagenet(imagenet_names()[::-1])
    assert not is_imagenet([f"bird {index}" for index in range(1000)])
    assert not is_imagenet(imagenet_ids()[:999])


def test_wordnet_ids_and_descriptions_match_a_published_model() -> None:
    wnids = ["n03126707", "n01440764", "n02012849"]
    for model_classes in (published(), imagenet_ids(), imagenet_names(), [f"LABEL_{index}" for index in range(1000)]):
        assert class_indices(wnids, model_classes).tolist() == [517, 0, 134]
        assert class_indices([imagenet_names()[index] for index in (517, 0, 134)], model_classes).tolist() == [517, 0, 134]


def test_names_match_before_the_order() -> None:
    assert class_indices(["goldfish, Carassius auratus!"], published()).tolist() == [1]
    assert class_indices(["b", "a"], ["a", "c", "b"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="2 classes that the model does not have, such as 'n01440764'"):
        class_indices(["n01440764", "n02012849"], ["tench", "crane"])
    with pytest.raises(DataError, match="several classes named 'crane'"):
        class_indices(["crane", "tench, Tinca tinca!"], published())
