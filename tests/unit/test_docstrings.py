"""Every public class and method tells its shapes and shows an example, and the examples are true."""

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
    "outputs",
    "pretrained",
    "modeling",
    "image_processor",
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
    """The public methods of a class that are of this package, inherited ones included."""
    for name, member in inspect.getmembers(
        kind, predicate=lambda member: inspect.isfunction(member) or inspect.ismethod(member)
    ):
        if not name.startswith("_") and getattr(member, "__module__", "").startswith("deit."):
            yield name, member


PUBLIC: dict[str, Any] = {member.__qualname__: member for kind in CLASSES for _, member in methods(kind)}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_class_shows_an_example(kind: type) -> None:
    assert kind.__doc__
    assert ">>>" in kind.__doc__


@pytest.mark.parametrize("method", PUBLIC.values(), ids=PUBLIC)
def test_every_public_method_shows_an_example(method: Any) -> None:
    assert method.__doc__
    assert ">>>" in method.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_property_is_explained(kind: type) -> None:
    for name, member in inspect.getmembers(kind, lambda member: isinstance(member, property)):
        if not name.startswith("_") and getattr(member.fget, "__module__", "").startswith("deit."):
            assert member.__doc__, f"{kind.__name__}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "deit.checkpoints.publishing.push_to_hub", lambda _folder, repo_id, **_: f"https://huggingface.co/{repo_id}"
    )
    logging.getLogger("deit").setLevel(logging.ERROR)  # the report of what was loaded is no part of an example's output
    config = DeiTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
    module = importlib.import_module(f"deit.{name}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    failures: list[str] = []
    ran = 0
    for place, test in enumerate(finder.find(module, name, module=module)):
        folder = tmp_path / str(place)
        folder.mkdir()
        test.globs |= {"deit": deit, "torch": torch, "config": config.model_copy(deep=True), "folder": folder, "Path": Path}
        test.globs["model"] = DeiTForImageClassificationWithTeacher(config.model_copy(deep=True)).eval()
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        ran += runner.run(test, out=failures.append).attempted
    logging.getLogger("deit").setLevel(logging.NOTSET)
    assert not failures, "".join(failures)
    assert ran
