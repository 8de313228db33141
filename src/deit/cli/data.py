"""``deit data``."""

from __future__ import annotations

import typer

from deit.cli.common import DataArgument, JsonOption, print_json, print_table

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Data sets."""


@app.command("list")
def list_data(as_json: JsonOption = False) -> None:
    """The data sets that are known by name: classes, images in each part, terms of use, where they come from."""
    from deit.data.datasets.named import NAMED, named_reference

    rows = []
    for name, row in NAMED.items():
        reference = named_reference(name)
        assert reference is not None
        rows.append(
            {
                "name": name,
                "classes": row.classes,
                "images": dict(row.images),
                "terms": row.terms,
                "origin": row.origin,
                "folder": str(reference.root),
                "evaluation_only": row.read is None,
            }
        )
    if as_json:
        print_json(rows)
        return
    parts = ("train", "validation", "test")
    table = [
        [
            str(row["name"]),
            f"{row['classes']:,}",
            *(f"{NAMED[str(row['name'])].images[part]:,}" if part in NAMED[str(row["name"])].images else "" for part in parts),
            str(row["terms"]),
            str(row["origin"]),
        ]
        for row in rows
    ]
    print_table(["name", "classes", *parts, "terms", "from"], table)
    typer.echo("\nA data set is looked for in $DEIT_DATA/NAME or ~/.cache/deit/NAME, or in FOLDER where you write NAME:FOLDER.")
    typer.echo(
        "imagenet-v2, -real, -a and -r are for `deit evaluate` alone. Beside these: digits, folders, manifests, hf:OWNER/NAME."
    )


@app.command("check")
def check(data: DataArgument, as_json: JsonOption = False) -> None:
    """Decode every image, count classes and parts; the exit code is 1 where files are unreadable."""
    import numpy as np

    from deit.data.checking import check_images
    from deit.data.datasets.named import named_reference
    from deit.data.opening import open_data

    reference = named_reference(data)
    if reference is not None and reference.data.read is None and reference.data.evaluate is not None:
        source = reference.data.evaluate(reference.root)
        filled, origin = {"test": source}, f"{reference.name} is for evaluation alone"
    else:
        splits = open_data(data)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        filled, origin = {name: part for name, part in parts.items() if part is not None}, splits.origin
    names = next(iter(filled.values())).classes
    problems = [str(error) for part in filled.values() for error in check_images(part, whole=True).values()]
    counts = {name: np.bincount(part.labels, minlength=len(part.classes)) for name, part in filled.items()}
    if as_json:
        classes = {label: {name: int(count[place]) for name, count in counts.items()} for place, label in enumerate(names)}
        print_json({"origin": origin, "classes": classes, "unreadable": problems})
    else:
        typer.echo(f"DatasetSplits: {origin}.")
        rows = [[label, *(str(count[place]) for count in counts.values())] for place, label in enumerate(names)]
        rows.append(["all", *(str(count.sum()) for count in counts.values())])
        print_table(["class", *counts], rows)
        for text in problems:
            typer.echo(text)
        typer.echo(f"{len(problems)} unreadable images.")
    if problems:
        raise typer.Exit(1)
