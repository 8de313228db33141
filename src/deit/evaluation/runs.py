"""Lists and compares training runs, by the files that they have written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from deit.checkpoints.run_log import read_log
from deit.checkpoints.selection import best_epoch
from deit.errors import CheckpointError, UserError
from deit.system.files import (
    EVALUATION_NAME,
    LOG_NAME,
    PREDICTIONS_NAME,
    RECIPE_NAME,
    RUN_NAME,
    json_line,
    read_json,
    read_limited,
    read_toml,
    write_text,
)

MAX_PREDICTIONS_BYTES = 2**30
SHOWN_IMAGES = 100
NAME_LINE = "name = "  # the first line of a recipe


@dataclass(frozen=True)
class RunSummary:
    """What a run has reached.

    Attributes:
        path: the run directory.
        recipe: name of the recipe.
        data: the data set.
        epochs: evaluated epochs.
        best_epoch: the selected one, counted from 1; None before the first.
        validation_top1: its accuracy on the validation images, in 0..1; None of pretraining.
        validation_loss: its loss.
        split: the split of the final evaluation; empty before it.
        top1: accuracy of the final evaluation; None before it.
        interval: its 95% confidence interval, given the number of images.
        images: number of its images.
        changed: when the run was last written to, in UTC.
    """

    path: Path
    recipe: str
    data: str
    epochs: int
    best_epoch: int | None
    validation_top1: float | None
    validation_loss: float | None
    split: str
    top1: float | None
    interval: tuple[float, float] | None
    images: int | None
    changed: datetime

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return {**asdict(self), "path": str(self.path), "changed": self.changed.isoformat()}


@dataclass(frozen=True)
class Flip:
    """An image that two runs predict differently.

    Attributes:
        image: its name.
        label: its class.
        predictions: the predicted class of each of the two runs.
    """

    image: str
    label: str
    predictions: tuple[str, str]


@dataclass(frozen=True)
class PairedTest:
    """McNemar's exact test of two runs on the same images.

    Attributes:
        images: images that both runs predicted.
        only_first: images that only the first one predicts correctly.
        only_second: images that only the second one predicts correctly.
        p_value: probability of a difference as large if both were equally accurate; two-sided.
        flips: images that they predict differently.
    """

    images: int
    only_first: int
    only_second: int
    p_value: float
    flips: list[Flip]


@dataclass(frozen=True)
class Comparison:
    """A comparison of several runs with the first one.

    Attributes:
        runs: summaries.
        differences: recipe value -> its value in each run; None where a run lacks it.
        curves: log of each run.
        tests: of each run but the first, against the first; None where they have no predictions of the same images.
    """

    runs: list[RunSummary]
    differences: dict[str, list[Any]]
    curves: list[list[dict[str, Any]]]
    tests: list[PairedTest | None]

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON values."""
        return {
            "runs": [run.to_dict() for run in self.runs],
            "differences": self.differences,
            "curves": self.curves,
            "tests": [None if test is None else asdict(test) for test in self.tests],
        }


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run."""
    return (path / RUN_NAME).is_file() and (path / RECIPE_NAME).is_file()


def find_runs(folder: Path) -> list[Path]:
    """Returns the run directories in a folder, at any depth, sorted by path.

    Raises:
        UserError: the folder does not exist, or has none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "pass a folder of runs, or the directories of runs")
    found = []
    for path, folders, files in os.walk(folder):
        if RUN_NAME in files and RECIPE_NAME in files:
            found.append(Path(path))
            folders.clear()  # a run contains no other
    if not found:
        raise UserError(f"{folder} contains no runs", "pass the --out of an earlier `deit train`")
    return sorted(found)


