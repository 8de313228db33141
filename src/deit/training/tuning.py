"""Searches for better recipe values: many candidates are trained for a short time, the best ones to the end.

This is the baseline of Egele et al. (arXiv 2307.15422), which they found to be as good as more complex methods. Every trial is
a run. Its schedule is that of the whole training from the first step on, so that continuing a candidate is resuming its run:
it ends with the weights of a run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deit.checkpoints.run_log import read_log
from deit.data.cache_request import DEFAULT_LIMIT, CacheMode, CacheRequest
from deit.data.class_names import Matching
from deit.data.opening import open_data
from deit.data.splits import DataRecord
from deit.distillation.cache_format import is_logit_cache
from deit.distillation.loading import check_teacher
from deit.distillation.protocol import DistillationTeacher
from deit.errors import CheckpointError, NonFiniteLossError, RecipeError, UserError
from deit.recipes.run_settings import CHECKPOINT_MINUTES, RunSettings
from deit.recipes.schema import Recipe
from deit.recipes.search_space import SearchSpace, default_space, draw_values, parse_space
from deit.system.devices import choose_device
from deit.system.files import RUN_NAME, read_json, write_json
from deit.system.locking import locked
from deit.system.progress import plural, print_status
from deit.system.replacing import clean_up
from deit.system.signals import check_stop, stop_on_signals
from deit.training.assembly import Assembled, assemble, reopen_data
from deit.training.finishing import TrainResult
from deit.training.loop import CHECKPOINTS_NAME, Trainer
from deit.training.run import finish, prepare
from deit.training.run_directory import read_run, write_run
from deit.training.run_request import ChangeableOptions, run_request
from deit.training.state import newest_checkpoint
from deit.training.throughput import measure_costs
from deit.training.time_limit import TimeLimit
from deit.training.trainer_building import SHORTEST_MEASUREMENT, add_image_hashes, step_budget

DEFAULT_MINUTES = 30.0
FINALISTS = 2  # candidates that are trained to the end: the ranking after a short time is not exact
FULL_SHARE = 1 / 3  # of the time, for the whole training of one candidate
SHORT_SHARE = 1 / 10  # of the whole training, for a candidate that is not continued; at least an epoch
SEARCH_SHARE = 1 - FINALISTS * FULL_SHARE * (1 - SHORT_SHARE)  # of the time, in which no finalist is trained
PIXELS = ("augmentation.", "mixing.", "model.image_size", "seed", "mean", "std")  # beginnings of values that change images
STUDY_NAME = "tune.json"
TUNED_NAME = "tuned.toml"
TRIALS_NAME = "trials"


@dataclass
class Trial:
    """A candidate.

    Attributes:
        number: counted from 0; the recipe as it is has 0.
        values: recipe values that differ from the recipe.
        epochs: epochs that it was trained for.
        top1: accuracy of its best epoch on the validation images, in 0..1; None if training diverged.
        loss: loss on these images; None if training diverged.
        finished: whether it was trained to the end.
    """

    number: int
    values: dict[str, str]
    epochs: int
    top1: float | None
    loss: float | None
    finished: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts trials from the worst to the best."""
        return self.top1 or 0.0, -math.inf if self.loss is None else -self.loss


@dataclass
class Study:
    """A search, as it is written to ``tune.json`` after each trial.

    Attributes:
        minutes: time of the search.
        max_trials: number of candidates at most; None tries as many as the time allows.
        requested: the recipe that the search began with.
        settings: of all runs.
        vary: texts of :func:`deit.recipes.search_space.parse_space`; empty before a default space is planned.
        planned: the recipe of the first candidate, with all sizes; None before it is planned.
        seconds: time that was used.
        trials: candidates whose short training has ended.
        finalists: numbers of those that are trained to the end, best first; empty before the search has ended.
    """

    minutes: float
    max_trials: int | None
    requested: Recipe
    settings: RunSettings
    vary: list[str] = field(default_factory=list)
    planned: Recipe | None = None
    seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    finalists: list[int] = field(default_factory=list)


