"""``deit teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import (
    BatchSizeOption,
    DataArgument,
    DeviceOption,
    EpochsOption,
    ImageSizeOption,
    InitOption,
    JsonOption,
    MinutesOption,
    ModelOption,
    OutOption,
    RecipeOption,
    ResumeOption,
    RunDataArgument,
    SeedOption,
    SetOption,
    SkipOption,
    TeacherWeightsOption,
    WorkersOption,
    check_resume,
    default_recipe,
    print_json,
    print_result,
    print_table,
    recipe_settings,
    refuse_two_shapes,
)

app = typer.Typer(help="Teachers: convolutional networks that a transformer learns from.", no_args_is_help=True)


@app.callback()
def teacher() -> None:
    """Teachers: convolutional networks that a transformer learns from."""


@app.command("train")
def train(
    data: RunDataArgument = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of timm, such as regnety_004.")] = None,
    init: InitOption = None,
    recipe: RecipeOption = None,
    image_size: ImageSizeOption = None,
    epochs: EpochsOption = None,
    minutes: MinutesOption = None,
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
        "minutes": minutes,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = recipe_settings(assignments, shortcuts)
    refuse_two_shapes(init, arch, "--arch")
    check_resume(resume, settings, recipe, init, out)
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
    print_result(result, as_json, f'Next: deit train "{data or "DATA"}" --teacher "{result.directory}"')


@app.command("store")
def store(
    data: DataArgument,
    teacher: Annotated[str, typer.Option(help="A classifier's directory or hub name, or a timm name.")],
    out: Annotated[Path, typer.Option(help="The store's directory; one that is there is gone on with.")],
    views: Annotated[
        int | None, typer.Option(min=1, help="Of each sample: the draws of so many epochs; one an epoch by default.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Keep the probabilities of so many classes, for soft distillation.")
    ] = None,
    teacher_weights: TeacherWeightsOption = None,
    init: InitOption = None,
    recipe: RecipeOption = None,
    model: ModelOption = None,
    image_size: ImageSizeOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    assignments: SetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    skip_unreadable: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Keep a teacher's answers to all that training will show; then train with the same recipe and --teacher STORE."""
    from deit.distillation.build_cache import store as run
    from deit.system.progress import duration

    shortcuts = {
        "model.variant": model,
        "model.image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    result = run(
        data,
        recipe or default_recipe(data, distilled=True, init=init is not None),
        teacher=teacher,
        out=out,
        init=init,
        views=views,
        top_k=top_k,
        teacher_weights=teacher_weights,
        settings=recipe_settings(assignments, shortcuts),
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if as_json:
        print_json(result.to_dict())
        return
    row = [f"{result.images:,}", f"{result.views}", f"{result.bytes:,}", f"{result.bytes_per_sample}"]
    rate = f"{result.images_per_second:,.0f}"
    columns = ["store", "samples", "views", "bytes", "bytes a sample and view", "time", "images/s"]
    print_table(columns, [[str(out), *row, duration(result.seconds), rate]])
    typer.echo(f'\nNext, with the same recipe and settings: deit train "{data}" --teacher "{out}"')
