"""``deit data``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deit.cli.common import DataArgument, JsonOption, MaxPixelsOption, print_json, print_table

if TYPE_CHECKING:
    from deit.data.checking import DataCheck

SPLITS = ("train", "validation", "test")

app = typer.Typer(help="List and check data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """List and check data sets."""


@app.command("list")
def list_data(as_json: JsonOption = False) -> None:
    """List the data sets with a name: classes, images per split, terms of use, origin."""
    from deit.data.datasets.named import NAMED, named_reference

    if as_json:
        rows = []
        for name, dataset in NAMED.items():
            reference = named_reference(name)
            assert reference is not None
            rows.append(
                {
                    "name": name,
                    "classes": dataset.classes,
                    "images": dict(dataset.images),
                    "terms": dataset.terms,
                    "origin": dataset.origin,
                    "folder": str(reference.root),
                    "evaluation_only": dataset.read is None,
                }
            )
        print_json(rows)
        return
    table = []
    for name, dataset in NAMED.items():
        images = [f"{dataset.images[split]:,}" if split in dataset.images else "" for split in SPLITS]
        table.append([name, f"{dataset.classes:,}", *images, dataset.terms, dataset.origin])
    print_table(["name", "classes", *SPLITS, "terms", "from"], table)
    typer.echo("\nA data set NAME is read from $DEIT_DATA/NAME or ~/.cache/deit/NAME; NAME:FOLDER reads it from FOLDER.")
    typer.echo(
        "imagenet-v2, -real, -a and -r are for `deit evaluate` only. Also accepted: digits, folders, manifests, hf:OWNER/NAME."
    )


@app.command("check")
def check_data(data: DataArgument, _max_pixels: MaxPixelsOption = None, as_json: JsonOption = False) -> None:
    """Decode every image, count classes and splits, and say what is not read. The exit code is 1 if files are unreadable."""
    from deit.data.checking import check_data as check

    found = check(data)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_check(found)
    if not found.complete:
        raise typer.Exit(1)


def _print_check(found: DataCheck) -> None:
    from deit.system.progress import plural

    typer.echo(f"Splits: {found.origin}.")
    splits = list(found.sources)
    rows = [[name, *(str(counts[split]) for split in splits)] for name, counts in found.class_counts.items()]
    rows.append(["all", *(str(len(found.sources[split].labels)) for split in splits)])
    print_table(["class", *splits], rows)
    for problem in (*found.damaged, *found.too_large):
        typer.echo(problem)
    for note in found.notes:
        typer.echo(f"{note}.")
    if left_out := found.left_out.describe(hidden=True):
        typer.echo(f"Not read: {left_out}.")
    typer.echo(f"{plural(len(found.damaged), 'unreadable image')}, {len(found.too_large)} too large.")
    if found.obstacle:
        typer.echo(f"Not for training: {found.obstacle}")