_STUDY = TypeAdapter(Study)


@dataclass(frozen=True)
class TuneResult:
    """A finished search.

    Attributes:
        directory: of the search.
        recipe: file with the recipe of the best trial, for other runs: sizes and length are as open as they were.
        trials: all trials, best first: those that were trained to the end, then the others.
        run: the best trial, whose ``best`` is the model.
    """

    directory: Path
    recipe: Path
    trials: list[Trial]
    run: TrainResult


def tune(
    data: str | Path | None = None,
    recipe: str | Recipe = "small-data",
    *,
    minutes: float = DEFAULT_MINUTES,
    vary: Sequence[str] = (),
    max_trials: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    teacher_classes: Matching = "name",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
    cache: CacheMode = "auto",
    cache_limit: float = DEFAULT_LIMIT,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    track: bool = False,
    started: float | None = None,
) -> TuneResult:
    """Searches for better recipe values, and trains the best candidates.

    Each candidate is a run below ``trials``, planned for a third of the time. It is trained for a tenth of its epochs; the two
    that are then most accurate on the validation images are resumed to the end, and the better one is evaluated on the test
    images. The first candidate is the recipe as it is.

    Args:
        data: as in :func:`deit.train`; omitted with ``resume``.
        recipe: as in :func:`deit.train`.
        minutes: time of the whole search.
        vary: the values to vary, such as ``optimizer.lr=1e-4..1e-2`` or ``mixing.mixup=0,0.2,0.8``; none varies learning rate,
            regularization and augmentation of the recipe.
        max_trials: number of candidates at most; None tries as many as the time allows.
        out: directory of the search, new or empty; None creates one below ``runs``.
        resume: directory of a search to resume, with its own arguments.
        init: as in :func:`deit.train`.
        teacher: as in :func:`deit.train`.
        teacher_weights: as in :func:`deit.train`.
        teacher_classes: as in :func:`deit.train`.
        settings: as in :func:`deit.train`.
        device: as in :func:`deit.train`.
        workers: as in :func:`deit.train`.
        skip_unreadable: as in :func:`deit.train`.
        cache: as in :func:`deit.train`.
        cache_limit: as in :func:`deit.train`.
        checkpoint_minutes: as in :func:`deit.train`.
        track: as in :func:`deit.train`.
        started: as in :func:`deit.train`.

    Raises:
        UserError: an argument does not fit; raised before the first step.
        WorkError: all candidates diverged, or training was interrupted.
    """
    started = time.monotonic() if started is None else started
    if resume is not None:
        if any((data, vary, max_trials, out, init, teacher, teacher_weights, settings)):
            raise UserError("A resumed search keeps its own arguments", "pass none of them to resume it")
        directory = Path(resume)
        study = read_study(directory)
    else:
        options = ChangeableOptions(skip_unreadable, CacheRequest(cache, cache_limit), checkpoint_minutes, track)
        request = run_request(data, recipe, settings, out, None, options, init, teacher, teacher_weights, teacher_classes)
        directory = request.directory if out is not None else request.directory.with_name(f"tune-{request.directory.name}")
        study = Study(minutes, max_trials, request.recipe, request.settings, list(vary))
        _check(study, settings)
    with locked(directory, "wait until it has finished, or pass another --out"), stop_on_signals():
        clean_up(directory)
        return _Search(directory, study, device, workers, started - study.seconds).run()


def _check(study: Study, settings: Mapping[str, str] | None) -> None:
    """Checks a new search.

    Raises:
        UserError: a value does not fit.
    """
    if fixed := {"epochs", "minutes", "steps"} & (settings or {}).keys():
        raise RecipeError(f"The length of a search is that of --minutes, not of {min(fixed)}", "leave it out")
    if study.requested.masked:
        raise RecipeError(f"The recipe {study.requested.name} does not use labels", "tune one that does")
    if not study.minutes > 0:
        raise UserError(f"--minutes {study.minutes:g} is not a time", "pass a number above 0")
    check_teacher(study.requested, study.settings)
    space = parse_space(study.vary, study.requested)
    if study.settings.teacher is not None and is_logit_cache(study.settings.teacher):
        for name in space:
            if name.startswith(PIXELS):
                problem = f"{name} changes the images that the teacher's logits are cached for"
                raise RecipeError(problem, "vary other values, or pass a live teacher")


