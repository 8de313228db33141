"""``deit predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deit.cli.common import (
    DeviceOption,
    EmaOption,
    JsonOption,
    ModelOrBundleArgument,
    RevisionOption,
    RuntimeOption,
    image_files,
    print_json,
    print_table,
)
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.inference.runtimes import Work

STANDARD_INPUT = "-"
FEW = 16  # images, for which it is not worth while to start for many


def predict(
    model: ModelOrBundleArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, or - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    crop: Annotated[
        Literal["keep", "squash", "pad"] | None, typer.Option(help="How an image fits the input; the model's own by default.")
    ] = None,
    runtime: RuntimeOption = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read files to the last bit as evaluation does; slower, rarely another answer.")
    ] = False,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Name what is in images. Unreadable ones get an error in their place, and the exit code is 1."""
    items, names = _inputs(images)

    from deit.inference.predictor import Predictor

    work: Work = "latency" if len(items) < FEW else "throughput"
    predictor = Predictor.from_pretrained(
        model, device, crop, runtime=runtime, work=work, exact=exact, ema=ema, revision=revision
    )
    predictions = predictor(items, top, names)
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        rows = []
        for prediction in predictions:
            answers = zip(prediction.labels, prediction.probabilities, strict=True)
            text = ", ".join(f"{name} {share:.1%}" for name, share in answers)
            rows.append([prediction.image, text or prediction.error])
        print_table(["image", "answer"], rows)
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


def _inputs(images: list[str]) -> tuple[list[bytes | Path], list[str]]:
    """Files, the images below folders, and standard input, with what to call each.

    Raises:
        UserError: a path that does not exist, a folder without images, or no bytes on standard input.
    """
    from deit.images.decoding import MAX_FILE_BYTES

    items: list[bytes | Path] = []
    names: list[str] = []
    for image in images:
        path = Path(image)
        if image == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
            if not content:
                raise UserError("Standard input holds no bytes", "pipe an image file into it")
            items.append(content)
            names.append("standard input")
            continue
        found = image_files(path)
        items += found
        names += [str(file) for file in found]
    return items, names
