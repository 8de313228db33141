"""``deit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deit.cli.common import (
    EmaOption,
    ImageSizeOption,
    JsonOption,
    ModelArgument,
    RevisionOption,
    image_sides,
    print_json,
    print_table,
)


def convert(
    model: ModelArgument,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A directory; for the authors' format a .pth file.")],
    to: Annotated[
        Literal["transformers", "timm", "authors"] | None,
        typer.Option(help="The format to write; by DST's ending when left out: .pth is the authors', else transformers'."),
    ] = None,
    ema: EmaOption = False,
    distillation: Annotated[
        Literal["drop", "new"] | None,
        typer.Option(help="drop: a plain model of a distilled one. new: a distilled model of a plain one, to be trained."),
    ] = None,
    image_size: ImageSizeOption = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, where weights alone do not tell and they are not 64 wide.")
    ] = None,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in another project's format, once that project's program gives the same logits with it."""
    arguments: dict[str, Any] = {} if heads is None else {"num_attention_heads": heads}
    if image_size is not None:
        sides = image_sides(image_size)
        arguments["image_size"] = tuple(sides) if isinstance(sides, list) else sides
    if revision is not None:
        arguments["revision"] = revision

    from deit.export.conversion import convert as run

    result = run(model, destination, to, ema=ema, distillation=distillation, overwrite=overwrite, **arguments)
    if as_json:
        print_json(result.to_dict())
        return
    typer.echo(f"{result.source} ({result.layout}) -> {result.destination} ({result.format}), {result.architecture}")
    rows = [[name, f"{difference:.2e}", f"{result.largest:.3g}"] for name, difference in result.differences.items()]
    if result.epsilon_shift:
        shift = f"{result.epsilon_shift:.1e}"
        typer.echo(f"layer_norm_eps is 1e-6 in that format and was 1e-12: this alone moves logits by {shift}.")
    print_table(["read back by", "largest difference of logits", "largest logit"], rows)
