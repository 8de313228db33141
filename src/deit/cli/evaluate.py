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
    MaxPixelsOption,
    ModelOrBundleArgument,
    RevisionOption,
    SkipOption,
    WorkersOption,
    head_rows,
    print_heads,
)
from deit.cli.output import Column, Output, print_json, print_line, print_table, with_output
from deit.system.progress import print_status

if TYPE_CHECKING:
    from deit.evaluation.metrics import Evaluation

MAX_CONFUSED_PAIRS = 5
MAX_LISTED_CLASSES = 40  # of more classes, the worst are listed
WORST_CLASSES = 20
COLUMNS = ("kind", "name", "images", "top1", "top5", "loss", "calibration_error")


@with_output
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
    *,
    output: Output,
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
    if output.as_json:
        print_json(result.to_dict())
        return
    totals = result.confusion.totals
    counts = totals[totals > 0].tolist()
    per_class = [(name, share, count) for (name, share), count in zip(result.per_class.items(), counts, strict=True)]
    if not output.for_people:  # one table of the heads and the classes
        heads = [["head", head, result.images, *metrics] for head, *metrics in head_rows(result)]
        output.table(
            COLUMNS, [*heads, *(["class", name, images, share, None, None, None] for name, share, images in per_class)]
        )
        for line in _notes(result, match_classes):
            print_status(line)
        return
    print_heads(output, result, data)
    for line in _notes(result, match_classes):
        print_line(line)
    print_line()
    if len(per_class) > MAX_LISTED_CLASSES:
        print_line(f"The {WORST_CLASSES} worst of {len(per_class):,} classes; --csv lists all.")
        per_class = sorted(per_class, key=lambda row: row[1])[:WORST_CLASSES]
    print_table(["class", Column("accuracy", "{:.2%}"), Column("images", "{:,}")], per_class)
    pairs = result.most_confused(MAX_CONFUSED_PAIRS)
    if pairs:
        print_line()
        print_table(["true class", "predicted as", "images"], pairs)
    if result.skipped:
        print_line(f"\n{result.skipped} unreadable images were left out.")


def _notes(result: Evaluation, match_classes: str) -> Iterator[str]:
    """Yields a sentence on everything that one should know of an evaluation besides its numbers."""
    if result.num_classes_evaluated is not None:
        count = result.num_classes_evaluated
        yield f"Predictions were restricted to {count} of the model's {len(result.classes)} classes."
    if match_classes == "order":
        yield f"The model's classes were matched with the data's by order: the first is {result.classes[0]!r}."
    yield from seen_lines(result)


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
