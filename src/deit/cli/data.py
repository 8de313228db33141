"""``deit data``."""

from __future__ import annotations

import typer

from deit.cli.common import DataArgument, JsonOption, MaxPixelsOption, print_json, print_table

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
    """Decode every image and count classes and splits. The exit code is 1 if files are unreadable."""
    import numpy as np

    from deit.data.checking import check_images
    from deit.data.datasets.named import named_reference
    from deit.data.opening import open_data

    reference = named_reference(data)
    if reference is not None and reference.data.read is None and reference.data.evaluate is not None:
        sources = {"test": reference.data.evaluate(reference.root)}
        origin = f"{reference.name} is for evaluation only"
    else:
        splits = open_data(data)
        sources = {"train": splits.train, "validation": splits.validation}
        if splits.test is not None:
            sources["test"] = splits.test
        origin = splits.origin
    names = next(iter(sources.values())).classes
    problems = [str(error) for source in sources.values() for error in check_images(source, decode=True).values()]
    counts = {split: np.bincount(source.labels, minlength=len(source.classes)) for split, source in sources.items()}
    if as_json:
        classes = {name: {split: int(count[label]) for split, count in counts.items()} for label, name in enumerate(names)}
        print_json({"origin": origin, "classes": classes, "unreadable": problems})
    else:
        typer.echo(f"Splits: {origin}.")
        rows = [[name, *(str(count[label]) for count in counts.values())] for label, name in enumerate(names)]
        rows.append(["all", *(str(count.sum()) for count in counts.values())])
        print_table(["class", *counts], rows)
        for problem in problems:
            typer.echo(problem)
        typer.echo(f"{len(problems)} unreadable images.")
    if problems:
        raise typer.Exit(1)
