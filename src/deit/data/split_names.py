"""Names of splits, as people write them: one rule for folders, manifests and Hugging Face data sets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_SYNONYMS: dict[Split, str] = {
    "train": "train training trainings trains trn tr trainval entrenamiento entrainement entraînement treinamento 训练",
    "validation": (
        "val vals valid validation validate validating dev devel development eval evaluation validierung validierungs "
        "validacion validación validação 验证"
    ),
    "test": "test tests testing tst te holdout heldout prueba pruebas teste testes 测试",
}
_SPLIT_OF_WORD: dict[str, Split] = {word: split for split, words in _SYNONYMS.items() for word in words.split()}
MIN_AFFIXED = 3  # letters of a synonym that may stand beside another word, as in "seg_train"
# Words that say nothing about the split: "train_images", "TestSet", "data-val".
_FILLERS = (
    *("dataset", "datasets", "images", "image", "imgs", "img", "photos", "pictures", "pics", "files", "folder", "samples"),
    *("split", "data", "set", "daten", "bilder", "集"),
)


def split_of(name: str) -> Split | None:
    """Returns the split that a name stands for, without regard to case, digits, punctuation and words such as "set".

    Example:
        >>> [split_of(name) for name in ("Training", "val", "TEST_set", "val2017", "test tube", "car")]
        ['train', 'validation', 'test', 'validation', None, None]
    """
    letters = _letters(name)
    while letters and letters not in _SPLIT_OF_WORD:
        shorter = _without_filler(letters)
        if shorter == letters:
            return None
        letters = shorter
    return _SPLIT_OF_WORD.get(letters)


def splits_of(names: Iterable[str]) -> dict[str, Split]:
    """Returns the names among ``names`` that stand for splits, and the split of each.

    Names that share another word, such as "seg_train" and "seg_test", are recognized if there are two of them.
    """
    found: dict[str, Split] = {}
    affixed: defaultdict[str, dict[str, Split]] = defaultdict(dict)
    for name in names:
        if split := split_of(name):
            found[name] = split
        elif parts := _affixed(name):
            affixed[parts[0]][name] = parts[1]
    for group in affixed.values():
        if len(set(group.values())) > 1:
            found |= group
    return found


def _affixed(name: str) -> tuple[str, Split] | None:
    """``seg_train`` -> ("seg", "train"); None if the words do not contain exactly one split."""
    words = [letters for word in re.split(r"[\W_\d]+", name) if (letters := _letters(word))]
    splits = [word for word in words if len(word) >= MIN_AFFIXED and word in _SPLIT_OF_WORD]
    if len(splits) != 1:
        return None
    rest = " ".join(word for word in words if word != splits[0])
    return rest, _SPLIT_OF_WORD[splits[0]]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalpha())


def _without_filler(letters: str) -> str:
    for filler in _FILLERS:
        if letters.endswith(filler):
            return letters.removesuffix(filler)
        if letters.startswith(filler):
            return letters.removeprefix(filler)
    return letters
