"""``deit data``."""

from __future__ import annotations

import typer

from deit.cli.common import DataArgument, JsonOption, print_json, print_table

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Data sets."""


@app.command("check")
def check(data: DataArgument, as_json: JsonOption = False) -> None:
    """Decode every image, count classes and parts; the exit code is 1 where files are unreadable."""
    import numpy as np

    from deit.data.sources import check_images, open_data

    splits = open_data(data)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    filled = {name: part for name, part in parts.items() if part is not None}
    problems = [str(error) for part in filled.values() for error in check_images(part, whole=True).values()]
    counts = {name: np.bincount(part.labels, minlength=len(part.classes)) for name, part in filled.items()}
    if as_json:
        classes = {
            label: {name: int(count[place]) for name, count in counts.items()} for place, label in enumerate(splits.classes)
        }
        print_json({"origin": splits.origin, "classes": classes, "unreadable": problems})
    else:
        typer.echo(f"Parts: {splits.origin}.")
        rows = [[label, *(str(count[place]) for count in counts.values())] for place, label in enumerate(splits.classes)]
        rows.append(["all", *(str(count.sum()) for count in counts.values())])
        print_table(["class", *counts], rows)
        for text in problems:
            typer.echo(text)
        typer.echo(f"{len(problems)} unreadable images.")
    if problems:
        raise typer.Exit(1)
