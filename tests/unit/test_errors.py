"""The error tree."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from deit import errors
from deit.errors import CheckpointError, DeiTError, ImageError, InterruptedWorkError, MissingExtraError, UserError, WorkError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DeiTError)]


def test_the_drawn_tree_is_the_real_one() -> None:
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
def test_a_users_mistake_exits_with_2_and_failed_work_with_1(kind: type[DeiTError]) -> None:
    stopped = 130 if kind is InterruptedWorkError else 1
    assert kind.exit_code == (2 if issubclass(kind, UserError) else stopped)


def test_a_caller_who_knows_no_deit_error_can_catch_the_builtin_one() -> None:
    assert issubclass(ImageError, ValueError)
    assert issubclass(WorkError, RuntimeError)


def test_the_message_is_the_problem_and_the_remedy() -> None:
    assert str(UserError("There is no x", "pass y")) == "There is no x: pass y."
    assert str(UserError("There is no x")) == "There is no x."


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    assert "pip install 'deit[report]'" in str(MissingExtraError("The report", "report"))


@pytest.mark.parametrize("error", [CheckpointError("a", "b"), DeiTError("a"), MissingExtraError("The report", "report")])
def test_an_error_survives_the_way_between_processes(error: DeiTError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(twin) is type(error)
        assert str(twin) == str(error)
