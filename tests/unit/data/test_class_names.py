"""The thousand classes by id, by name, by nothing but their order."""

from __future__ import annotations

from collections import Counter

import pytest

from deit.data.class_names import (
    imagenet_ids,
    imagenet_names,
    imagenet_subset,
    is_imagenet,
    places_among,
    reassessed_labels,
)
from deit.errors import DataError


def published() -> list[str]:
    """The classes as published models call them: `crane` twice, and some spelt in another way."""
    names = [name.partition(" (n")[0] for name in imagenet_names()]
    for place in range(90):
        names[place] = f"{names[place]}!"
    return names


def test_the_thousand_are_in_the_order_of_the_models() -> None:
    assert len(imagenet_ids()) == len(set(imagenet_ids())) == 1000
    assert list(imagenet_ids()) == sorted(imagenet_ids())
    assert imagenet_ids()[0] == "n01440764"
    assert imagenet_names()[0] == "tench, Tinca tinca"
    assert [name for name in imagenet_names() if "crane" in name.split(",")[0].split()] == [
        *("crane (n02012849)", "crane (n03126707)")
    ]
    assert max(Counter(imagenet_names()).values()) == 1


@pytest.mark.parametrize("letter", ["a", "r"])
def test_a_sister_has_two_hundred_of_them(letter: str) -> None:
    places = imagenet_subset(letter)
    assert len(set(places)) == 200
    assert list(places) == sorted(places)
    assert 0 <= places[0] < places[-1] < 1000


def test_reassessed_labels_leave_some_images_out() -> None:
    labels = reassessed_labels()
    assert len(labels) == 50_000
    assert sum(map(bool, labels)) == 46_837  # as Beyer et al. count them
    assert max(len(row) for row in labels) > 1


def test_a_model_of_the_thousand_is_known_by_any_names() -> None:
    assert is_imagenet(imagenet_ids())
    assert is_imagenet(imagenet_names())
    assert is_imagenet(published())
    assert is_imagenet([str(place) for place in range(1000)])
    assert is_imagenet([f"LABEL_{place}" for place in range(1000)])
    assert not is_imagenet(imagenet_names()[::-1])
    assert not is_imagenet([f"bird {place}" for place in range(1000)])
    assert not is_imagenet(imagenet_ids()[:999])


def test_ids_find_their_place_in_a_published_model() -> None:
    wnids = ["n03126707", "n01440764", "n02012849"]
    for known in (published(), imagenet_ids(), imagenet_names(), [f"LABEL_{place}" for place in range(1000)]):
        assert places_among(wnids, known).tolist() == [517, 0, 134]
        assert places_among([imagenet_names()[place] for place in (517, 0, 134)], known).tolist() == [517, 0, 134]


def test_a_name_goes_before_an_order() -> None:
    assert places_among(["goldfish, Carassius auratus!"], published()).tolist() == [1]
    assert places_among(["b", "a"], ["a", "c", "b"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="2 classes that the model does not know, such as 'n01440764'"):
        places_among(["n01440764", "n02012849"], ["tench", "crane"])
    with pytest.raises(DataError, match="several classes called 'crane'"):
        places_among(["crane", "tench, Tinca tinca!"], published())
