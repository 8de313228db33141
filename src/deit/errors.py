"""Every error that a user can meet, in one tree. Each says what is wrong and what to do about it.

DeiTError
├── UserError                 wrong use: the command line exits with 2
│   ├── ConfigError           a model's shape that cannot be
│   ├── RecipeError           a training setting that cannot be
│   ├── DataError             a data set that cannot be used as it is
│   │   └── ImageError        one file that is no readable image
│   ├── CheckpointError       saved weights that are missing, damaged or of another shape
│   ├── TeacherError          a teacher that does not fit the data
│   └── MissingExtraError     an optional library that is not installed
└── WorkError                 the work itself failed: the command line exits with 1
    ├── NonFiniteLossError    training diverged
    └── InterruptedWorkError  it was asked to stop, and can be gone on with
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DeiTError(Exception):
    """Base of the tree.

    Args:
        problem: what is wrong, one sentence without the closing full stop.
        remedy: what the user can do, likewise; may be empty where the problem already says it.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}." if self.remedy else f"{self.problem}."


class UserError(DeiTError, ValueError):
    """Wrong use, found before any slow work."""

    exit_code = 2


class ConfigError(UserError):
    """A model configuration that cannot be built."""


class RecipeError(UserError):
    """A recipe with an unknown name or an impossible value."""


class DataError(UserError):
    """A data set that cannot be used as it is."""


class ImageError(DataError):
    """A file that cannot be read as an image."""


class CheckpointError(UserError):
    """A saved model that is missing, damaged, or does not fit."""


class TeacherError(UserError):
    """A teacher that cannot teach this data set."""


class MissingExtraError(UserError):
    """An optional part of the package was asked for and is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional library", f"pip install 'deit[{extra}]'")


class WorkError(DeiTError, RuntimeError):
    """The work was started rightly and failed on the way."""


class NonFiniteLossError(WorkError):
    """The training loss became infinite or not a number."""


class InterruptedWorkError(WorkError):
    """Work was asked to stop, and what was done is kept."""

    exit_code = 130  # what a shell expects of a program that Ctrl-C ended


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt name."""
    return f"did you mean {difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)[0]}"


def validation_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as ``place: what``."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    text = cause.problem if isinstance(cause, DeiTError) else str(cause or first["msg"])
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {text}" if place else text
