"""``deit evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from deit.cli.common import (
    DataArgument,
    DeviceOption,
    EmaOption,
    JsonOption,
    ModelOrBundleArgument,
    RevisionOption,
    SkipOption,
    WorkersOption,
    print_heads,
    print_json,
    print_table,
)

CONFUSIONS_SHOWN = 5


def evaluate(
    model: ModelOrBundleArgument,
    data: DataArgument,
    part: Annotated[
        Literal["auto", "all", "train", "validation", "test"],
        typer.Option(help="Which images; auto takes those that training never saw, where that is known."),
    ] = "auto",
    combine: Annotated[
        Literal["mean", "softmax"], typer.Option(help="How two heads answer: mean of logits, or sum of softmaxes.")
    ] = "mean",
    classes: Annotated[
        Literal["auto", "all", "data"],
        typer.Option(
            help="What the model may answer: all of its classes, or those of the data; auto: data for ImageNet-A and -R."
        ),
    ] = "auto",
    crop: Annotated[
        Literal["keep", "squash", "pad"] | None, typer.Option(help="How an image fits the input; the model's own by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    skip_unreadable: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model: top-1 and top-5 of each head, per class, confusion, calibration, throughput."""
    from deit.evaluation.evaluate import evaluate as run

    result = run(
        model,
        data,
        part=part,
        device=device,
        batch_size=batch_size,
        workers=workers,
        combine=combine,
        classes=classes,
        crop=crop,
        skip_unreadable=skip_unreadable,
        ema=ema,
        revision=revision,
    )
    if as_json:
        print_json(result.to_dict())
        return
    print_heads(result, data)
    if result.among is not None:
        typer.echo(f"Answers were taken among the {result.among} classes of the data, of the model's {len(result.classes)}.")
    typer.echo()
    totals = result.confusion.sum(axis=1)
    rows = [[name, f"{share:.2%}", f"{totals[result.classes.index(name)]}"] for name, share in result.per_class.items()]
    print_table(["class", "right", "images"], rows)
    wrong = result.most_confused(CONFUSIONS_SHOWN)
    if wrong:
        typer.echo()
        print_table(["true", "taken for", "times"], [[true, taken, str(count)] for true, taken, count in wrong])
    if result.skipped:
        typer.echo(f"\n{result.skipped} unreadable images were left out.")
