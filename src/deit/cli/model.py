"""``deit model``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from deit.cli.common import JsonOption, print_json, print_table

app = typer.Typer(help="The paper's models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """The paper's models."""


@app.command("list")
def show_all(as_json: JsonOption = False) -> None:
    """Every published model: its size and accuracy on ImageNet."""
    from deit.variants import VARIANTS

    if as_json:
        print_json([asdict(row) for row in VARIANTS.values()])
        return
    rows = [[row.name, f"{row.parameters / 1e6:.1f} M", f"{row.gmacs}", f"{row.top1}"] for row in VARIANTS.values()]
    print_table(["model", "parameters", "GMACs", "top-1"], rows)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A name of `deit model list`, or a model directory.")],
    as_json: JsonOption = False,
) -> None:
    """One model's shape."""
    from pathlib import Path

    from deit.config import config_from_dict
    from deit.files import read_json
    from deit.variants import variant

    if Path(name).is_dir():
        content = config_from_dict(read_json(Path(name) / "config.json")).to_dict()
    else:
        content = variant(name).config().to_dict()
    if as_json:
        print_json(content)
        return
    classes = content.pop("id2label")
    content.pop("label2id")
    rows = [[key, str(value)] for key, value in content.items()]
    print_table(["setting", "value"], [*rows, ["classes", str(len(classes))]])
