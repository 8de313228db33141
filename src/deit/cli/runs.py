"""``deit runs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.output import Column, Output, print_json, with_output

if TYPE_CHECKING:
    from deit.evaluation.runs import Comparison, RunSummary

DEFAULT_FOLDER = Path("runs")
PERCENT = "{:.2%}"


@with_output
def runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER | RUN RUN...", help="A folder of runs to list, or runs to compare with the first one."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
    *,
    output: Output,
) -> None:
    """List the runs in a folder, or compare runs: recipes, accuracy, curves, and images that they predict differently."""
    from deit.errors import UserError
    from deit.evaluation.runs import compare_runs, find_runs, is_run, read_summary

    chosen = paths or [DEFAULT_FOLDER]
    if html is not None and html.exists():
        raise UserError(f"{html} exists already", "pass another --html, or remove it")
    if len(chosen) > 1 or html is not None:
        compared = chosen if all(map(is_run, chosen)) else [run for path in chosen for run in find_runs(path)]
        comparison = compare_runs(compared)
        if html is not None:
            from deit.evaluation.run_page import write_run_page

            write_run_page(html, comparison)
        if output.as_json:
            print_json(comparison.to_dict())
        else:
            _print_comparison(comparison, output)
            if html is not None:
                output.line(f"\nPage: {html}")
        return
    summaries = [read_summary(run) for run in ([chosen[0]] if is_run(chosen[0]) else find_runs(chosen[0]))]
    if output.as_json:
        print_json([summary.to_dict() for summary in summaries])
    else:
        _print_summaries(summaries, output)


def _print_summaries(summaries: list[RunSummary], output: Output) -> None:
    columns: list[Column | str] = [
        *("run", "recipe", "data", "epochs", Column("best", name="best_epoch")),
        *(Column("validation top-1", PERCENT, "validation_top1"), Column("validation loss", "{:.4f}", "validation_loss")),
        *("split", Column("top-1", PERCENT, "top1"), Column("from", PERCENT, "low"), Column("to", PERCENT, "high")),
        *(Column("images", "{:,}"), "changed"),
    ]
    rows = [
        [
            *(str(run.path), run.recipe, run.data, run.epochs, run.best_epoch, run.validation_top1, run.validation_loss),
            *(run.split or None, run.top1, *(run.interval or (None, None)), run.images, run.changed.isoformat()),
        ]
        for run in summaries
    ]
    output.table(columns, rows)


def _print_comparison(comparison: Comparison, output: Output) -> None:
    from deit.evaluation.runs import shown_flips

    _print_summaries(comparison.runs, output)
    if not output.for_people:
        return
    numbers = [str(number) for number, _ in enumerate(comparison.runs, 1)]
    if comparison.differences:
        rows = [[name, *(str(value) for value in values)] for name, values in comparison.differences.items()]
        output.line()
        output.table(["recipe value", *numbers], rows)
    for number, test in zip(numbers[1:], comparison.tests, strict=True):
        output.line()
        if test is None:
            output.line(f"1 and {number}: no predictions of the same images.")
            continue
        output.line(
            f"1 and {number}, on {test.images:,} images: {test.only_first:,} correct only in 1, {test.only_second:,} only in "
            f"{number}; McNemar's test: p = {test.p_value:.3g}."
        )
        if test.flips:
            rows = [[flip.image, flip.label, *flip.predictions] for flip in shown_flips(test)]
            output.table(["image", "class", "1", number], rows, f"{len(test.flips):,} images with other predictions:")
