"""Docstrings of the public API: each class and method has an example, and the examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deit
from deit.config import DeiTConfig
from deit.models import outputs
from deit.models.modeling import DeiTForImageClassificationWithTeacher

MODULES = [
    "config",
    "models.outputs",
    "models.pretrained",
    "models.compatibility",
    "models.modeling",
    "images.processor",
    "images.pretrained_processor",
]
CLASSES = [
    deit.DeiTConfig,
    deit.ViTConfig,
    deit.DeiTModel,
    deit.ViTModel,
    deit.DeiTForImageClassification,
    deit.DeiTForImageClassificationWithTeacher,
    deit.DeiTForMaskedImageModeling,
    deit.ViTForImageClassification,
    deit.DeiTImageProcessor,
    outputs.ModelOutput,
    outputs.BaseModelOutput,
    outputs.ImageClassifierOutput,
    outputs.ImageClassifierWithTeacherOutput,
    outputs.MaskedImageModelingOutput,
]


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yields the public methods of a class, including inherited ones, that this package defines."""
    for name, member in inspect.getmembers(
        kind, predicate=lambda member: inspect.isfunction(member) or inspect.ismethod(member)
    ):
        if not name.startswith("_") and getattr(member, "__module__", "").startswith("deit."):
            yield name, member


PUBLIC: dict[str, Any] = {member.__qualname__: member for kind in CLASSES for _, member in methods(kind)}


@pytest.mark.parametrize("kind", CLASSES)
def test_public_class_has_an_example(kind: type) -> None:
    assert kind.__doc__
    assert ">>>" in kind.__doc__


@pytest.mark.parametrize("method", PUBLIC.values(), ids=PUBLIC)
def test_public_method_has_an_example(method: Any) -> None:
    assert method.__doc__
    assert ">>>" in method.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_public_property_has_a_docstring(kind: type) -> None:
    for name, member in inspect.getmembers(kind, lambda member: isinstance(member, property)):
        if not name.startswith("_") and getattr(member.fget, "__module__", "").startswith("deit."):
            assert member.__doc__, f"{kind.__name__}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "deit.checkpoints.publishing.push_to_hub", lambda _folder, repo_id, **_: f"https://huggingface.co/{repo_id}"
    )
    logging.getLogger("deit").setLevel(logging.ERROR)  # keeps the load report out of the output of examples
    config = DeiTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
    module = importlib.import_module(f"deit.{name}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    failures: list[str] = []
    attempted = 0
    for index, test in enumerate(finder.find(module, name, module=module)):
        folder = tmp_path / str(index)
        folder.mkdir()
        test.globs |= {"deit": deit, "torch": torch, "config": config.model_copy(deep=True), "folder": folder, "Path": Path}
        test.globs["model"] = DeiTForImageClassificationWithTeacher(config.model_copy(deep=True)).eval()
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        attempted += runner.run(test, out=failures.append).attempted
    logging.getLogger("deit").setLevel(logging.NOTSET)
    assert not failures, "".join(failures)
    assert attempted
