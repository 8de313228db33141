"""``deit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deit.cli.common import EmaOption, JsonOption, ModelArgument, RevisionOption, print_json, print_table


def export(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="The bundle's directory; by default below exports/, with a name of its own."),
    ] = None,
    to: Annotated[
        Literal["openvino", "onnx", "torch"] | None,
        typer.Option(help="Whose graph to write; the first of these that is installed by default."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "int8"], typer.Option(help="Of the matrix products; int8 needs --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images like those to be answered, labeled or not; what the bundle is checked on."),
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="How many images to compare on, at most.")] = 500,
    crop: Annotated[
        Literal["keep", "squash", "pad"] | None, typer.Option(help="How an image fits the input; the model's own by default.")
    ] = None,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model for fast answers, once they are the model's own on real images; `deit predict` takes the bundle."""
    from deit.export.export import export as run

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

    def mib(which: str) -> str:
        return f"{result.bundle.facts.report['bytes'][which] / 2**20:,.1f}"

    facts = result.bundle.facts
    rows = [
        [f"{name} {precision}", f"{parity.agreement:.2%}", f"{parity.error:.2g}", f"{result.speeds[name]:,.0f}", mib("after")]
        for name, parity in result.parities.items()
    ]
    typer.echo(f"Compared on {facts.report['compared_on']}:")
    before = ["torch fp32, before", "", "", f"{result.speeds['before']:,.0f}", mib("before")]
    print_table(["", "same answer", "difference of logits", "images/s", "MiB"], [before, *rows])
    if facts.kept:
        typer.echo(f"\nLeft in higher precision: {', '.join(facts.kept)}")
    typer.echo(f"\nBundle: {result.bundle.path}")
