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
    from deit.inference.choice import describe_machine

    files = [] if images is None else image_files(images)
    figures = run(model, device, [runtime] if runtime else [], files, seconds)
    machine = describe_machine()
    if as_json:
        print_json({"machine": machine, "runtimes": [row.to_dict() for row in figures]})
        return
    typer.echo(f"{machine['processor']}, {machine['cores']} cores; median of repeated measurements")
    rows = []
    for row in figures:
        batch, rate = row.best
        rows.append(
            [
                f"{row.runtime} {row.precision}, {row.device}",
                "{:.1f}, {:.1f}".format(*row.latency_ms),
                "{:.1f}, {:.1f}".format(*row.file_latency_ms),
                f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f}) by {batch}",
                "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}",
                f"{row.files_per_second.median:,.0f}",
                f"{row.load_seconds:.1f}",
                f"{row.steady_mib:,.0f}, {row.peak_mib:,.0f}",
            ]
        )
    header = ["", "ms an image (p50, p99)", "ms a file", "images/s", "of peak", "files/s", "s to load", "MiB (steady, peak)"]
    print_table(header, rows)
