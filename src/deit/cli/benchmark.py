"""``deit benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import (
    DeviceOption,
    JsonOption,
    ModelOrBundleArgument,
    RuntimeOption,
    image_files,
    print_json,
    print_table,
)


def benchmark(
    model: ModelOrBundleArgument,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Image files to measure with; made photographs of 500 x 375 by default."),
    ] = None,
    runtime: RuntimeOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each figure.")] = 2.0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a model answers here, and remember it: `deit predict` takes the fastest runtime."""
    from deit.inference.benchmark import benchmark as run
    from deit.inference.runtime_selection import describe_machine

    files = [] if images is None else image_files(images)
    figures = run(model, device, [runtime] if runtime else [], files, seconds)
    machine = describe_machine()
    if as_json:
        print_json({"machine": machine, "runtimes": [row.to_dict() for row in figures]})
        return
    typer.echo(f"{machine['processor']}, {machine['cores']} cores; median of repeated measurements")
    rows = [
        ["ms an image (p50, p99)", *("{:.1f}, {:.1f}".format(*row.latency_ms) for row in figures)],
        ["ms a file (p50, p99)", *("{:.1f}, {:.1f}".format(*row.file_latency_ms) for row in figures)],
        ["images/s", *(f"{row.best[1].median:,.0f}" for row in figures)],
        ["  quartiles", *(f"{row.best[1].low:,.0f} to {row.best[1].high:,.0f}" for row in figures)],
        ["  images a call", *(f"{row.best[0]}" for row in figures)],
        ["  of a matrix product's rate", *("" if row.share_of_peak is None else f"{row.share_of_peak:.0%}" for row in figures)],
        ["files/s", *(f"{row.files_per_second.median:,.0f}" for row in figures)],
        ["seconds to the first answer", *(f"{row.load_seconds:.1f}" for row in figures)],
        ["MiB (steady, at most)", *(f"{row.steady_mib:,.0f}, {row.peak_mib:,.0f}" for row in figures)],
    ]
    print_table(["", *(f"{row.runtime} {row.precision}, {row.device}" for row in figures)], rows)
