"""What the verbs share: their options, and how results are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deit.errors import UserError
from deit.system.files import BEST_NAME

if TYPE_CHECKING:
    from deit.evaluation.evaluate import Evaluation
    from deit.training.run import TrainResult

DATA_HELP = "A folder of images, a manifest, hf:OWNER/NAME, or a name of `deit data list`."
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
RunDataArgument = Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP)]
RecipeOption = Annotated[str | None, typer.Option(help="A name of `deit recipe list`, or a TOML file.")]
ModelOption = Annotated[str | None, typer.Option(help="A name of `deit model list`.")]
TeacherWeightsOption = Annotated[str | None, typer.Option(help="A file with the weights of a timm teacher.")]
OutOption = Annotated[Path | None, typer.Option(help="The run's directory; a new one below runs/ by default.")]
ResumeOption = Annotated[Path | None, typer.Option(metavar="RUN", help="Go on in this run's directory.")]
InitOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Start from this checkpoint: a run, a model of any format, a hub name.")
]
ImageSizeOption = Annotated[
    str | None, typer.Option(metavar="PIXELS", help="Of the model's input: 384, or height x width as 256x192.")
]
EpochsOption = Annotated[int | None, typer.Option(help="Passes over the data.")]
MinutesOption = Annotated[float | None, typer.Option(help="Time for the training: epochs and open sizes are chosen to fit it.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images in an optimization step.")]
SeedOption = Annotated[int | None, typer.Option(help="Of every random draw.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any value of the recipe.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that make batches; by the cores by default.")]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave unreadable images out and count them.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a model directory or file of any format, a hub name, or a variant.")
]
ModelOrBundleArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A bundle of `deit export`, or a model as `deit train` and the hub have it.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
EmaOption = Annotated[bool, typer.Option("--ema", help="Take the average of the weights of a training checkpoint.")]
RuntimeOption = Annotated[
    Literal["openvino", "onnxruntime", "torch", "torch-compiled"] | None,
    typer.Option(help="What runs the model; what `deit info` names by default."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]


def default_recipe(data: str | None, distilled: bool, init: bool = False) -> str:
    """The recipe for a user who names none."""
    stem = "finetune-small-data" if init else "digits" if data == "digits" else "small-data"
    return f"{stem}-distilled" if distilled else stem


def check_resume(resume: Path | None, *others: object) -> None:
    """Refuse to change a run that is gone on with.

    Raises:
        UserError: there is another setting.
    """
    if resume is not None and any(others):
        raise UserError("A resumed run keeps its own recipe and teacher", "pass --resume without other settings")


def image_sides(text: str) -> int | list[int]:
    """``384`` -> one side for both, ``256x192`` -> height and width.

    Raises:
        UserError: neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) <= 5 for side in sides):
        raise UserError(f"--image-size {text!r} is no size", "write 384, or height x width as 256x192")
    return int(sides[0]) if len(sides) == 1 else [int(side) for side in sides]


def recipe_settings(assignments: Sequence[str] | None, shortcuts: Mapping[str, object]) -> dict[str, str]:
    """``--set`` values and the options that stand for one, as :meth:`Recipe.with_settings` takes them.

    Raises:
        UserError: an assignment without ``=``.
    """
    settings = {name: str(value) for name, value in shortcuts.items() if value is not None}
    if (size := settings.get("model.image_size")) is not None:
        settings["model.image_size"] = str(image_sides(size))
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} assigns nothing", "write NAME=VALUE, such as optimizer.lr=1e-3")
        settings[name.strip()] = value.strip()
    return settings


def image_files(path: Path) -> list[Path]:
    """A file itself, or the images below a folder, in order.

    Raises:
        UserError: there is no such path, or no image below it.
    """
    from deit.images.decoding import is_image_name

    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist", "check the path")
        return [path]
    found = sorted(Path(folder) / name for folder, _, files in os.walk(path) for name in files)
    found = [file for file in found if is_image_name(file)]
    if not found:
        raise UserError(f"{path} holds no images", "pass a folder with image files")
    return found


def refuse_two_shapes(init: str | None, shape: str | None, option: str = "--model") -> None:
    """A checkpoint brings its own shape.

    Raises:
        UserError: another shape is asked for beside it.
    """
    if init is not None and shape is not None:
        raise UserError(f"--init brings the model's shape and {option} names another", "leave one of them out")


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on standard output; all columns but the first are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))  # Text: a class's name is no markup
    Console().print(table)


def _printable(text: str) -> str:
    """Without what would steer the terminal: names come from files."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def print_heads(evaluation: Evaluation, part: str, teacher: Evaluation | None = None) -> None:
    """How each head did, the teacher first."""
    results = {} if teacher is None else {"teacher": teacher.answer}
    results |= evaluation.heads
    rows = [
        [name, f"{head.top1:.2%}", f"{head.top5:.2%}", f"{head.loss:.4f}", f"{head.calibration_error:.2%}"]
        for name, head in results.items()
    ]
    title = f"{part}, {evaluation.images:,} images, {evaluation.images_per_second:,.0f} images/s"
    print_table(["head", "top-1", "top-5", "loss", "calibration error"], rows, title)


def print_result(result: TrainResult, as_json: bool, *closing: str) -> None:
    """A finished run: JSON for a program, or how each head did and what to do next."""
    if as_json:
        print_json(result_dict(result.directory, result.part, result.evaluation, result.teacher))
        return
    print_heads(result.evaluation, result.part, result.teacher)
    typer.echo()
    for line in closing:
        typer.echo(line)


def result_dict(directory: Path, part: str, evaluation: Evaluation, teacher: Evaluation | None) -> dict[str, Any]:
    """A finished run, for a program."""
    content = {"run": str(directory), "model": str(directory / BEST_NAME), "part": part, **evaluation.to_dict()}
    return content if teacher is None else {**content, "teacher": teacher.to_dict()}
