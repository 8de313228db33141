"""Kills training at random moments and resumes it: does the run end in the same bits as one that was never stopped?

    python -m benchmarks.kills [--kills 50] [--seed 0] [--write]

Each kind of run is trained once without interruption. Then it is trained again, and its process is killed by SIGKILL after a
random time: while it starts, within a step, while it writes a checkpoint, or while it evaluates. It is resumed and killed
again, until it ends by itself, and so on with a new run until all kills are used. Weights, their EMA, the optimizer state, the
best model and the log must equal those of the first run, bit by bit; in the log, durations are left out.

The models are tiny, and a checkpoint is started after every step, so that most kills meet one that is being written. The last
line printed is the result as JSON. ``--write`` writes ``kills.json`` and ``kills.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.reporting import environment, publish
from deit.checkpoints.run_log import read_log
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe
from deit.training.state import newest_checkpoint

CLASSES = ("a", "b", "c")
IMAGES = 24  # per class
DURATIONS = {"seconds", "images_per_second"}
CHECKPOINT_MINUTES = 1e-6
PRELOADED = ["deit.training.run"]  # so that a process starts within milliseconds


@dataclass(frozen=True)
class Setup:
    """A kind of run.

    Attributes:
        name: for people.
        recipe: the recipe.
        workers: worker processes of the data loader.
        teacher: ``teacher`` for the live one, ``cache`` for its cached logits and feature maps, or None.
    """

    name: str
    recipe: Recipe
    workers: int
    teacher: str | None = None


def setups() -> list[Setup]:
    """Returns the kinds of runs, which together use all that draws random numbers or keeps state."""
    mixed = {"mixing": {"mixup": 0.8, "cutmix": 1.0}, "ema": {"decay": 0.9, "evaluate": True}, "batch_size": 16}
    plain = get_recipe("deit").tiny().replace(**mixed, epochs=3, model={"drop_path": 0.2}, optimizer={"warmup_epochs": 1})
    distilled = get_recipe("small-data-distilled").tiny().replace(**mixed, epochs=3, model={"drop_path": 0.2})
    return [
        Setup("labels, repeated augmentation, mixup and cutmix", plain, 0),
        Setup("the same, two workers", plain, 2),
        Setup("live teacher, feature maps, Muon", distilled, 2, "teacher"),
        Setup("cached teacher, feature maps, Muon", distilled.replace(views=2), 0, "cache"),
    ]


def make_images(folder: Path) -> None:
    """Writes small images of noise around a color per class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES):
            pixels = rng.integers(0, 128, (40, 40, 3), np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def make_teachers(folder: Path) -> None:
    """Trains a teacher, and caches what it predicts."""
    from deit.distillation.build_cache import build_cache
    from deit.training.run import train

    train(folder / "images", get_recipe("convnet").tiny(), out=folder / "teacher", workers=0, device="cpu")
    for setup in setups():
        if setup.teacher == "cache":
            build_cache(
                folder / "images", setup.recipe, teacher=folder / "teacher", out=folder / "cache", workers=0, device="cpu"
            )


def train_once(folder: Path, setup: Setup, directory: Path) -> None:
    """Trains, or resumes if there is something to resume; called in a process of its own."""
    multiprocessing.set_start_method(None, force=True)  # workers start as in the program
    from deit.training.run import train

    torch.set_num_threads(1)
    options: dict[str, Any] = {"workers": setup.workers, "device": "cpu", "checkpoint_minutes": CHECKPOINT_MINUTES}
    if (directory / "run.json").exists():
        train(resume=directory, **options)
    else:
        teacher = None if setup.teacher is None else folder / setup.teacher
        train(folder / "images", setup.recipe, out=directory, teacher=teacher, **options)


def start(folder: Path, setup: Setup, directory: Path) -> BaseProcess:
    """Starts a run in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train_once, args=(folder, setup, directory))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Waits for a run.

    Raises:
        RuntimeError: it failed.
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"A run ended with exit code {process.exitcode}")


def final_state(directory: Path) -> dict[str, Any]:
    """Returns hashes of the files that a run ends with, its training progress, and its log without durations."""
    found, _ = newest_checkpoint(directory / "checkpoints")
    assert found is not None
    files = [*sorted(found.path.glob("*.safetensors")), directory / "best" / "model.safetensors"]
    return {
        "files": {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "state": replace(found.state, seconds=0.0),
        "log": [{name: value for name, value in row.items() if name not in DURATIONS} for row in read_log(directory)],
    }


def kill_and_resume(folder: Path, setup: Setup, kills: int, rng: random.Random) -> tuple[int, int]:
    """Trains until a number of kills is used up and the last run has ended.

    Returns:
        The number of runs that ended, and how many of them did not end as the run that was never stopped.
    """
    finish(start(folder, setup, folder / f"{setup.name} 0"))  # also starts the server of new processes
    begun = time.monotonic()
    finish(start(folder, setup, folder / f"{setup.name} again"))
    duration = time.monotonic() - begun
    expected = final_state(folder / f"{setup.name} 0")
    assert final_state(folder / f"{setup.name} again") == expected
    ended = different = 0
    while kills > 0 or ended == 0:
        directory = folder / f"{setup.name} {ended + 1}"
        process = start(folder, setup, directory)
        while kills > 0:
            process.join(rng.uniform(0, duration))
            process.kill()  # does nothing to a run that has ended, which may also happen right here
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
            kills -= 1
            process = start(folder, setup, directory)
        finish(process)
        ended += 1
        different += final_state(directory) != expected
    return ended, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rng, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        make_teachers(folder)
        kinds = setups()
        for index, setup in enumerate(kinds):
            kills = len(range(index, arguments.kills, len(kinds)))
            ended, different = kill_and_resume(folder, setup, kills, rng)
            rows.append({"setup": setup.name, "workers": setup.workers, "kills": kills, "runs": ended, "different": different})
            print(f"{setup.name}: {kills} kills, {ended} runs ended, {different} of them differ", flush=True)
    result = {**environment(torch.device("cpu"), {"torch": torch.__version__}), "seed": arguments.seed, "rows": rows}
    publish(result, table(result), "kills" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = result["rows"]
    lines = [
        "# Killed and resumed runs",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        "SIGKILL after random times, then `--resume`. A run differs if a bit of its weights, their EMA, the optimizer state,",
        "the best model or the log (without durations) differs from those of a run that was never stopped.",
        f"`python -m benchmarks.kills --kills {sum(row['kills'] for row in rows)} --seed {result['seed']} --write`.",
        "",
        "| run | workers | kills | runs that ended | of these, different |",
        "|---|--:|--:|--:|--:|",
    ]
    columns = ("setup", "workers", "kills", "runs", "different")
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