def read_study(directory: Path) -> Study:
    """Reads a search.

    Raises:
        CheckpointError: the directory has none, or the file is corrupt.
    """
    path = directory / STUDY_NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} is not the directory of a search", "pass the --out of an earlier `deit tune`")
    try:
        return _STUDY.validate_python(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is corrupt", "start the search again, with another --out") from error


@dataclass
class _Search:
    """A search in progress.

    Attributes:
        directory: of the search.
        study: what is saved of it.
        device_name: ``auto``, ``cpu``, ...
        workers: worker processes of the data loader; None chooses by the number of cores.
        started: when it began, by ``time.monotonic()``, without the time between its programs.
    """

    directory: Path
    study: Study
    device_name: str
    workers: int | None
    started: float

    def run(self) -> TuneResult:
        study = self.study
        self._open()
        longest = 0.0
        while not study.finalists:
            number, start = len(study.trials), time.monotonic()
            is_last = study.max_trials is not None and number >= study.max_trials
            if number and (is_last or self._elapsed() + longest > SEARCH_SHARE * 60 * study.minutes):
                study.finalists = self._best(FINALISTS)
                self._save()
                break
            self._try(number)
            longest = max(longest, time.monotonic() - start)
        for position, number in enumerate(study.finalists):
            if not study.trials[number].finished:
                self._train_to_end(number, len(study.finalists) - position)
        best = max((study.trials[number] for number in study.finalists), key=lambda trial: trial.rank)
        recipe = self.directory / TUNED_NAME
        study.requested.with_settings(best.values).save(recipe)
        result = finish(self._assembled(best.number))
        trials = sorted(study.trials, key=lambda trial: (trial.finished, *trial.rank), reverse=True)
        return TuneResult(self.directory, recipe, trials, result)

    def _open(self) -> None:
        """Opens the data, and plans the first candidate, or reopens what was planned."""
        study = self.study
        self._files: dict[str, bytes] = {}
        self._teacher: DistillationTeacher | None = None
        self._first: Assembled | None = None  # as it was planned
        if study.planned is not None:
            self._splits, self._record, study.settings = reopen_data(study.planned, study.settings)
        else:
            settings = study.settings
            self._splits = open_data(settings.data, settings.split_seed, settings.validation_fraction)
            self._record = DataRecord(self._splits.fingerprint, settings.split_seed, settings.validation_fraction)
            self._plan()
        assert study.planned is not None
        self._space: SearchSpace = parse_space(study.vary, study.planned)
        if not study.trials:
            print_status(f"Search:    {', '.join(study.vary)}")

    def _plan(self) -> None:
        """Plans the first candidate for its share of the time."""
        study = self.study
        recipe = study.requested.replace(minutes=FULL_SHARE * study.minutes)
        first = prepare(self._splits, recipe, study.settings, self._run(0), self.device_name, self.workers, None, None)
        first.trainer.budget = None  # all candidates take as many steps
        first.trainer.resume_command = self._resume_command
        self._first, self._teacher, self._splits = first, first.teacher, first.splits
        self._files = first.trainer.files
        study.planned, study.settings = first.trainer.context.recipe, first.settings
        if not study.vary:
            is_cached = first.teacher is not None and first.teacher.sample_targets is not None
            space = default_space(study.planned, augmentation=not is_cached)
            study.vary = [f"{name}={values}" for name, values in space.items()]
        self._save()

    def _try(self, number: int) -> None:
        """Trains a candidate for a short time."""
        study = self.study
        check_stop()
        assert study.planned is not None
        values = draw_values(self._space, study.planned.seed, number) if number else {}
        print_status(f"Trial {number}:   {_format(values) if values else 'the recipe as it is'}")
        epochs = max(round(SHORT_SHARE * study.planned.epochs), 1)
        first, self._first = self._first, None
        try:
            trainer = (first or self._assembled(number, values)).trainer
            trainer.fit(epochs)
            trial = Trial(number, values, *self._reached(trainer))
        except NonFiniteLossError as error:
            print_status(f"Note:      {error.problem}.")
            trial = Trial(number, values, 0, None, None)
        study.trials.append(trial)
        self._save()
        _print(trial)

    def _train_to_end(self, number: int, remaining: int) -> None:
        """Trains a finalist to the end, in its share of the time that is left for ``remaining`` of them."""
        study = self.study
        check_stop()
        print_status(f"Trial {number}:   trained to the end")
        assembled = self._assembled(number)
        trainer, now = assembled.trainer, time.monotonic()
        seconds = max(60 * study.minutes - self._elapsed(), 0.0) / remaining
        limit = TimeLimit(seconds, now)
        trainer.budget = step_budget(trainer, self._splits, measure_costs(trainer, SHORTEST_MEASUREMENT), limit)
        trial = study.trials[number]
        try:
            trainer.fit()
            trial.epochs, trial.top1, trial.loss = self._reached(trainer)
        except NonFiniteLossError as error:
            print_status(f"Note:      {error.problem}.")
            trial.top1 = trial.loss = None
            if all(study.trials[finalist].loss is None for finalist in study.finalists):
                raise
        trial.finished = True
        self._save()
        _print(trial)

    def _assembled(self, number: int, values: Mapping[str, str] | None = None) -> Assembled:
        """Builds the trainer of a trial: a new one with some values, or one to resume."""
        study, run = self.study, self._run(number)
        assert study.planned is not None
        checkpoint, _ = newest_checkpoint(run / CHECKPOINTS_NAME)
        recipe = study.planned.with_settings(values or {})
        if checkpoint is not None:
            recipe, _ = read_run(run)
        settings, device = study.settings, choose_device(self.device_name)
        built = assemble(run, recipe, self._splits, self._record, settings, device, self.workers, checkpoint, self._teacher)
        self._teacher, trainer = built.teacher, built.trainer
        if not self._files:
            add_image_hashes(trainer, self._splits, settings, None if checkpoint is None else checkpoint.path)
            self._files = trainer.files
        trainer.files = self._files
        trainer.resume_command = self._resume_command
        if not (run / RUN_NAME).exists():
            write_run(run, recipe, built.settings)
        return built

    def _reached(self, trainer: Trainer) -> tuple[int, float, float]:
        """Returns the number of epochs of a run, and top-1 and loss of its best one."""
        return len(read_log(trainer.directory)), trainer.state.best["top1"], trainer.state.best["loss"]

    def _best(self, count: int) -> list[int]:
        """Returns the numbers of the best candidates.

        Raises:
            NonFiniteLossError: all have diverged.
        """
        ranked = sorted((trial for trial in self.study.trials if trial.loss is not None), key=lambda trial: trial.rank)
        if not ranked:
            raise NonFiniteLossError("Training diverged in all trials", "vary optimizer.lr=LOW..HIGH with lower values")
        return [trial.number for trial in ranked[::-1][:count]]

    def _run(self, number: int) -> Path:
        return self.directory / TRIALS_NAME / f"{number:03d}"

    @property
    def _resume_command(self) -> str:
        return f'deit tune --resume "{self.directory}"'

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _save(self) -> None:
        self.study.seconds = self._elapsed()
        write_json(self.directory / STUDY_NAME, _STUDY.dump_python(self.study, mode="json"))


def _format(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _print(trial: Trial) -> None:
    after = f"after {plural(trial.epochs, 'epoch')}"
    print_status("           " + ("diverged" if trial.top1 is None else f"validation top-1 {trial.top1:.1%} {after}"))
