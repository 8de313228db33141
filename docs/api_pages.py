"""Writes the pages below ``docs/api/generated`` from the import tree of deit and from its command line.

There is one page for the public names (``deit.__all__``), one per package with a section for each of its modules, and one for
the commands. A module that is added, moved or renamed needs no change here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import namedtuple
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pydantic
import typer
from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.docstrings import prepare_docstring
from torch import nn
from typer.cli import get_docs_for_click

import deit

GENERATED = Path(__file__).parent / "api" / "generated"
TupleField = type(vars(namedtuple("OneField", "field"))["field"])


def write_pages(_app: Sphinx) -> None:
    """Writes all generated pages, and removes those of packages that are gone."""
    pages = {"public.rst": public_page(), "commands.md": command_page()}
    pages |= {f"deit.{package}.rst": package_page(package) for package in packages() if package != "cli"}
    GENERATED.mkdir(exist_ok=True)
    for path in GENERATED.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (GENERATED / name).write_text(text, encoding="utf-8")


def packages() -> list[str]:
    """Returns the packages and top-level modules of deit, by their names below ``deit``."""
    return sorted(module.name for module in pkgutil.iter_modules(deit.__path__))


def modules(package: str) -> Iterator[str]:
    """Yields the full names of a package and of all modules below it; subpackages without a docstring are left out."""
    yield package
    for module in pkgutil.walk_packages(getattr(importlib.import_module(package), "__path__", []), f"{package}."):
        if not module.ispkg or importlib.import_module(module.name).__doc__:
            yield module.name


def public_page() -> str:
    """Returns the page of the public names."""
    lines = [*heading("Public names", "="), "Import these from ``deit``; each is loaded on first access.", ""]
    lines += [".. currentmodule:: deit", "", ".. autosummary::", "", *(f"   {name}" for name in deit.__all__), ""]
    for name in deit.__all__:
        member = getattr(deit, name)
        if not inspect.isclass(member):
            lines += [f".. autofunction:: {name}", ""]
            continue
        lines += [
            f".. autoclass:: {name}",
            "   :members:",
            *(["   :show-inheritance:"] if member.__bases__ != (object,) else []),
            "",
        ]
        if issubclass(member, nn.Module) and "forward" not in vars(member):
            lines += ["   .. automethod:: forward", ""]  # inherited from a base class
    return "\n".join(lines)


def package_page(package: str) -> str:
    """Returns the page of a package: a section per module. Public names are on their own page, and linked."""
    lines = heading(f"deit.{package}", "=")
    for module in modules(f"deit.{package}"):
        if module != f"deit.{package}":
            lines += heading(module, "-")
        public = [name for name, home in deit._MODULES.items() if home == module]
        lines += [f".. automodule:: {module}", "   :members:"]
        if public:
            lines += [f"   :exclude-members: {', '.join(public)}", ""]
            lines += ["Public names: " + ", ".join(f":py:obj:`deit.{name}`" for name in public)]
        lines += [""]
    return "\n".join(lines)


def command_page() -> str:
    """Returns the reference of all commands and their options."""
    from deit.cli.main import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="deit", title="Command line")
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text).rstrip() + "\n"  # a truncated list of the sections below


def heading(text: str, underline: str) -> list[str]:
    """Returns the lines of a reST heading."""
    return [text, underline * len(text), ""]


def skip_member(_app: Sphinx, _kind: str, name: str, member: Any, skip: bool, _options: Any) -> bool | None:
    """Leaves out what pydantic adds to a model, and the fields of a named tuple, which its docstring describes."""
    generated = (name.startswith("model_") and hasattr(pydantic.BaseModel, name)) or isinstance(member, TupleField)
    return True if generated else skip or None


def keep_line_breaks(_app: Sphinx, _kind: str, _name: str, _member: Any, _options: Any, lines: list[str]) -> None:
    """Keeps the lines of drawn trees, and of the blocks in the recipes' docstrings that begin with ``Command:``."""
    paragraphs = [list(paragraph) for blank, paragraph in groupby(lines, lambda line: not line) if not blank]
    if not any(_is_drawing(paragraph) or _is_command_block(paragraph) for paragraph in paragraphs):
        return
    lines.clear()
    for paragraph in paragraphs:
        if _is_drawing(paragraph):
            lines += ["::", "", *(f"   {line}" for line in paragraph), ""]
        elif _is_command_block(paragraph):
            lines += [*(f"| {line}" for line in paragraph), ""]
        else:
            lines += [*paragraph, ""]


def read_property(app: Sphinx, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Reads a property's docstring like that of a function; napoleon takes the words before its first colon for a type."""
    if kind == "property":
        lines[:] = GoogleDocstring(
            prepare_docstring(member.__doc__ or ""), app.config, app, "function", name, member, options
        ).lines()


def _is_drawing(paragraph: list[str]) -> bool:
    return any("──" in line for line in paragraph)


def _is_command_block(paragraph: list[str]) -> bool:
    return paragraph[0].startswith("Command:")


def resolve_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Resolves a name that a docstring writes without its module, such as ``Predictor.from_pretrained``."""
    if node["refdomain"] != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    target = node["reftype"], node["reftarget"]
    return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, *target, node, content)
