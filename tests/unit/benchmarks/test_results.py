"""The committed results: each page is the table of its JSON file, and quartiles and pages are written as documented."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from benchmarks import (
    busy_machine,
    cached_teacher,
    checkpoints,
    data,
    explain,
    faults,
    hostile_files,
    hostile_images,
    inference,
    kills,
    minutes,
    preprocessing,
    quickstart,
    ranks,
    reporting,
    runs,
    scale,
    serving,
    serving_load,
    small_data,
    small_step,
    streaming,
    train_step,
    transformers_suites,
    tune,
)

PAGES: dict[str, Callable[[Any], str]] = {
    "busy_machine": busy_machine.table,
    "cached_teacher": cached_teacher.table,
    "checkpoints": checkpoints.table,
    "data": data.table,
    "explain": explain.table,
    "faults": faults.table,
    "hostile_files": hostile_files.table,
    "hostile_images": hostile_images.table,
    "inference": inference.table,
    "kills": kills.table,
    "minutes": minutes.table,
    "preprocessing": preprocessing.table,
    "quickstart": quickstart.table,
    "ranks": ranks.table,
    "runs": runs.table,
    "scale": scale.table,
    "serving": serving.table,
    "serving_load": serving_load.table,
    "small_step": small_step.table,
    **{path.stem: small_data.table for path in reporting.RESULTS.glob("small_data-*.json")},
    "streaming": streaming.table,
    "train_step": train_step.table,
    "transformers_suites": transformers_suites.details,
    "tune": tune.table,
}


def test_every_result_is_tested() -> None:
    assert {path.stem for path in reporting.RESULTS.glob("*.json")} == set(PAGES)


@pytest.mark.parametrize(("name", "table"), PAGES.items())
def test_each_page_is_the_table_of_its_result(name: str, table: Callable[[Any], str]) -> None:
    result = json.loads((reporting.RESULTS / f"{name}.json").read_text())
    assert (reporting.RESULTS / f"{name}.md").read_text() == table(result)


def test_quartiles() -> None:
    assert reporting.quartiles([3.0, 1.0, 2.0, 4.0, 5.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}
    assert reporting.with_quartiles({"low": 2.0, "median": 3.04, "high": 4.0}, 1) == "3.0 (2.0 to 4.0)"


def test_the_last_line_printed_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    reporting.publish({"a": 1}, "# Page\n", None)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "# Page"
    assert json.loads(printed[-1]) == {"a": 1}
