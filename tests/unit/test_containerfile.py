"""The container file and the Kubernetes example: what they copy exists, and the program accepts their commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from typer.core import TyperGroup

from deit.cli.main import app

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")


def instruction(name: str) -> list[str]:
    """Returns the JSON array of the last instruction of a name."""
    arrays = re.findall(rf"^{name} (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    words: list[str] = json.loads(arrays[-1])
    return words


def container() -> dict[str, Any]:
    """Returns the container of the Kubernetes example."""
    documents = yaml.safe_load_all((ROOT / "docs" / "kubernetes-serve.yaml").read_text(encoding="utf-8"))
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_copied_files_exist_and_are_not_ignored() -> None:
    sources = [word for line in re.findall(r"^COPY ([^-].*) \S+$", CONTAINERFILE, re.MULTILINE) for word in line.split()]
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "src" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in rules, source


@pytest.mark.parametrize("arguments", [instruction("CMD"), container()["args"]], ids=["Containerfile", "Kubernetes"])
def test_command_is_accepted(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_MAX_PIXELS", "1")  # which --max-pixels sets for the rest of the process
    assert instruction("ENTRYPOINT") == ["deit"]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    name, *rest = arguments
    context = group.commands[name].make_context(name, rest)
    assert (context.params["models"], context.params["host"]) == (["/model"], "0.0.0.0")


def test_ports_and_mounts_agree() -> None:
    found = container()
    [port] = found["ports"]
    assert f"EXPOSE {port['containerPort']}" in CONTAINERFILE
    assert {"/model", "/tmp"} == {mount["mountPath"] for mount in found["volumeMounts"]}
