"""``deit pretrain``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from deit.cli.common import RunOptions, check_init_shape, with_run_options
from deit.cli.output import JsonOption, print_json, print_line

DATA_HELP = "Folder of images; labels are not needed. Not needed with --resume."


@with_run_options("minutes")
def pretrain(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP, show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Distilled model variant from `deit model list`.")] = None,
    as_json: JsonOption = False,
    *,
    options: RunOptions,
) -> None:
    """Pretrain with masked image modeling, without labels; continue with `deit train --init`."""
    from deit.training.run import pretrain as run

    settings = options.settings({"model.variant": model})
    check_init_shape(options.init, model)
    options.check_resume()
    result = run(
        data,
        options.recipe or "pretrain-mim",
        settings=settings,
        compiled=options.compiled,
        shard=options.shard,
        **options.training_arguments(),
    )
    if as_json:
        print_json({**asdict(result), "directory": str(result.directory)})
        return
    print_line(f"Best epoch: {result.epoch}, validation loss {result.loss:.4f} (mean absolute error of masked pixels)")
    print_line(f'\nNext: deit train DATA --init "{result.directory}"')
