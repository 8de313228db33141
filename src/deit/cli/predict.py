"""``deit predict``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deit.cli.common import (
    CropOption,
    DeviceOption,
    EmaOption,
    MaxPixelsOption,
    ModelOrBundleArgument,
    RevisionOption,
    RuntimeOption,
    image_files,
)
from deit.cli.output import Output, print_json, with_output
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.inference.predictor import Prediction
    from deit.inference.runtimes import PerformanceHint

STANDARD_INPUT = "-"
MIN_THROUGHPUT_IMAGES = 16  # with fewer, the start-up cost of a runtime that is tuned for throughput does not pay


@with_output
def predict(
    model: ModelOrBundleArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print.")] = 3,
    crop: CropOption = None,
    runtime: RuntimeOption = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(
            help="Precision of a model that is not a bundle; bf16 is faster where the hardware has it. Default: fp32."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Decode images bit for bit as in evaluation. Slower; predictions rarely differ.")
    ] = False,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Classify images. An image or folder that cannot be read is reported in its row, and the exit code is 1."""
    inputs = read_inputs(images)

    from deit.inference.predictor import Prediction, Predictor
    from deit.system.malloc import retain_freed_memory

    retain_freed_memory()
    readable = [row for row in inputs if not row.problem]
    performance_hint: PerformanceHint = "latency" if len(readable) < MIN_THROUGHPUT_IMAGES else "throughput"
    predictor = Predictor.from_pretrained(
        model,
        device,
        crop,
        runtime=runtime,
        precision=precision,
        performance_hint=performance_hint,
        exact=exact,
        ema=ema,
        revision=revision,
    )
    results = iter(predictor([row.content for row in readable], top, [row.name for row in readable]))
    predictions = [Prediction(row.name, error=row.problem) if row.problem else next(results) for row in inputs]
    if output.as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    elif output.for_people:
        output.table(["image", "prediction"], [[prediction.image, _text(prediction)] for prediction in predictions])
    else:
        output.table(*_wide_table(predictions))
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Input:
    """An image to classify.

    Attributes:
        name: its path, or ``standard input``.
        content: its path or its bytes.
        problem: error message if the image cannot be read; empty if the content is to be decoded.
    """

    name: str
    content: bytes | Path = b""
    problem: str = ""


def read_inputs(images: list[str]) -> list[Input]:
    """Returns files, the image files below folders and the bytes of standard input, in the order of the arguments.

    Raises:
        UserError: no argument gives an image. Single missing paths and empty folders are returned as problems.
    """
    inputs: list[Input] = []
    errors: list[UserError] = []
    for image in images:
        try:
            if image == STANDARD_INPUT:
                inputs.append(Input("standard input", _standard_input()))
            else:
                inputs += [Input(str(file), file) for file in _files(image)]
        except UserError as error:
            errors.append(error)
            inputs.append(Input("standard input" if image == STANDARD_INPUT else image, problem=str(error)))
    if len(errors) == len(inputs):
        raise errors[0]
    return inputs


def _files(image: str) -> list[Path]:
    path = Path(image)
    try:
        if any(letter in image for letter in "*?[") and not path.exists():
            raise UserError(f"No file matches {image}", "check the pattern")
        return image_files(path)
    except (OSError, ValueError) as error:  # such as a name that the file system does not allow
        if isinstance(error, UserError):
            raise
        raise UserError(f"Cannot read {image[:200]}", getattr(error, "strerror", None) or "check the path") from error


def _standard_input() -> bytes:
    from deit.images.decoding import MAX_FILE_BYTES

    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if not content:
        raise UserError("Standard input is empty", "pipe an image file into it")
    return content


def _text(prediction: Prediction) -> str:
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    return ", ".join(f"{name} {probability:.1%}" for name, probability in pairs) or prediction.error


def _wide_table(predictions: list[Prediction]) -> tuple[list[str], list[list[Any]]]:
    """Returns a table with one row per image: its classes and probabilities, most likely first, and its error."""
    count = max(len(prediction.labels) for prediction in predictions)
    columns = ["image", *(f"{name}_{rank}" for rank in range(1, count + 1) for name in ("class", "probability")), "error"]
    rows: list[list[Any]] = []
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        values: list[Any] = [value for pair in pairs for value in pair] or [None] * (2 * count)
        rows.append([prediction.image, *values, prediction.error or None])
    return columns, rows
