"""Adds options that several commands share to the signature of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_fields(kind: type[Any], keyword: str, *excluded: str) -> Callable[[Command], Command]:
    """Adds the fields of a dataclass to a command's signature, as options after its own parameters.

    Args:
        kind: the dataclass; the types of its fields are annotated with typer's options.
        keyword: keyword argument of the command that receives an instance.
        excluded: names of fields that the command does not offer; they keep their defaults.
    """

    def decorate(command: Command) -> Command:
        own_types = get_type_hints(command, include_extras=True)
        shared_types = get_type_hints(kind, include_extras=True)
        own = [
            parameter.replace(annotation=own_types[name], kind=parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != keyword
        ]
        shared = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=shared_types[field.name]
            )
            for field in fields(kind)
            if field.name not in excluded
        ]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            values = {parameter.name: arguments.pop(parameter.name) for parameter in shared if parameter.name in arguments}
            command(**arguments, **{keyword: kind(**values)})

        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        return run

    return decorate
