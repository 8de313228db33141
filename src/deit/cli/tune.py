"""``deit tune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.common import (
    STARTED,
    RunOptions,
    TeacherClassesOption,
    TeacherOption,
    TeacherWeightsOption,
    TrainDataArgument,
    VariantOption,
    check_init_shape,
    default_recipe,
    print_heads,
    result_dict,
    with_run_options,
)
from deit.cli.output import Column, Output, print_json, with_output
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.training.tuning import TuneResult


@with_output
@with_run_options("epochs", "minutes", "compiled", "shard")
def tune(
    data: TrainDataArgument = None,
    teacher: TeacherOption = None,
    minutes: Annotated[float, typer.Option(help="Time of the whole search.")] = 30.0,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Vary this recipe value: LOW..HIGH or A,B,C. May be repeated. Default: learning rate, regularization and "
            "augmentation.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates at most. Default: as many as the time allows.")] = None,
    teacher_weights: TeacherWeightsOption = None,
    teacher_classes: TeacherClassesOption = "name",
    model: VariantOption = None,
    *,
    options: RunOptions,
    output: Output,
) -> None:
    """Search for better recipe values: train many candidates for a short time, and the best ones to the end."""
    from deit.training.tuning import tune as run

    settings = options.settings({"model.variant": model})
    check_init_shape(options.init, model)
    if options.resume is not None and options.recipe is not None:
        raise UserError("A resumed search keeps its own recipe", "pass --resume without another")
    result = run(
        data,
        options.recipe or default_recipe(data, distilled=teacher is not None, init=options.init is not None),
        minutes=minutes,
        vary=vary or (),
        max_trials=trials,
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_classes=teacher_classes,
        settings=settings,
        started=STARTED,
        **options.training_arguments(),
    )
    _print_result(result, output)


def _print_result(result: TuneResult, output: Output) -> None:
    if output.as_json:
        trials = [asdict(trial) for trial in result.trials]
        print_json({"recipe": str(result.recipe), "trials": trials, **result_dict(result.run)})
        return
    columns: list[Column | str] = ["trial", "epochs", "finished", Column("validation top-1", "{:.2%}", "top1"), "values"]
    rows = [
        [
            *(trial.number, trial.epochs, "yes" if trial.finished else "no", trial.top1),
            ", ".join(f"{name}={value}" for name, value in trial.values.items()) or "the recipe as it is",
        ]
        for trial in result.trials
    ]
    output.table(columns, rows)
    print_heads(output, result.run.evaluation, result.run.split, result.run.teacher)
    output.line()
    output.line(f"Model:  {result.run.directory / 'best'}")
    output.line(f"Recipe: {result.recipe}, for `deit train --recipe`")
