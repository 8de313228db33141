"""``deit teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import (
    STARTED,
    DataArgument,
    RunOptions,
    TeacherClassesOption,
    TeacherWeightsOption,
    TrainDataArgument,
    VariantOption,
    check_init_shape,
    check_one_process,
    default_recipe,
    print_result,
    with_run_options,
)
from deit.cli.output import Column, Output, print_json, with_output

app = typer.Typer(help="Train a teacher for distillation, or cache its predictions.", no_args_is_help=True)


@app.callback()
def teacher() -> None:
    """Train a teacher for distillation, or cache its predictions."""


@app.command("train")
@with_output
@with_run_options("shard")
def train(
    data: TrainDataArgument = None,
    arch: Annotated[str | None, typer.Option(help="timm architecture, such as regnety_004.")] = None,
    *,
    options: RunOptions,
    output: Output,
) -> None:
    """Train a convolutional teacher; pass its run directory to `deit train --teacher`."""
    from deit.training.run import train as run

    settings = options.settings({"model.architecture": arch})
    check_init_shape(options.init, arch, "--arch")
    options.check_resume()
    result = run(
        data,
        options.recipe or ("digits-convnet" if data == "digits" else "convnet"),
        settings=settings,
        compiled=options.compiled,
        started=STARTED,
        **options.training_arguments(),
    )
    print_result(result, output, f'Next: deit train "{data or "DATA"}" --teacher "{result.directory}"')


@app.command("cache")
@with_output
@with_run_options("minutes", "out", "resume", "checkpoint_minutes", "track", "compiled", "shard")
def cache(
    data: DataArgument,
    teacher: Annotated[str, typer.Option(help="Directory or hub name of a classifier, or a timm name.")],
    out: Annotated[Path, typer.Option(help="Directory of the cache; an unfinished cache is resumed.")],
    views: Annotated[
        int | None, typer.Option(min=1, help="Number of views (augmented passes over the data). Default: one per epoch.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of class probabilities to keep per sample, for soft distillation.")
    ] = None,
    features: Annotated[
        bool | None,
        typer.Option(
            "--features/--no-features",
            help="Store feature maps. Default: if the recipe distills them and the teacher has them.",
        ),
    ] = None,
    teacher_weights: TeacherWeightsOption = None,
    teacher_classes: TeacherClassesOption = "name",
    model: VariantOption = None,
    *,
    options: RunOptions,
    output: Output,
) -> None:
    """Cache a teacher's predictions; train with the same recipe and --teacher CACHE."""
    check_one_process("teacher cache")
    from deit.distillation.build_cache import build_cache as run
    from deit.system.progress import duration

    result = run(
        data,
        options.recipe or default_recipe(data, distilled=True, init=options.init is not None),
        teacher=teacher,
        out=out,
        views=views,
        top_k=top_k,
        features=features,
        teacher_weights=teacher_weights,
        teacher_classes=teacher_classes,
        settings=options.settings({"model.variant": model}),
        **options.shared_arguments(),
    )
    if output.as_json:
        print_json(result.to_dict())
        return
    columns: list[Column | str] = [
        "cache",
        Column("samples", "{:,}"),
        "views",
        Column("bytes", "{:,}"),
        Column("bytes per sample and view", name="bytes_per_sample"),
        Column("time", duration, "seconds"),
        Column("images/s", "{:,.0f}", "images_per_second"),
    ]
    sizes = [result.images, result.views, result.bytes, result.bytes_per_sample]
    output.table(columns, [[str(out), *sizes, result.seconds, result.images_per_second]])
    output.line(f'\nNext, with the same recipe and settings: deit train "{data}" --teacher "{out}"')
