"""``deit pretrain``."""

from __future__ import annotations

from dataclasses import asdict
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
    print_json,
    recipe_settings,
    refuse_two_shapes,
)
from deit.errors import UserError


def pretrain(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="A folder of images; no labels are needed.")] = None,
    init: InitOption = None,
    recipe: Annotated[str | None, typer.Option(help="A name of `deit recipe list`, or a TOML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A distilled name of `deit model list`.")] = None,
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
    """Let a model fill in hidden patches of images without labels; then `deit train --init` on what comes of it."""
    from deit.training.run import pretrain as run

    shortcuts = {
        "model.variant": model,
        "model.image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = recipe_settings(assignments, shortcuts)
    refuse_two_shapes(init, model)
    if resume is not None and (settings or recipe or init or out):
        raise UserError("A resumed run keeps its own recipe", "pass --resume without other settings")
    result = run(
        data,
        recipe or "pretrain-mim",
        out=out,
        resume=resume,
        init=init,
        settings=settings,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if as_json:
        print_json({**asdict(result), "directory": str(result.directory)})
        return
    typer.echo(
        f"Hidden pixels of the validation part: {result.loss:.4f} off on average (normalized), after epoch {result.epoch}"
    )
    typer.echo(f'\nNext: deit train DATA --init "{result.directory}"')
