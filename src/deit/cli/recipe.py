"""``deit recipe``."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from deit.cli.common import SetOption, recipe_settings
from deit.cli.output import JsonOption, Output, print_json, print_line, with_output

app = typer.Typer(help="List and show training recipes.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """List and show training recipes."""


@app.command("list")
@with_output
def list_recipes(*, output: Output) -> None:
    """List the recipes and what each is for."""
    from deit.recipes.presets import RECIPES

    purposes = {name: (inspect.getdoc(make) or "").partition("\n")[0] for name, make in RECIPES.items()}
    if output.as_json:
        print_json(purposes)
        return
    output.table(["recipe", "purpose"], list(purposes.items()))


@app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or a TOML file.")],
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a recipe as TOML, which `deit train --recipe` accepts."""
    from deit.recipes.presets import RECIPES, get_recipe

    resolved = get_recipe(name).with_settings(recipe_settings(assignments, {}))
    if as_json:
        print_json(resolved.model_dump(mode="json"))
    else:
        if name in RECIPES:
            print_line("".join(f"# {line}".rstrip() + "\n" for line in (inspect.getdoc(RECIPES[name]) or "").splitlines()))
        print_line(resolved.to_toml().removesuffix("\n"))
