"""``deit predict``."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
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
from deit.cli.output import Column, Output, print_json, with_output
from deit.errors import UserError
from deit.system.progress import duration

if TYPE_CHECKING:
    from deit.inference.predict_files import Engine, Images
    from deit.inference.predictor import Prediction, Predictor
    from deit.inference.ray_engine import RayEngine

STANDARD_INPUT = "-"
MIN_THROUGHPUT_IMAGES = 16  # with fewer, the start-up cost of a runtime that is tuned for throughput does not pay


@with_output
def predict(
    model: ModelOrBundleArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, folders, or - for standard input; with --out also shards."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes per image.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help="Table to write instead: .parquet, .csv or .jsonl. After a kill, the same command goes on."),
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option(help="With --out: a new folder that gets links to the images, in a folder per class.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="With --out: predict on this machine, or on those of a Ray cluster ($RAY_ADDRESS)."),
    ] = "local",
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
    if sort_into is not None and out is None:
        raise UserError("--sort-into links the images of a table", "pass --out, too")
    if engine == "ray" and out is None:
        raise UserError("--engine ray predicts the images of a table", "pass --out, too")
    job = None if out is None else table_job(images, out, sort_into)
    inputs = read_inputs(images) if job is None else []

    from deit.inference.predictor import Prediction, Predictor
    from deit.system.malloc import retain_freed_memory

    retain_freed_memory()
    readable = [row for row in inputs if not row.problem]
    is_short = len(readable if job is None else job.images.names) < MIN_THROUGHPUT_IMAGES
    arguments: dict[str, Any] = {
        "name": model,
        "device": device,
        "crop": crop,
        "runtime": runtime,
        "precision": precision,
        "performance_hint": "latency" if is_short else "throughput",
        "exact": exact,
        "ema": ema,
        "revision": revision,
    }
    predictor = Predictor.from_pretrained(**arguments)
    if job is not None:
        _predict_table(predictor, job, top, None if engine == "local" else ray_engine(predictor, arguments), output)
        return
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
class TableJob:
    """The images of a table.

    Attributes:
        out: the table.
        images: its images.
        sort_into: folder of links to the images; None makes none.
    """

    out: Path
    images: Images
    sort_into: Path | None


def table_job(images: list[str], out: Path, sort_into: Path | None) -> TableJob:
    """Lists the images of a table: of files and folders, or of a packed data set.

    Raises:
        UserError: an argument gives no image, or the table cannot be written.
    """
    from deit.data.datasets.shards import is_packed
    from deit.inference.predict_files import ImageFiles, PackedImages, check_new_table
    from deit.inference.prediction_table import table_format

    if STANDARD_INPUT in images:
        raise UserError("Standard input has no path for a table", "pass files or folders, or leave out --out")
    table_format(out, 1)
    check_new_table(out)
    if not any(map(is_packed, images)):
        return TableJob(out, ImageFiles([str(file) for image in images for file in _files(image)]), sort_into)
    if len(images) > 1:
        raise UserError("A packed data set makes a table of its own", "pass it alone")
    if sort_into is not None:
        raise UserError("The images of a packed data set are no files to link", "leave out --sort-into")
    return TableJob(out, PackedImages(images[0]), None)


def ray_engine(predictor: Predictor, arguments: dict[str, Any]) -> RayEngine:
    """Returns the engine that predicts on Ray.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    from deit.inference.ray_engine import RayEngine

    return RayEngine(predictor, arguments)


def _predict_table(predictor: Predictor, job: TableJob, top: int, engine: Engine | None, output: Output) -> None:
    from deit.inference.predict_files import predict_files

    result = predict_files(predictor, job.images, job.out, top, engine=engine, sort_into=job.sort_into)
    rate = (result.images - result.resumed) / result.seconds
    if output.as_json:
        print_json({**asdict(result), "path": str(result.path), "images_per_second": rate})
    else:
        columns: list[Column | str] = [
            *("table", Column("images", "{:,}"), Column("unreadable", "{:,}"), Column("predicted before", "{:,}", "resumed")),
            *(Column("time", duration, "seconds"), Column("images/s", "{:,.0f}", "images_per_second")),
        ]
        row = [str(result.path), result.images, result.unreadable, result.resumed, result.seconds, rate]
        output.table(columns, [row])
    if result.unreadable:
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
    from deit.inference.prediction_table import column_names, row_values

    count = max(len(prediction.labels) for prediction in predictions)
    return column_names(count), [row_values(prediction, count) for prediction in predictions]
