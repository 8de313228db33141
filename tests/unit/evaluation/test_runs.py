"""Listing and comparing runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deit.checkpoints.run_log import write_log
from deit.cli.main import app
from deit.errors import CheckpointError, UserError
from deit.evaluation.run_page import write_run_page
from deit.evaluation.runs import compare_runs, find_runs, read_predictions, read_summary, write_predictions
from deit.recipes.presets import get_recipe
from deit.system.files import EVALUATION_NAME, PREDICTIONS_NAME, RECIPE_NAME, RUN_NAME, write_json

IMAGES = 40


def make_run(path: Path, wrong: Sequence[int] = (), recipe: str = "deit", **changes: Any) -> Path:
    """Writes the files of a run that predicts some of its images wrongly."""
    path.mkdir(parents=True)
    get_recipe(recipe).replace(**changes).save(path / RECIPE_NAME)
    write_json(path / RUN_NAME, {"data": "/photos of <b>"})
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, "loss": 2.0 / epoch, "validation": {"top1": 0.4 + epoch / 10, "loss": 1.0 / epoch, "images": 50}}
        for epoch in (1, 2, 3)
    ]
    write_log(path, rows)
    top1 = 1 - len(wrong) / IMAGES
    evaluation = {"split": "test", "images": IMAGES, "heads": {"class": {"top1": 0.0}, "both": {"top1": top1}}}
    write_json(path / EVALUATION_NAME, {**evaluation, "top1_interval": {"low": top1 - 0.1, "high": top1 + 0.1}})
    names = ("cat", "<dog>")
    write_predictions(
        path,
        (
            {
                "image": f"{number}, ü.jpg",
                "label": names[number % 2],
                "prediction": names[(number + (number in wrong)) % 2],
                "probability": 0.75,
            }
            for number in range(IMAGES)
        ),
    )
    return path


def test_summary_of_a_finished_run(tmp_path: Path) -> None:
    summary = read_summary(make_run(tmp_path / "a run", wrong=range(10)))
    assert (summary.recipe, summary.data, summary.epochs, summary.best_epoch) == ("deit", "/photos of <b>", 3, 3)
    assert summary.validation_top1 == 0.7
    assert summary.validation_loss == pytest.approx(1 / 3)
    assert (summary.split, summary.top1, summary.images) == ("test", 0.75, IMAGES)
    assert summary.interval is not None
    assert summary.interval == pytest.approx((0.65, 0.85))


def test_summary_of_runs_that_are_not_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / EVALUATION_NAME).unlink()
    assert (read_summary(run).top1, read_summary(run).split, read_summary(run).best_epoch) == (None, "", 3)
    (run / "log.jsonl").unlink()
    assert (read_summary(run).epochs, read_summary(run).best_epoch, read_summary(run).validation_top1) == (0, None, None)
    write_json(run / EVALUATION_NAME, {"split": "validation", "loss": 0.5})  # of pretraining
    assert (read_summary(run).top1, read_summary(run).interval) == (None, None)
    with pytest.raises(CheckpointError, match="is not a run directory"):
        read_summary(tmp_path)


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    expected = [make_run(tmp_path / name) for name in ("a", "b/c", "b/d e")]
    (tmp_path / "other").mkdir()
    assert find_runs(tmp_path) == expected
    for folder, problem in ((tmp_path / "other", "contains no runs"), (tmp_path / "missing", "is not a folder")):
        with pytest.raises(UserError, match=problem):
            find_runs(folder)


def test_comparison_has_differences_and_mcnemars_test(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", wrong=[1, 2, 3, 4, 5, 6, 7, 8, 9, 30])
    second = make_run(tmp_path / "second", wrong=[20, 30], seed=7, optimizer={"lr": 0.125})
    same = make_run(tmp_path / "same", wrong=[1, 2, 3, 4, 5, 6, 7, 8, 9, 30])
    comparison = compare_runs([first, second, same])
    assert comparison.differences["seed"] == [0, 7, 0]
    assert comparison.differences["optimizer.lr"][1] == 0.125
    assert set(comparison.differences) == {"seed", "optimizer.lr"}
    one, other = comparison.tests
    assert one is not None
    assert other is not None
    assert (one.images, one.only_first, one.only_second) == (IMAGES, 1, 9)
    assert one.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # of ten coins, nine or more on one side
    assert {flip.image for flip in one.flips} == {f"{number}, ü.jpg" for number in (*range(1, 10), 20)}
    assert (other.p_value, other.flips) == (1.0, [])


def test_runs_without_predictions_of_the_same_images_are_not_tested(tmp_path: Path) -> None:
    first, second, third = (make_run(tmp_path / name) for name in ("first", "second", "third"))
    (second / PREDICTIONS_NAME).unlink()
    write_predictions(third, iter([{"image": "other.jpg", "label": "cat", "prediction": "cat", "probability": 1.0}]))
    assert compare_runs([first, second, third]).tests == [None, None]


@pytest.mark.parametrize("line", ["{", "[]", '{"image": "a"}', "[" * 100_000])
def test_damaged_predictions_are_an_error(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run")
    (run / PREDICTIONS_NAME).write_text(f'{{"image": "a", "label": "b", "prediction": "c"}}\n{line}\n')
    with pytest.raises(CheckpointError, match="is damaged in line 2"):
        read_predictions(run)


def test_page_shows_runs_and_escapes_names(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "<i>first"), make_run(tmp_path / "second", wrong=[1, 2], seed=7)]
    write_run_page(tmp_path / "page.html", compare_runs(runs))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;first" in page
    assert "<i>first" not in page
    assert "1, ü.jpg" in page
    assert "&lt;dog&gt;" in page
    assert page.count("<svg") == 3
    assert "p = 0.5" in page


def test_command_lists_and_compares(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / "my runs" / name, wrong=wrong)) for name, wrong in (("a", [1]), ("b", [2, 3]))]
    listed = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])
    assert [row["top1"] for row in json.loads(listed.stdout)] == [0.975, 0.95]
    assert [row["path"] for row in json.loads(listed.stdout)] == runs
    text = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert "97.50%" in text
    compared = CliRunner().invoke(app, ["runs", *runs, "--html", str(tmp_path / "page.html")])
    assert "McNemar's test: p = 1" in compared.stdout
    assert "3 images with other predictions" in compared.stdout
    assert (tmp_path / "page.html").exists()
    content = json.loads(CliRunner().invoke(app, ["runs", *runs, "--json"]).stdout)
    assert content["tests"][0]["only_first"] == 2
    again = CliRunner().invoke(app, ["runs", *runs, "--html", str(tmp_path / "page.html")])
    assert isinstance(again.exception, UserError)
    table = CliRunner().invoke(app, ["runs", str(tmp_path), "--csv"]).stdout.splitlines()
    assert table[0].startswith("run,recipe,data,epochs,best_epoch,validation_top1")
    assert len(table) == 3
