"""``deit replay``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import DeviceOption, WorkersOption
from deit.cli.output import Column, Output, print_json, with_output

LARGEST_GRADIENTS = 10
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of deit train, pretrain or teacher train.")]


@with_output
def replay(
    run: RunArgument,
    epoch: Annotated[int, typer.Option(min=1, help="Epoch, counted from 1 as in the log.")],
    step: Annotated[int, typer.Option(min=1, help="Step within the epoch, counted from 1.")],
    out: Annotated[Path | None, typer.Option(help="Image file for the batch. Default: RUN-epoch-E-step-N.png.")] = None,
    data: Annotated[str | None, typer.Option(help="Location of the data set, if it has moved.")] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    *,
    output: Output,
) -> None:
    """Repeat a step of a run: its images, losses and gradients, equal bit by bit."""
    from deit.training.replay import replay as repeat

    path = out or Path(f"{run.resolve().name}-epoch-{epoch}-step-{step}.png")
    result = repeat(run, epoch, step, data=data, device=device, workers=workers)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.sheet.save(path, "PNG")
    if output.as_json:
        print_json({**result.to_dict(), "images": str(path)})
        return
    losses = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in result.losses.items())
    output.line(f"Epoch {epoch}, step {step}, learning rate {result.lr:.4g}: {losses}")
    output.line(f"Gradient norm {result.gradient_norm:.6g}")
    output.line()
    norms = result.gradient_norms
    largest = sorted(norms.items(), key=lambda item: -math.inf if math.isnan(item[1]) else -item[1])[:LARGEST_GRADIENTS]
    if output.for_people:
        output.table(["parameter", Column("gradient norm", "{:.4g}")], largest, "Largest gradients")
        output.line()
    rows = [[sample.position, sample.index, sample.repeat, sample.label, sample.name] for sample in result.samples]
    output.table(["position", "index", "repeat", "class", "image"], rows, f"{len(rows)} samples, in {path}")
