"""``deit recipe``."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from deit.cli.common import JsonOption, SetOption, print_json, recipe_settings

app = typer.Typer(help="List and show training recipes.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """List and show training recipes."""


@app.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes and what each is for."""
    from deit.recipes.presets import RECIPES

    purposes = {name: (inspect.getdoc(make) or "").partition("\n")[0] for name, make in RECIPES.items()}
    if as_json:
        print_json(purposes)
        return
    width = max(map(len, purposes)) + 2
    for name, purpose in purposes.items():
        typer.echo(f"{name:<{width}}{purpose}")


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
            typer.echo("".join(f"# {line}".rstrip() + "\n" for line in (inspect.getdoc(RECIPES[name]) or "").splitlines()))
        typer.echo(resolved.to_toml(), nl=False)
