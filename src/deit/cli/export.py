"""``deit export``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deit.cli.common import (
    CropOption,
    EmaOption,
    MaxPixelsOption,
    ModelArgument,
    RevisionOption,
)
from deit.cli.output import Column, Output, print_json, with_output
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.export.export import ExportResult
    from deit.export.web import WebExport

COLUMNS = (
    Column("", name="model"),
    Column("same prediction", "{:.2%}", "agreement"),
    Column("logit error", "{:.2g}", "logit_error"),
    Column("images/s", "{:,.0f}", "images_per_second"),
    Column("MiB", "{:,.1f}", "mib"),
)
WEB_COLUMNS = (
    Column("", name="model"),
    Column("same prediction", "{:.2%}", "agreement"),
    Column("ms to decode and resize", "{:,.1f}", "preprocessing_ms"),
    Column("ms to run", "{:,.1f}", "model_ms"),
    Column("MiB", "{:,.1f}", "mib"),
)


@with_output
def export(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the export. Default: exports/NAME-FORMAT-PRECISION, or exports/NAME-web."),
    ] = None,
    to: Annotated[
        Literal["openvino", "onnx", "torch", "web"] | None,
        typer.Option(
            help="Graph format, or web: a page that runs in the browser. Default: the first whose libraries are installed."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "int8"] | None,
        typer.Option(help="Precision of the matrix products; int8 needs --calibrate. Default: fp32; of a page int8."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images, labeled or not, to calibrate int8 on and to compare predictions on."),
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="Maximum number of images to compare predictions on.")] = 500,
    crop: CropOption = None,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Export a model for fast inference; the export is kept only if its predictions match the model's."""
    options: dict[str, Any] = {
        "calibrate": calibrate,
        "images": images,
        "crop": crop,
        "ema": ema,
        "revision": revision,
        "overwrite": overwrite,
    }
    if to == "web":
        if precision not in (None, "int8"):
            raise UserError(f"A web export is in int8, not in {precision}", "leave --precision out")
        from deit.export.web import export_web

        _print_web_export(export_web(model, out, **options), output)
    else:
        from deit.export.export import export_model

        _print_bundle(export_model(model, out, to, precision or "fp32", **options), output)


def _print_bundle(result: ExportResult, output: Output) -> None:
    if output.as_json:
        print_json(result.to_dict())
        return
    metadata = result.bundle.metadata
    size_before, size_after = (metadata.report["bytes"][key] / 2**20 for key in ("before", "after"))
    rows = [
        [f"{name} {metadata.precision}", parity.agreement, parity.error, result.speeds[name], size_after]
        for name, parity in result.parities.items()
    ]
    output.line(f"Compared on {metadata.report['compared_on']}:")
    original = ["torch fp32, original", None, None, result.speeds["before"], size_before]
    output.table(COLUMNS, [original, *rows])
    _print_kept(metadata.kept, output)
    output.line(f"\nBundle: {result.bundle.path}")


def _print_web_export(result: WebExport, output: Output) -> None:
    if output.as_json:
        print_json(result.to_dict())
        return
    report = result.report
    sizes, milliseconds = report["bytes"], report["milliseconds"]
    output.line(f"Compared on {report['compared_on']}:")
    original = ["torch fp32, original", None, None, None, sizes["before"] / 2**20]
    page = [f"{report['browser']} int8", report["agreement"], milliseconds["preprocessing"], milliseconds["model"]]
    output.table(WEB_COLUMNS, [original, [*page, sizes["total"] / 2**20]])
    _print_kept(report["kept"], output)
    parts = {"graph": "graph", "runtime": "ONNX Runtime", "page": "page"}
    output.line(f"\nSize: {', '.join(f'{title} {sizes[part] / 2**20:.1f} MiB' for part, title in parts.items())}")
    output.line(f"To try it: python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(result.path))}")
    output.line(f"Page: {result.path}")


def _print_kept(kept: Sequence[str], output: Output) -> None:
    if kept:
        output.line(f"\nKept in higher precision: {', '.join(kept)}")