def read_summary(run: Path) -> RunSummary:
    """Reads what a run has reached.

    Raises:
        CheckpointError: it is not a run, or a file of it is damaged.
    """
    if not is_run(run):
        raise CheckpointError(f"{run} is not a run directory", "pass the directory of an earlier `deit train`")
    log = read_log(run)
    best = best_epoch(log)
    row = {} if best is None else log[best]
    validation = row.get("validation") or {}
    evaluation = read_json(run / EVALUATION_NAME) if (run / EVALUATION_NAME).is_file() else {}
    top1, interval = _final_accuracy(evaluation)
    changed = max((run / name).stat().st_mtime for name in (RUN_NAME, LOG_NAME, EVALUATION_NAME) if (run / name).is_file())
    return RunSummary(
        path=run,
        recipe=_recipe_name(run),
        data=str(read_json(run / RUN_NAME).get("data", "")),
        epochs=len(log),
        best_epoch=row.get("epoch"),
        validation_top1=validation.get("top1"),
        validation_loss=validation.get("loss"),
        split=str(evaluation.get("split", "")) if top1 is not None else "",
        top1=top1,
        interval=interval,
        images=evaluation.get("images"),
        changed=datetime.fromtimestamp(changed, UTC).replace(microsecond=0),
    )


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compares runs with the first one.

    Raises:
        CheckpointError: one is not a run, or a file of it is damaged.
    """
    summaries = [read_summary(run) for run in runs]
    recipes = [dict(_flat(read_toml(run / RECIPE_NAME))) for run in runs]
    names = sorted({name for recipe in recipes for name in recipe})
    rows = {name: [recipe.get(name) for recipe in recipes] for name in names}
    differences = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    first = read_predictions(runs[0])
    tests = [None if (second := read_predictions(run)) is None or first is None else _test(first, second) for run in runs[1:]]
    return Comparison(summaries, differences, [read_log(run) for run in runs], tests)


def write_predictions(run: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Writes the predictions of the final evaluation: image, label, prediction and probability of each."""
    write_text(run / PREDICTIONS_NAME, "".join(map(json_line, rows)))


def read_predictions(run: Path) -> dict[str, tuple[str, str]] | None:
    """Returns the label and the predicted class of each image of the final evaluation; None if they were not written.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / PREDICTIONS_NAME
    if not path.is_file():
        return None
    predictions: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_limited(path, MAX_PREDICTIONS_BYTES).splitlines(), 1):
        try:
            row = json.loads(line)
            predictions[str(row["image"])] = str(row["label"]), str(row["prediction"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            remedy = "remove it, and finish the run again with --resume"
            raise CheckpointError(f"{path} is damaged in line {number}", remedy) from error
    return predictions


def _test(first: Mapping[str, tuple[str, str]], second: Mapping[str, tuple[str, str]]) -> PairedTest | None:
    """Compares predictions of the images that both runs have, with the same label."""
    from scipy.stats import binomtest

    shared = [image for image, (label, _) in first.items() if image in second and second[image][0] == label]
    if not shared:
        return None
    flips, only_first, only_second = [], 0, 0
    for image in shared:
        label, one = first[image]
        other = second[image][1]
        if one != other:
            flips.append(Flip(image, label, (one, other)))
        only_first += one == label != other
        only_second += other == label != one
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedTest(len(shared), only_first, only_second, p_value, flips)


def _final_accuracy(evaluation: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the top-1 accuracy of the model's prediction and its interval; None of pretraining."""
    heads, interval = evaluation.get("heads"), evaluation.get("top1_interval")
    if not isinstance(heads, Mapping) or not heads or not isinstance(interval, Mapping):
        return None, None
    return list(heads.values())[-1]["top1"], (interval["low"], interval["high"])


def _recipe_name(run: Path) -> str:
    """Returns the name of a run's recipe. Reads its first line only, which is many times faster than parsing TOML."""
    with (run / RECIPE_NAME).open(encoding="utf-8", errors="replace") as file:
        line = file.readline(1000).strip()
    return line.removeprefix(NAME_LINE).strip('"') if line.startswith(NAME_LINE) else ""


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested tables with their dotted names."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shown_flips(test: PairedTest) -> list[Flip]:
    """Returns the first flips, those that change what is correct before others."""
    ordered = sorted(test.flips, key=lambda flip: flip.label not in flip.predictions)
    return list(islice(ordered, SHOWN_IMAGES))
