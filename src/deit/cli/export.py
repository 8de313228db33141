"""``deit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deit.cli.common import (
    CropOption,
    EmaOption,
    MaxPixelsOption,
    ModelArgument,
    RevisionOption,
)
from deit.cli.output import Column, Output, print_json, with_output

COLUMNS = (
    Column("", name="model"),
    Column("same prediction", "{:.2%}", "agreement"),
    Column("logit error", "{:.2g}", "logit_error"),
    Column("images/s", "{:,.0f}", "images_per_second"),
    Column("MiB", "{:,.1f}", "mib"),
)


@with_output
def export(
    model: ModelArgument,
    out: Annotated[Path | None, typer.Option(help="Directory of the bundle. Default: exports/NAME-FORMAT-PRECISION.")] = None,
    to: Annotated[
        Literal["openvino", "onnx", "torch"] | None,
        typer.Option(help="Graph format. Default: the first of these whose libraries are installed."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "int8"], typer.Option(help="Precision of the matrix products; int8 needs --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images, labeled or not, to calibrate int8 on and to compare predictions on."),
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="Maximum number of images to compare predictions on.")] = 500,
    crop: CropOption = None,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Export a model for fast inference; the bundle is kept only if its predictions match the model's."""
    from deit.export.export import export_model as run

    result = run(
        model,
        out,
        to,
        precision,
        calibrate=calibrate,
        images=images,
        crop=crop,
        ema=ema,
        revision=revision,
        overwrite=overwrite,
    )
    if output.as_json:
        print_json(result.to_dict())
        return

    metadata = result.bundle.metadata
    size_before, size_after = (metadata.report["bytes"][key] / 2**20 for key in ("before", "after"))
    rows = [
        [f"{name} {precision}", parity.agreement, parity.error, result.speeds[name], size_after]
        for name, parity in result.parities.items()
    ]
    output.line(f"Compared on {metadata.report['compared_on']}:")
    original = ["torch fp32, original", None, None, result.speeds["before"], size_before]
    output.table(COLUMNS, [original, *rows])
    if metadata.kept:
        output.line(f"\nKept in higher precision: {', '.join(metadata.kept)}")
    output.line(f"\nBundle: {result.bundle.path}")
