"""``deit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deit.cli.common import (
    CropOption,
    EmaOption,
    JsonOption,
    MaxPixelsOption,
    ModelArgument,
    RevisionOption,
    print_json,
    print_table,
)


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
    as_json: JsonOption = False,
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
    if as_json:
        print_json(result.to_dict())
        return

    metadata = result.bundle.metadata
    size_before, size_after = (f"{metadata.report['bytes'][key] / 2**20:,.1f}" for key in ("before", "after"))
    rows = [
        [f"{name} {precision}", f"{parity.agreement:.2%}", f"{parity.error:.2g}", f"{result.speeds[name]:,.0f}", size_after]
        for name, parity in result.parities.items()
    ]
    typer.echo(f"Compared on {metadata.report['compared_on']}:")
    original = ["torch fp32, original", "", "", f"{result.speeds['before']:,.0f}", size_before]
    print_table(["", "same prediction", "logit error", "images/s", "MiB"], [original, *rows])
    if metadata.kept:
        typer.echo(f"\nKept in higher precision: {', '.join(metadata.kept)}")
    typer.echo(f"\nBundle: {result.bundle.path}")
