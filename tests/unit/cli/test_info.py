"""``deit info``."""

from __future__ import annotations

import json

import deit
from tests.unit.cli.options import output


def test_installed_runtimes_are_listed() -> None:
    content = json.loads(output("info", "--json"))
    assert content["deit"] == deit.__version__
    runtimes = {row["name"]: row["version"] for row in content["runtimes"]}
    assert runtimes["torch"]
    text = output("info")
    assert text.startswith(f"deit {deit.__version__}, Python ")
    assert all(name in text for name in runtimes)
