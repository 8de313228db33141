"""``deit predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.common import (
    CropOption,
    DeviceOption,
    EmaOption,
    JsonOption,
    MaxPixelsOption,
    ModelOrBundleArgument,
    RevisionOption,
    RuntimeOption,
    image_files,
    print_json,
    print_table,
)
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.inference.runtimes import PerformanceHint

STANDARD_INPUT = "-"
MIN_THROUGHPUT_IMAGES = 16  # with fewer, the start-up cost of a runtime that is tuned for throughput does not pay


def predict(
    model: ModelOrBundleArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print.")] = 3,
    crop: CropOption = None,
    runtime: RuntimeOption = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Decode images bit for bit as in evaluation. Slower; predictions rarely differ.")
    ] = False,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    _max_pixels: MaxPixelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images. Unreadable images are reported in their row, and the exit code is 1."""
    items, names = read_inputs(images)

    from deit.inference.predictor import Predictor
    from deit.system.malloc import retain_freed_memory

    retain_freed_memory()
    performance_hint: PerformanceHint = "latency" if len(items) < MIN_THROUGHPUT_IMAGES else "throughput"
    predictor = Predictor.from_pretrained(
        model, device, crop, runtime=runtime, performance_hint=performance_hint, exact=exact, ema=ema, revision=revision
    )
    predictions = predictor(items, top, names)
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        rows = []
        for prediction in predictions:
            pairs = zip(prediction.labels, prediction.probabilities, strict=True)
            text = ", ".join(f"{name} {probability:.1%}" for name, probability in pairs)
            rows.append([prediction.image, text or prediction.error])
        print_table(["image", "prediction"], rows)
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


def read_inputs(images: list[str]) -> tuple[list[bytes | Path], list[str]]:
    """Returns files, the image files below folders and the bytes of standard input, and a name for each.

    Raises:
        UserError: a path does not exist, a folder contains no images, or standard input is empty.
    """
    from deit.images.decoding import MAX_FILE_BYTES

    items: list[bytes | Path] = []
    names: list[str] = []
    for image in images:
        if image == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
            if not content:
                raise UserError("Standard input is empty", "pipe an image file into it")
            items.append(content)
            names.append("standard input")
            continue
        files = image_files(Path(image))
        items += files
        names += [str(file) for file in files]
    return items, names
