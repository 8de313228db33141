"""Matching of class names, and ImageNet's classes by WordNet ID, description and order."""

from __future__ import annotations

from collections import Counter

import pytest

from deit.data.class_names import (
    are_placeholders,
    class_indices,
    imagenet_ids,
    imagenet_names,
    imagenet_subset,
    is_imagenet,
    placeholder_names,
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


@pytest.mark.parametrize(
    ("names", "placeholders"),
    [
        (["LABEL_0", "LABEL_1"], True),
        (["0", "1", "2"], True),
        (["1", "2", "3"], True),
        (["class 0", "class 1"], True),
        (["Label-1"], True),
        (["0", "2"], False),
        (["1", "0"], False),
        (["LABEL_0", "cat"], False),
        (["00", "x1"], False),
        ([], False),
    ],
)
def test_placeholders_number_the_classes(names: list[str], placeholders: bool) -> None:
    assert are_placeholders(names) == placeholders


def test_classes_match_by_order_on_request() -> None:
    unnamed = placeholder_names(3)
    with pytest.raises(
        DataError, match=r"'LABEL_0' to 'LABEL_2': if they are in the order of the data's, 'b' to 'c', request it"
    ):
        class_indices(["b", "a", "c"], unnamed)
    assert class_indices(["b", "a", "c"], unnamed, "order").tolist() == [0, 1, 2]
    assert class_indices(["2", "0", "1"], placeholder_names(3), "order").tolist() == [0, 1, 2]
    assert class_indices(["cat", "dog"], ["Katze", "dog"], "order").tolist() == [0, 1]
    with pytest.raises(DataError, match="Class 'dog' is number 0 in the data and 1 in the model: match the classes by name"):
        class_indices(["dog", "cat"], ["Katze", "dog"], "order")
    with pytest.raises(DataError, match=r"2 classes and the model 3: .* only one to one"):
        class_indices(["b", "a"], unnamed, "order")
    with pytest.raises(DataError, match="2 classes that the model does not have"):
        class_indices(["b", "a"], unnamed)


def test_names_match_before_the_order() -> None:
    assert class_indices(["goldfish, Carassius auratus!"], published()).tolist() == [1]
    assert class_indices(["b", "a"], ["a", "c", "b"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="2 classes that the model does not have, such as 'n01440764'"):
        class_indices(["n01440764", "n02012849"], ["tench", "crane"])
    with pytest.raises(DataError, match="several classes named 'crane'"):
        class_indices(["crane", "tench, Tinca tinca!"], published())
