"""The ``deit`` program.

Exit codes: 0 success, 1 the work failed, 2 wrong use, 128 + n stopped by signal n (130 by Ctrl-C). An error is one line on
standard error.
"""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from deit.cli import (
    benchmark,
    convert,
    data,
    evaluate,
    explain,
    export,
    info,
    model,
    predict,
    pretrain,
    quickstart,
    recipe,
    replay,
    runs,
    serve,
    teacher,
    train,
    tune,
)
from deit.cli.common import check_one_process
from deit.cli.streams import discard_output, flush_output, open_standard_files, silence_output
from deit.errors import DeiTError, PeerError
from deit.system.home import ensure_home
from deit.system.openmp import limit_spinning
from deit.system.progress import print_error
from deit.system.signals import Terminated, exit_code, exit_on_signals
from deit.system.terminal import configure_streams
from deit.system.torchrun import is_main, rank

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


DISTRIBUTED_COMMANDS = ("train", "pretrain", "teacher", "evaluate")


@app.callback()
def configure(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, distill, evaluate and export small vision transformers (DeiT) on your own images."""
    from deit.images.decoding import configure_pillow

    if context.invoked_subcommand not in DISTRIBUTED_COMMANDS:
        check_one_process(str(context.invoked_subcommand))
    configure_pillow()


app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("pretrain")(pretrain.pretrain)
app.command("replay")(replay.replay)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("runs")(runs.runs)
app.command("explain")(explain.explain)
app.command("serve")(serve.serve)
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
    open_standard_files()
    configure_streams()
    ensure_home()
    limit_spinning()
    if not is_main():
        silence_output()
    try:
        with exit_on_signals():
            try:
                app()
            finally:
                flush_output()  # here, so that a failure has an exit code
    except PeerError as error:
        _fail(str(error), error.exit_code, is_shared=True)
    except DeiTError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        discard_output()
        sys.exit(0)
    except OSError as error:
        discard_output()  # what could not be written, such as to a full disk, would fail again at exit
        prefix = f"{error.filename}: " if error.filename else ""
        _fail(f"{prefix}{error.strerror or error}.", 1)
    except KeyboardInterrupt:
        _fail("interrupted.", exit_code(signal.SIGINT), is_shared=True)
    except Terminated as error:
        _fail(f"stopped by {signal.Signals(error.number).name}.", exit_code(error.number), is_shared=True)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("Memory ran out: pass a smaller batch size, a smaller image size, fewer --workers, or another --device.", 1)


def _fail(message: str, code: int, is_shared: bool = False) -> NoReturn:
    """Prints an error and exits. One that all processes of a run share is printed by the first.

    Ctrl-C again, while libraries clean up, ends the program quietly. SIGTERM and SIGHUP, which are often sent more than once,
    do not change the exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # no SIGHUP on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if is_main():
        print_error(f"deit: {message}")
    elif not is_shared:
        print_error(f"deit, process {rank()}: {message}")
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the CPU or of a GPU ran out. Compares names, since torch may not be loaded."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
