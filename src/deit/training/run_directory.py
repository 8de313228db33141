"""Creates and reopens run directories."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from deit.data.opening import absolute_name, short_name
from deit.errors import CheckpointError, RecipeError
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.system.files import RECIPE_NAME, RUN_NAME, check_writable, json_text, read_json, write_files
from deit.system.locking import is_unused
from deit.system.replacing import shortened


def new_run_directory(out: str | Path | None, data: str, recipe_name: str) -> Path:
    """Returns the directory of a new run, which is created when training starts.

    Args:
        out: the directory; None chooses a new one below ``runs``.
        data: the data set, for the name.
        recipe_name: for the name.

    Raises:
        RecipeError: ``out`` is in use.
        UserError: the directory cannot be created.
    """
    if out is not None:
        directory = Path(out)
        if directory.exists() and not is_unused(directory):
            raise RecipeError(f"{directory} exists already", "pass another --out, or --resume to resume the run in it")
    else:
        stem = Path("runs") / shortened(f"{short_name(data)}-{recipe_name}")
        candidates = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1_000_000))
        directory = next(path for path in candidates if not path.exists())
    check_writable(directory)
    return directory


def read_run(directory: Path, data: str | Path | None = None) -> tuple[Recipe, RunSettings]:
    """Reads recipe and settings of an existing run.

    Args:
        directory: the run directory.
        data: location of the data set, if it has moved.

    Raises:
        CheckpointError: it is not a run directory, or its files are corrupt.
    """
    path = directory / RUN_NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a run directory", "pass the directory of an earlier `deit train`")
    content = read_json(path)
    if data is not None:
        content["data"] = absolute_name(data)
    try:
        content["extended"] = tuple((int(done), int(planned)) for done, planned in content.get("extended", ()))
        settings = RunSettings(**content)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is corrupt", "train again") from error
    return Recipe.load(directory / RECIPE_NAME), settings


def write_run(directory: Path, recipe: Recipe, settings: RunSettings) -> None:
    """Writes recipe and settings, creating the directory if necessary."""
    recipe_bytes, settings_bytes = recipe.to_toml().encode(), json_text(asdict(settings)).encode()
    write_files({directory / RECIPE_NAME: recipe_bytes, directory / RUN_NAME: settings_bytes})
