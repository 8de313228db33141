"""``deit train``."""

from __future__ import annotations

from typing import Annotated

import typer

from deit.cli.common import (
    BatchSizeOption,
    DeviceOption,
    EpochsOption,
    ImageSizeOption,
    InitOption,
    JsonOption,
    OutOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SkipOption,
    WorkersOption,
    print_heads,
    print_json,
    recipe_settings,
    result_dict,
)
from deit.errors import UserError


def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="A folder of images, or `digits`.")] = None,
    init: InitOption = None,
    teacher: Annotated[str | None, typer.Option(help="A directory of `deit teacher train`, or a timm name.")] = None,
    teacher_weights: Annotated[str | None, typer.Option(help="A file with the weights of a timm teacher.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A name of `deit recipe list`, or a TOML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A name of `deit model list`.")] = None,
    image_size: ImageSizeOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    assignments: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    skip_unreadable: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier on a folder of images: with --teacher a distilled one, else from the labels alone."""
    from deit.training.run import train as run

    shortcuts = {
        "model.variant": model,
        "model.image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = recipe_settings(assignments, shortcuts)
    if resume is not None and (settings or recipe or init or teacher or teacher_weights or out):
        raise UserError("A resumed run keeps its own recipe and teacher", "pass --resume without other settings")
    result = run(
        data,
        recipe or default_recipe(data, distilled=teacher is not None, init=init is not None),
        out=out,
        resume=resume,
        init=init,
        teacher=teacher,
        teacher_weights=teacher_weights,
        settings=settings,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if as_json:
        print_json(result_dict(result.directory, result.part, result.evaluation, result.teacher))
        return
    print_heads(result.evaluation, result.part, result.teacher)
    typer.echo(f"\nModel:  {result.directory / 'best'}\nReport: {result.directory / 'report.html'}")


def default_recipe(data: str | None, distilled: bool, init: bool = False) -> str:
    """The recipe for a user who names none."""
    stem = "finetune-small-data" if init else "digits" if data == "digits" else "small-data"
    return f"{stem}-distilled" if distilled else stem
