"""What a run is asked to do: a new run, or one to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deit.data.cache_request import CacheRequest
from deit.data.class_names import Matching
from deit.data.opening import absolute_name
from deit.errors import UserError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings, absolute
from deit.recipes.schema import Recipe
from deit.system.files import RUN_NAME
from deit.system.torchrun import may_restart, restarts, world_size
from deit.training.extension import requested_length
from deit.training.run_directory import new_run_directory, read_run
from deit.training.tracking import check_tracking


@dataclass(frozen=True)
class ChangeableOptions:
    """Options of :func:`deit.train` that a resumed run may change."""

    skip_unreadable: bool
    cache: CacheRequest
    checkpoint_minutes: float
    track: bool
    compiled: bool = False
    shard: bool = False

    def check(self) -> None:
        """Checks the values.

        Raises:
            MissingExtraError: a library is missing.
            UserError: a value is invalid.
        """
        if self.track:
            check_tracking()
        self.cache.check()
        if not self.checkpoint_minutes > 0:
            raise UserError(f"--checkpoint-minutes {self.checkpoint_minutes:g} is not a time", "pass a number above 0")
        if self.shard and world_size() == 1:
            raise UserError("--shard divides a model among several processes, and this is one", "start it with torchrun")


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Attributes:
        directory: the run directory.
        recipe: of the run.
        settings: of the run.
        length: the recipe with another length, if the run is extended.
    """

    directory: Path
    recipe: Recipe
    settings: RunSettings
    length: Recipe | None = None


def run_request(
    data: str | Path | None,
    recipe: str | Recipe,
    changes: Mapping[str, str] | None,
    out: str | Path | None,
    resume: str | Path | None,
    options: ChangeableOptions,
    init: str | Path | None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    teacher_classes: Matching = "name",
) -> RunRequest:
    """Turns the arguments of :func:`deit.train` into a request: a new run, or one to resume.

    If torchrun has started the processes again, the run that they have begun is resumed.

    Raises:
        UserError: the arguments contradict each other or what is saved.
    """
    options.check()
    if resume is not None:
        if any(value is not None for value in (out, init)):
            raise UserError("A resumed run keeps its own initial weights and directory", "pass none of them to resume it")
        return _resumed_run(Path(resume), data, changes or {}, options, teacher, teacher_weights)
    if out is not None and restarts() and (Path(out) / RUN_NAME).exists():
        return _resumed_run(Path(out), data, {}, options, teacher, teacher_weights)
    if out is None and may_restart():
        raise UserError("Processes that torchrun starts again need the directory of their run", "pass --out")
    if data is None:
        raise UserError("There is no data to train on", "pass a folder of images, or a name from `deit data list`")
    requested = (get_recipe(recipe) if isinstance(recipe, str) else recipe).with_settings(changes or {})
    settings = RunSettings(
        data=absolute_name(data),
        init=None if init is None else absolute(init),
        teacher=None if teacher is None else absolute(teacher),
        teacher_weights=None if teacher_weights is None else absolute(teacher_weights),
        teacher_classes=teacher_classes,
        skip_unreadable=options.skip_unreadable,
        cache=options.cache.mode,
        cache_limit=options.cache.limit,
        checkpoint_minutes=options.checkpoint_minutes,
        track=options.track,
        compiled=options.compiled,
        shard=options.shard,
    )
    return RunRequest(new_run_directory(out, settings.data, requested.name), requested, settings)


def _resumed_run(
    directory: Path,
    data: str | Path | None,
    changes: Mapping[str, str],
    options: ChangeableOptions,
    teacher: str | Path | None,
    teacher_weights: str | Path | None,
) -> RunRequest:
    recipe, settings = read_run(directory, data)
    length = requested_length(recipe, changes, directory)
    settings = replace(
        settings,
        skip_unreadable=settings.skip_unreadable or options.skip_unreadable,
        cache=options.cache.mode,
        cache_limit=options.cache.limit,
        checkpoint_minutes=options.checkpoint_minutes,
        track=settings.track or options.track,
        compiled=settings.compiled or options.compiled,
        shard=options.shard,
        teacher=settings.teacher if teacher is None else absolute(teacher),
        teacher_weights=settings.teacher_weights if teacher_weights is None else absolute(teacher_weights),
    )
    return RunRequest(directory, recipe, settings, length)
