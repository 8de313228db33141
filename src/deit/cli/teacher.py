"""``deit teacher``."""

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

app = typer.Typer(help="Teachers: convolutional networks that a transformer learns from.", no_args_is_help=True)


@app.callback()
def teacher() -> None:
    """Teachers: convolutional networks that a transformer learns from."""


@app.command("train")
def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="A folder of images, or `digits`.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of timm, such as regnety_004.")] = None,
    init: InitOption = None,
    recipe: Annotated[str | None, typer.Option(help="A name of `deit recipe list`, or a TOML file.")] = None,
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
    """Train a convolutional teacher on a folder of images; pass its directory to `deit train --teacher`."""
    from deit.training.run import train as run

    shortcuts = {
        "model.architecture": arch,
        "model.image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = recipe_settings(assignments, shortcuts)
    if resume is not None and (settings or recipe or init or out):
        raise UserError("A resumed run keeps its own recipe", "pass --resume without other settings")
    result = run(
        data,
        recipe or ("digits-convnet" if data == "digits" else "convnet"),
        out=out,
        resume=resume,
        init=init,
        settings=settings,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if as_json:
        print_json(result_dict(result.directory, result.part, result.evaluation, None))
        return
    print_heads(result.evaluation, result.part)
    typer.echo(f'\nNext: deit train "{data or "DATA"}" --teacher "{result.directory}"')
