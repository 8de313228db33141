"""``deit train``."""

from __future__ import annotations

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
    print_result,
    with_run_options,
)
from deit.cli.output import Output, with_output


@with_output
@with_run_options()
def train(
    data: TrainDataArgument = None,
    teacher: TeacherOption = None,
    teacher_weights: TeacherWeightsOption = None,
    teacher_classes: TeacherClassesOption = "name",
    model: VariantOption = None,
    *,
    options: RunOptions,
    output: Output,
) -> None:
    """Train an image classifier; with --teacher, by distillation."""
    from deit.training.run import train as run

    settings = options.settings({"model.variant": model})
    check_init_shape(options.init, model)
    options.check_resume(teacher_classes == "order")
    result = run(
        data,
        options.recipe or default_recipe(data, distilled=teacher is not None, init=options.init is not None),
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_classes=teacher_classes,
        settings=settings,
        compiled=options.compiled,
        shard=options.shard,
        started=STARTED,
        **options.training_arguments(),
    )
    model_line, report_line = f"Model:  {result.directory / 'best'}", f"Report: {result.directory / 'report.html'}"
    print_result(result, output, model_line, report_line)
