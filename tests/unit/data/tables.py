"""Small Hugging Face data sets."""

from __future__ import annotations

import io
from typing import Any

import datasets

from tests.helpers import pattern

CLASSES = ["bean", "кошка", "rust"]


def png(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    pattern(12 + seed, 9, seed).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(count: int, label: Any = None, **columns: Any) -> Any:
    """Returns ``count`` images, with the labels 0, 1, 2, 0, ... in a column of the type ``label`` if it is given."""
    content: dict[str, Any] = {"image": [png(number) for number in range(count)], "id": list(range(count)), **columns}
    features = {"image": datasets.Image(), "id": datasets.Value("int64")}
    features |= {name: datasets.Value("string") for name in columns}
    if label is not None:
        content["label"] = [number % 3 for number in range(count)]
        features["label"] = label
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


NAMED = datasets.ClassLabel(names=CLASSES)
