"""``deit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from deit.cli.common import (
    EmaOption,
    ImageSizeOption,
    ModelArgument,
    RevisionOption,
    parse_image_size,
)
from deit.cli.output import Column, Output, print_json, with_output
from deit.errors import UserError

if TYPE_CHECKING:
    from deit.export.conversion import AdapterFormat, Format

COLUMNS = (
    Column("read by", name="read_by"),
    Column("largest logit difference", "{:.2e}", "largest_difference"),
    Column("largest logit", "{:.3g}", "largest_logit"),
)


@with_output
def convert(
    model: ModelArgument,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory, or a .pth file for the authors' format.")],
    to: Annotated[
        Literal["transformers", "timm", "authors", "peft-deit", "peft-transformers-4", "peft-transformers-5"] | None,
        typer.Option(
            help="Output format. Default: authors for a .pth file, transformers for a directory. "
            "peft-...: rename a LoRA adapter for the models of that library, instead of merging it."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model that a LoRA adapter of PEFT is merged into. Default: the one that it names.")
    ] = None,
    ema: EmaOption = False,
    distillation: Annotated[
        Literal["drop", "new"] | None,
        typer.Option(help="drop: remove the distillation token and head. new: add newly initialized ones, to be trained."),
    ] = None,
    image_size: ImageSizeOption = None,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of attention heads, for weights without a configuration if heads are not 64 wide."),
    ] = None,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model at DST.")] = False,
    *,
    output: Output,
) -> None:
    """Convert a model to another library's format and verify its logits with that library."""
    arguments: dict[str, Any] = {} if heads is None else {"num_attention_heads": heads}
    if image_size is not None:
        size = parse_image_size(image_size)
        arguments["image_size"] = tuple(size) if isinstance(size, list) else size
    if revision is not None:
        arguments["revision"] = revision

    from deit.export.conversion import convert as run
    from deit.export.conversion import convert_adapter

    if to is not None and to.startswith("peft-"):
        if ema or distillation or arguments or base:
            raise UserError("An adapter is renamed without its base model", "pass only the adapter, DST, --to and --overwrite")
        renamed = convert_adapter(model, destination, cast("AdapterFormat", to), overwrite=overwrite)
        if output.as_json:
            print_json(renamed.to_dict())
        elif output.for_people:
            output.line(f"{renamed.source} -> {renamed.destination} ({to}); weights differ by up to {renamed.difference:.2e}")
        else:
            output.table(["destination", "largest_difference"], [[str(renamed.destination), renamed.difference]])
        return
    result = run(
        model,
        destination,
        cast("Format | None", to),
        ema=ema,
        distillation=distillation,
        overwrite=overwrite,
        base=base,
        **arguments,
    )
    if output.as_json:
        print_json(result.to_dict())
        return
    output.line(f"{result.source} ({result.layout}) -> {result.destination} ({result.format}), {result.architecture}")
    rows = [[name, difference, result.largest_logit] for name, difference in result.differences.items()]
    if result.epsilon_shift:
        shift = f"{result.epsilon_shift:.1e}"
        output.line(f"The format implies layer_norm_eps 1e-6; the source has 1e-12. This changes logits by up to {shift}.")
    output.table(COLUMNS, rows)
