"""``deit benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.common import (
    DeviceOption,
    MaxPixelsOption,
    ModelOrBundleArgument,
    RuntimeOption,
    image_files,
)
from deit.cli.output import Output, print_json, with_output

if TYPE_CHECKING:
    from deit.inference.benchmark import RuntimeBenchmark

COLUMNS = (
    "runtime",
    "precision",
    "device",
    "latency_p50_ms",
    "latency_p99_ms",
    "file_latency_p50_ms",
    "file_latency_p99_ms",
    "batch_size",
    "images_per_second",
    "images_per_second_p25",
    "images_per_second_p75",
    "share_of_peak",
    "files_per_second",
    "load_seconds",
    "steady_mib",
    "peak_mib",
)


@with_output
def benchmark(
    model: ModelOrBundleArgument,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Image files to measure with. Default: synthetic photos of 500 x 375 pixels."),
    ] = None,
    runtime: RuntimeOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each measurement.")] = 2.0,
    device: DeviceOption = "auto",
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Measure latency, throughput and memory; `deit predict` then uses the fastest runtime."""
    from deit.inference.benchmark import benchmark as run
    from deit.inference.runtime_selection import describe_machine

    files = [] if images is None else image_files(images)
    results = run(model, device, [runtime] if runtime else [], files, seconds)
    machine = describe_machine()
    if output.as_json:
        print_json({"machine": machine, "runtimes": [row.to_dict() for row in results]})
        return
    if not output.for_people:
        output.table(COLUMNS, [_values(row) for row in results])
        return
    output.line(f"{machine['processor']}, {machine['cores']} cores; median of repeated measurements")
    rows = [
        ["ms per image (p50, p99)", *("{:.1f}, {:.1f}".format(*row.latency_ms) for row in results)],
        ["ms per file (p50, p99)", *("{:.1f}, {:.1f}".format(*row.file_latency_ms) for row in results)],
        ["images/s", *(f"{row.best[1].median:,.0f}" for row in results)],
        ["  quartiles", *(f"{row.best[1].low:,.0f} to {row.best[1].high:,.0f}" for row in results)],
        ["  batch size", *(f"{row.best[0]}" for row in results)],
        ["  share of matmul peak", *("" if row.share_of_peak is None else f"{row.share_of_peak:.0%}" for row in results)],
        ["files/s", *(f"{row.files_per_second.median:,.0f}" for row in results)],
        ["seconds to first prediction", *(f"{row.load_seconds:.1f}" for row in results)],
        ["MiB (steady, peak)", *(f"{row.steady_mib:,.0f}, {row.peak_mib:,.0f}" for row in results)],
    ]
    output.table(["", *(f"{row.runtime} {row.precision}, {row.device}" for row in results)], rows)


def _values(row: RuntimeBenchmark) -> list[Any]:
    """Returns a benchmark in the columns ``COLUMNS``."""
    batch_size, throughput = row.best
    return [
        row.runtime,
        row.precision,
        row.device,
        *row.latency_ms,
        *row.file_latency_ms,
        batch_size,
        throughput.median,
        throughput.low,
        throughput.high,
        row.share_of_peak,
        row.files_per_second.median,
        row.load_seconds,
        row.steady_mib,
        row.peak_mib,
    ]
