"""The ``deit`` program.

Exit codes: 0 success, 1 the work failed, 2 wrong use, 130 interrupted. An error is one line on standard error.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

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
from deit.system.progress import print_status
from deit.system.terminal import configure_streams

app = typer.Typer(
    name="deit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(requested: bool) -> None:
    """Prints the version and exits, if ``--version`` is given."""
    if requested:
        typer.echo(f"deit {version('deit')}")
        raise typer.Exit


@app.callback()
def configure(
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, distill, evaluate and export small vision transformers (DeiT) on your own images."""
    from deit.images.decoding import configure_pillow

    configure_pillow()


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
    """Runs the program: the entry point of ``deit``."""
    configure_streams()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, so that a failure has an exit code
    except DeiTError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has exited
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
            sys.exit(0)
        prefix = f"{error.filename}: " if error.filename else ""
        _fail(f"{prefix}{error.strerror or error}.", 1)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)


def _fail(message: str, code: int) -> NoReturn:
    """Prints an error and exits."""
    print_status(f"deit: {message}")
    sys.exit(code)
