"""Names of splits and their synonyms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.data.split_names import SPLITS, split_of, splits_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAINING train_set trainset training-data Training_Images trn train2017 trainval 01_train"),
        ("validation", "val Val valid VALIDATION validation_set dev DevSet eval evaluation val2017 images_val"),
        ("test", "test TEST Testing test_set testset test1 tst tests Test-Images holdout hold-out"),
    ],
)
def test_synonyms(split: str, names: str) -> None:
    for name in names.split():
        assert split_of(name) == split, name


@pytest.mark.parametrize(
    "name",
    [
        *("", "1", "set", "data", "dataset", "images", "test tube", "training shoes", "tester", "evaluate me", "devil", "car"),
        *("valley", "contest", "latest", "strain", "trainer", "Val d'Isère", "attest", "protest", "試験", "tr_en", "subset"),
    ],
)
def test_other_names(name: str) -> None:
    assert split_of(name) is None


def test_names_with_a_common_word() -> None:
    assert splits_of(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert splits_of(["asl_alphabet_train", "asl_alphabet_test"]) == {
        "asl_alphabet_train": "train",
        "asl_alphabet_test": "test",
    }
    assert splits_of(["test tube", "beaker"]) == {}
    assert splits_of(["train car", "test tube"]) == {}
    assert splits_of(["Training", "car"]) == {"Training": "train"}


@given(st.text(max_size=30))
def test_any_text_is_a_split_or_none(name: str) -> None:
    assert split_of(name) in (None, *SPLITS)
    assert split_of(name.upper().lower()) == split_of(name.lower())
    assert set(splits_of([name, f"{name}_train", f"{name}_test"]).values()) <= set(SPLITS)
