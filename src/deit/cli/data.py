"""``deit data``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.common import DataArgument, MaxPixelsOption, SkipOption
from deit.cli.output import Column, Output, print_json, print_line, with_output
from deit.system.progress import duration, print_status

if TYPE_CHECKING:
    from deit.data.checking import DataCheck

SPLITS = ("train", "validation", "test")

app = typer.Typer(help="List, check and pack data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """List, check and pack data sets."""


@app.command("list")
@with_output
def list_data(*, output: Output) -> None:
    """List the data sets with a name: classes, images per split, terms of use, origin."""
    from deit.data.datasets.named import NAMED, named_reference

    if output.as_json:
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
        images = [dataset.images.get(split) for split in SPLITS]
        table.append([name, dataset.classes, *images, dataset.terms, dataset.origin])
    counts = (Column(name, "{:,}") for name in ("classes", *SPLITS))
    output.table(["name", *counts, "terms", Column("from", name="origin")], table)
    output.line("\nA data set NAME is read from $DEIT_DATA/NAME or ~/.cache/deit/NAME; NAME:FOLDER reads it from FOLDER.")
    output.line(
        "imagenet-v2, -real, -a and -r are for `deit evaluate` only. Also accepted: digits, folders, manifests, hf:OWNER/NAME."
    )


@app.command("pack")
@with_output
def pack_data(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder of the shards, which does not exist yet.")],
    size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PIXELS", help="Reduce larger images to this shorter side, as JPEG. Default: keep the files."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of the JPEG files, with --size.")] = 90,
    shard_mb: Annotated[float, typer.Option("--shard-mb", metavar="MB", help="Size of a shard.")] = 256,
    skip_unreadable: SkipOption = False,
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Pack a data set into WebDataset shards with an index, to train from a disk or an address such as s3://bucket/photos."""
    from deit.data.packing import pack

    start = time.monotonic()
    packed = pack(data, out, size=size, quality=quality, shard_mb=shard_mb, skip_unreadable=skip_unreadable)
    seconds = time.monotonic() - start
    if output.as_json:
        print_json({**asdict(packed), "path": str(packed.path), "seconds": seconds})
        return
    images = sum(packed.images.values())
    columns: list[Column | str] = [
        Column("folder", name="path"),
        *(Column(name, "{:,}") for name in ("shards", "images", "skipped")),
        Column("bytes", "{:,}", "image_bytes"),
        Column("time", duration, "seconds"),
        Column("images/s", "{:,.0f}", "images_per_second"),
    ]
    row = [str(packed.path), packed.shards, images, packed.skipped, packed.image_bytes, seconds, images / seconds]
    output.table(columns, [row])
    output.line(f'\nNext: deit train "{packed.path}"')


@app.command("check")
@with_output
def check_data(data: DataArgument, _max_pixels: MaxPixelsOption = None, *, output: Output) -> None:
    """Decode every image, count classes and splits, and say what is not read. The exit code is 1 if files are unreadable."""
    from deit.data.checking import check_data as check

    found = check(data)
    if output.as_json:
        print_json(found.to_dict())
    else:
        _print_check(found, output)
    if not found.complete:
        raise typer.Exit(1)


def _print_check(found: DataCheck, output: Output) -> None:
    from deit.images.listing import examples
    from deit.system.progress import plural

    report = print_line if output.for_people else print_status  # programs read only the table
    report(f"Splits: {found.origin}.")
    splits = list(found.sources)
    rows: list[list[object]] = [[name, *(counts[split] for split in splits)] for name, counts in found.class_counts.items()]
    if output.for_people:
        rows.append(["all", *(len(found.sources[split].labels) for split in splits)])
    output.table(["class", *splits], rows)
    for problem in (*found.damaged, *found.too_large):
        report(problem)
    for note in found.notes:
        report(f"{note}.")
    if left_out := found.left_out.describe(hidden=True):
        report(f"Not read: {left_out}.")
    for note in found.copies.notes():
        report(f"{note}.")
    if found.animations:
        several = plural(len(found.animations), "image")
        report(f"{several} with several frames or pages, of which the first is used: {examples(found.animations)}.")
    report(f"{plural(len(found.damaged), 'unreadable image')}, {len(found.too_large)} too large.")
    if found.obstacle:
        report(f"Not for training: {found.obstacle}")
