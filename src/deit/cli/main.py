"""``deit``: the program. A user's mistake is one sentence and exit code 2, failed work exit code 1."""

from __future__ import annotations

import sys

import typer

from deit.cli import (
    benchmark,
    convert,
    data,
    evaluate,
    export,
    info,
    model,
    predict,
    pretrain,
    quickstart,
    recipe,
    teacher,
    train,
)
from deit.errors import DeiTError

app = typer.Typer(
    name="deit",
    help="From a folder of images to a distilled vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("pretrain")(pretrain.pretrain)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("benchmark")(benchmark.benchmark)
app.command("info")(info.info)
app.command("convert")(convert.convert)
app.add_typer(teacher.app, name="teacher")
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
app.add_typer(model.app, name="model")


def run() -> None:
    """The entry point."""
    try:
        app()
    except DeiTError as error:
        print(f"deit: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output, `head` say, has seen enough
            sys.stderr.close()
            sys.exit(0)
        place = f"{error.filename}: " if error.filename else ""
        print(f"deit: {place}{error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("deit: stopped.", file=sys.stderr)
        sys.exit(130)
