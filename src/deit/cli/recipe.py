"""``deit recipe``."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from deit.cli.common import JsonOption, SetOption, print_json, recipe_settings

app = typer.Typer(help="Recipes: how a model is trained.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """Recipes: how a model is trained."""


@app.command("list")
def show_all(as_json: JsonOption = False) -> None:
    """Every recipe, and what it is for."""
    from deit.recipes.presets import RECIPES

    purposes = {name: (inspect.getdoc(make) or "").partition("\n")[0] for name, make in RECIPES.items()}
    if as_json:
        print_json(purposes)
        return
    width = max(map(len, purposes)) + 2
    for name, purpose in purposes.items():
        typer.echo(f"{name:<{width}}{purpose}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a TOML file.")],
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a recipe is for, and every value of it, as `deit train --recipe` takes it."""
    from deit.recipes.presets import RECIPES, get_recipe

    chosen = get_recipe(name).with_settings(recipe_settings(assignments, {}))
    if as_json:
        print_json(chosen.model_dump(mode="json"))
    else:
        if name in RECIPES:
            typer.echo("".join(f"# {line}".rstrip() + "\n" for line in (inspect.getdoc(RECIPES[name]) or "").splitlines()))
        typer.echo(chosen.to_toml(), nl=False)
