"""``deit evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

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

MAX_CONFUSED_PAIRS = 5


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
    typer.echo()
    totals = result.confusion.sum(axis=1)
    rows = [[name, f"{share:.2%}", f"{totals[result.classes.index(name)]}"] for name, share in result.per_class.items()]
    print_table(["class", "accuracy", "images"], rows)
    pairs = result.most_confused(MAX_CONFUSED_PAIRS)
    if pairs:
        typer.echo()
        print_table(
            ["true class", "predicted as", "images"], [[true, predicted, str(count)] for true, predicted, count in pairs]
        )
    if result.skipped:
        typer.echo(f"\n{result.skipped} unreadable images were left out.")
