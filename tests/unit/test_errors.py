"""The exception tree and its messages."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from deit import errors
from deit.errors import (
    CheckpointError,
    DeiTError,
    ImageError,
    InterruptedWorkError,
    MissingExtraError,
    UserError,
    WorkError,
    did_you_mean,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DeiTError)]


def test_docstring_draws_the_actual_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([│├└─ ]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_code_is_2_for_user_errors_and_1_for_failed_work(kind: type[DeiTError]) -> None:
    failed = 130 if kind is InterruptedWorkError else 1
    assert kind.exit_code == (2 if issubclass(kind, UserError) else failed)


def test_errors_are_also_builtin_exceptions() -> None:
    assert issubclass(ImageError, ValueError)
    assert issubclass(WorkError, RuntimeError)


def test_message_is_problem_and_remedy() -> None:
    assert str(UserError("There is no x", "pass y")) == "There is no x: pass y."
    assert str(UserError("There is no x")) == "There is no x."


def test_missing_extra_names_the_install_command() -> None:
    assert "pip install 'deit[report]'" in str(MissingExtraError("The report", "report"))


@pytest.mark.parametrize("error", [CheckpointError("a", "b"), DeiTError("a"), MissingExtraError("The report", "report")])
def test_error_survives_pickling_and_copying(error: DeiTError) -> None:
    for duplicate in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(duplicate) is type(error)
        assert str(duplicate) == str(error)


def test_did_you_mean_suggests_the_closest_name() -> None:
    assert did_you_mean("resnet5", ["vit_b", "resnet50", "resnet18"]) == "did you mean resnet50"
    assert did_you_mean("xyz", ["resnet50"]) == "did you mean resnet50"
    assert did_you_mean("xyz", ["resnet50"], cutoff=0.6) == ""
    assert did_you_mean("xyz", []) == ""
