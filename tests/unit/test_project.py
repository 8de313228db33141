"""Project metadata: one version in all places, and no address of a package index in the requirements."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import deit

ROOT = Path(__file__).parents[2]


def first_match(pattern: str, name: str) -> str:
    """Returns the first group of the first match in a file of the project."""
    match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{name} has no match of {pattern}"
    return match[1]


def test_citation_has_the_version() -> None:
    assert first_match(r"^version: (\S+)$", "CITATION.cff") == deit.__version__


def test_newest_changelog_heading_is_the_version() -> None:
    assert first_match(r"^## \[([^\]]+)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", "CHANGELOG.md") == deit.__version__
    assert first_match(r"^(## .*)$", "CHANGELOG.md").startswith(f"## [{deit.__version__}]")


def test_package_metadata_reads_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "deit.__version__"}


@pytest.mark.parametrize("name", ["quickstart.txt", "serve.txt", "test.txt"])
def test_requirements_are_pinned_with_hashes_and_name_no_index(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    requirements = re.findall(r"^\S.*(?:\n {4}--hash.*)*", text, re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
    assert "://" not in text
    assert "--index-url" not in text


def test_quickstart_pins_are_those_of_the_tests() -> None:
    pins = [
        set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("quickstart.txt", "test.txt")
    ]
    assert pins[0] <= pins[1]
