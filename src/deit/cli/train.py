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
    print_result,
    recipe_settings,
    refuse_two_shapes,
)

TEACHER_HELP = "A directory of `deit teacher train` or `store`, any classifier's directory or hub name, or a timm name."


def train(
    data: RunDataArgument = None,
    init: InitOption = None,
    teacher: Annotated[str | None, typer.Option(help=TEACHER_HELP)] = None,
    teacher_weights: TeacherWeightsOption = None,
    recipe: RecipeOption = None,
    model: ModelOption = None,
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
    """Train a classifier on a folder of images: with --teacher a distilled one, else from the labels alone."""
    from deit.training.run import train as run

    shortcuts = {
        "model.variant": model,
        "model.image_size": image_size,
        "epochs": epochs,
        "minutes": minutes,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = recipe_settings(assignments, shortcuts)
    refuse_two_shapes(init, model)
    check_resume(resume, settings, recipe, init, teacher, teacher_weights, out)
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
    print_result(result, as_json, f"Model:  {result.directory / 'best'}", f"Report: {result.directory / 'report.html'}")
