"""``deit evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deit.cli.common import (
    CropOption,
    DataArgument,
    DeviceOption,
    EmaOption,
    JsonOption,
    MaxPixelsOption,
    ModelOrBundleArgument,
    RevisionOption,
    SkipOption,
    WorkersOption,
    print_heads,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from deit.evaluation.metrics import Evaluation

MAX_CONFUSED_PAIRS = 5
MAX_LISTED_CLASSES = 40  # of more classes, the worst are listed
WORST_CLASSES = 20


def evaluate(
    model: ModelOrBundleArgument,
    data: DataArgument,
    split: Annotated[
        Literal["auto", "all", "train", "validation", "test"],
        typer.Option(help="Split to evaluate on; auto takes images that the model was not trained on, if known."),
    ] = "auto",
    combine: Annotated[
        Literal["mean", "softmax"], typer.Option(help="How two heads are combined: mean of logits, or sum of softmaxes.")
    ] = "mean",
    classes: Annotated[
        Literal["auto", "all", "data"],
        typer.Option(help="Classes to predict: all of the model's, or only the data's. auto: data for ImageNet-A and -R."),
    ] = "auto",
    match_classes: Annotated[
        Literal["name", "order"],
        typer.Option(help="Match the classes of model and data by name, or by order for a model whose classes have no names."),
    ] = "name",
    crop: CropOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    skip_unreadable: SkipOption = False,
    _max_pixels: MaxPixelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model: accuracy per head and per class, confusion, calibration, throughput."""
    from deit.evaluation.evaluate import evaluate as run
    from deit.system.malloc import retain_freed_memory

    retain_freed_memory()
    result = run(
        model,
        data,
        split=split,
        device=device,
        batch_size=batch_size,
        workers=workers,
        combine=combine,
        classes=classes,
        match_classes=match_classes,
        crop=crop,
        skip_unreadable=skip_unreadable,
        ema=ema,
        revision=revision,
    )
    if as_json:
        print_json(result.to_dict())
        return
    print_heads(result, data)
    if result.num_classes_evaluated is not None:
        typer.echo(
            f"Predictions were restricted to {result.num_classes_evaluated} of the model's {len(result.classes)} classes."
        )
    if match_classes == "order":
        typer.echo(f"The model's classes were matched with the data's by order: the first is {result.classes[0]!r}.")
    for line in seen_lines(result):
        typer.echo(line)
    typer.echo()
    totals = result.confusion.totals
    per_class = zip(result.per_class.items(), totals[totals > 0], strict=True)
    rows = [(share, name, f"{images:,}") for (name, share), images in per_class]
    if len(rows) > MAX_LISTED_CLASSES:
        typer.echo(f"The {WORST_CLASSES} worst of {len(rows):,} classes; --json lists all.")
        rows = sorted(rows, key=lambda row: row[0])[:WORST_CLASSES]
    print_table(["class", "accuracy", "images"], [[name, f"{share:.2%}", images] for share, name, images in rows])
    pairs = result.most_confused(MAX_CONFUSED_PAIRS)
    if pairs:
        typer.echo()
        print_table(
            ["true class", "predicted as", "images"], [[true, predicted, str(count)] for true, predicted, count in pairs]
        )
    if result.skipped:
        typer.echo(f"\n{result.skipped} unreadable images were left out.")


def seen_lines(result: Evaluation) -> Iterator[str]:
    """Yields a sentence on each kind of image that training saw."""
    if result.seen is None:
        return
    seen, images = result.seen, result.images + result.skipped
    if seen.left_out:
        total = images + seen.left_out
        yield f"The model was trained on {seen.left_out:,} of {total:,} images; the other {images:,} were evaluated."
    if seen.measured:
        yield f"The model was trained on {seen.measured:,} of these {images:,} images: it may be less accurate on others."
    if seen.validation:
        yield f"{seen.validation:,} of these images also selected the checkpoint: the accuracy is slightly optimistic."
