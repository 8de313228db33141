"""Exceptions raised for users, in one tree. Each message says what is wrong and what to do about it.

DeiTError
├── UserError                 invalid input or usage; the command line exits with 2
│   ├── ConfigError           invalid model configuration
│   ├── RecipeError           invalid training recipe
│   ├── DataError             unusable data set
│   │   └── ImageError        file that cannot be decoded as an image
│   │       └── ImageTooLargeError    image above the limits of pixels, memory or time
│   ├── CheckpointError       missing, corrupt or incompatible checkpoint; also an OSError
│   ├── TeacherError          teacher that does not match the data set
│   └── MissingExtraError     optional dependency that is not installed
└── WorkError                 failure during the work; the command line exits with 1
    ├── NonFiniteLossError    diverged training
    ├── NonFiniteOutputError  diverged model
    ├── LoadingError          worker process of the data loader that failed
    ├── PeerError             another process of a distributed run that failed
    └── InterruptedWorkError  work stopped by a signal, which can be resumed; exits with 128 + its number
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DeiTError(Exception):
    """Base class of all exceptions in this package.

    Args:
        problem: what is wrong, as one sentence without the final period.
        remedy: what the user can do about it, as one clause without the final period; empty if the problem says it.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}." if self.remedy else f"{self.problem}."


class UserError(DeiTError, ValueError):
    """Invalid input or usage, detected before any slow work."""

    exit_code = 2


class ConfigError(UserError):
    """Model configuration that cannot be built."""


class RecipeError(UserError):
    """Recipe with an unknown key or an invalid value."""


class DataError(UserError):
    """Data set that cannot be used as it is."""


class ImageError(DataError):
    """File that cannot be decoded as an image."""


class ImageTooLargeError(ImageError):
    """Image above the limits of pixels, memory or time. The file need not be damaged."""


class CheckpointError(UserError, OSError):
    """Checkpoint that is missing, corrupt, or does not fit the model.

    It is an ``OSError``, too, because transformers raises that for a model that cannot be loaded, and programs catch it.
    """


class TeacherError(UserError):
    """Teacher that does not match the data set."""


class MissingExtraError(UserError):
    """Feature whose optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional library", f"pip install 'deit[{extra}]'")


class WorkError(DeiTError, RuntimeError):
    """Failure after valid input, such as a network error."""


class NonFiniteLossError(WorkError):
    """Training loss that is infinite or NaN."""


class NonFiniteOutputError(WorkError):
    """Model whose logits are NaN or infinite."""


class LoadingError(WorkError):
    """Worker process of the data loader that failed, such as for lack of memory."""


class PeerError(WorkError):
    """Another process of a distributed run has failed, which reports why.

    Args:
        problem: what is wrong.
        remedy: what the user can do about it.
        exit_code: of this process.
    """

    def __init__(self, problem: str, remedy: str = "", exit_code: int = 1) -> None:
        super().__init__(problem, remedy)
        self.exit_code = exit_code


class InterruptedWorkError(WorkError):
    """Work stopped by a signal. What was done is saved and can be resumed.

    Args:
        problem: where it stopped.
        remedy: how to resume.
        exit_code: by convention, 128 + the number of the signal: 130 for SIGINT.
    """

    exit_code = 130

    def __init__(self, problem: str, remedy: str = "", exit_code: int = 130) -> None:
        super().__init__(problem, remedy)
        self.exit_code = exit_code


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """Returns "did you mean X" with the known name that is most similar to ``name``.

    Args:
        name: misspelled name.
        known: valid names.
        cutoff: smallest similarity, in 0..1, of a name worth suggesting.

    Returns:
        The suggestion; empty if no known name is similar enough.
    """
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"did you mean {matches[0]}" if matches else ""


def validation_problem(error: ValidationError) -> str:
    """Returns the first problem that pydantic found, as ``field: message``."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    message = cause.problem if isinstance(cause, DeiTError) else str(cause or first["msg"])
    field = ".".join(str(key) for key in first["loc"])
    return f"{field}: {message}" if field else message
