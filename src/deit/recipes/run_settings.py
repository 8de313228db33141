"""What a run needs beside its recipe, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deit.data.opening import lasting, title
from deit.data.splits import VALIDATION_FRACTION
from deit.errors import CheckpointError, RecipeError
from deit.recipes.schema import Recipe
from deit.system.files import RECIPE_NAME, RUN_NAME, read_json


@dataclass(frozen=True)
class RunSettings:
    """What a run needs beside its recipe; kept in ``run.json`` so that a resume needs nothing but the directory.

    Attributes:
        data: as :func:`deit.data.opening.lasting` writes it.
        init: the checkpoint that training starts from, or None.
        teacher: as :meth:`Teacher.load` takes it, or None; likewise ``teacher_weights``.
        split_seed: by which a missing part of the data is set aside, ``validation_fraction`` of each class.
        skip_unreadable: leave unreadable images out and count them.
    """

    data: str
    init: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    split_seed: int = 0
    validation_fraction: float = VALIDATION_FRACTION
    skip_unreadable: bool = False


def resumed_run(directory: Path, data: str | Path | None) -> tuple[Path, Recipe, RunSettings]:
    if not (directory / RUN_NAME).is_file():
        raise CheckpointError(f"{directory} is no run directory", "pass the directory that an earlier `deit train` made")
    content = read_json(directory / RUN_NAME)
    if data is not None:
        content["data"] = lasting(data)
    try:
        run = RunSettings(**content)
    except TypeError as error:
        raise CheckpointError(f"{directory / RUN_NAME} is garbled", "train again") from error
    return directory, Recipe.load(directory / RECIPE_NAME), run


def new_run_directory(out: str | Path | None, data: str, recipe_name: str) -> Path:
    if out is not None:
        directory = Path(out)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RecipeError(f"{directory} exists already", "pass another --out, or --resume to go on in it")
        return directory
    stem = Path("runs") / f"{title(data)}-{recipe_name}"
    candidates = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def absolute(name: str | Path) -> str:
    """A path as it is found from any folder; a name that is no path stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
