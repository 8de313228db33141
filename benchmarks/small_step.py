"""The training step on small data: images per second of teacher and student, against another commit, and where the time goes.

    python -m benchmarks.small_step [--before CHECKOUT] [--turns 3] [--epochs 5] [--write]

Runs ``deit teacher train`` and ``deit train`` on ``benchmarks/signs_dataset.py`` (2,800 training images of 64 pixels) with the
smallest student, width 96 and depth 4, as programs of their own: from this checkout, and from CHECKOUT, the root of another
one, made by ``git worktree add --detach CHECKOUT COMMIT``. They take turns. Images per second are those of the run's log
without its first epoch: loading included, evaluation not.

Then the parts of a step of this checkout are timed in this process, alternating, and compared with the peak: the FLOP/s of a
large bf16 matrix product. The last line printed is the result as JSON. ``--write`` writes ``small_step.json`` and
``small_step.md``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import signs_dataset
from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.checkpoints.run_log import read_log
from deit.data.loader import Batch
from deit.data.opening import open_data
from deit.data.splits import DataRecord
from deit.distillation.loading import load_teacher
from deit.inference.benchmark import measure_matmul_peak
from deit.models.losses import loss_terms, total_loss
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import view_steps
from deit.recipes.schema import Transformer
from deit.system.devices import autocast, choose_device
from deit.system.malloc import retained_memory
from deit.training.loop import Trainer
from deit.training.model_building import build_model
from deit.training.optimization import set_learning_rate, trainable_modules
from deit.training.trainer_building import build_trainer

NOW, BEFORE = "this commit", "before"
STUDENT_SHAPE = {
    "model.image_size": "64",
    "model.patch_size": "8",
    "model.hidden_size": "96",
    "model.num_hidden_layers": "4",
    "model.num_attention_heads": "8",
    "model.sizes": "variant",
    "batch_size": "32",
}
COMMON = {"mirror_test": "false", "augmentation.flip": "0"}
PART_STEPS = 60
INTERVAL = 10  # steps between measurements of the peak and of the FLOPs
PROGRAM = "from deit.cli.main import run; run()"


def run_program(checkout: Path, arguments: list[str], settings: dict[str, str]) -> None:
    """Runs the ``deit`` of a checkout."""
    changes = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    environment_variables = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments, *changes], check=True, env=environment_variables)


def images_per_second(run: Path) -> float:
    """Returns the training speed of a run without its first epoch."""
    rows = read_log(run)[1:]
    images = [row["images_per_second"] * row["seconds"] for row in rows]
    return float(sum(images) / sum(row["seconds"] for row in rows))


def measure_programs(checkouts: dict[str, Path], data: Path, folder: Path, turns: int, epochs: int) -> dict[str, Any]:
    """Returns images per second by contender and verb: quartiles over the turns."""
    rates: dict[str, dict[str, list[float]]] = {name: {"teacher": [], "student": []} for name in checkouts}
    for turn in range(turns):
        for name, checkout in checkouts.items():
            teacher, student = folder / f"teacher {name} {turn}", folder / f"student {name} {turn}"
            length = ["--epochs", str(epochs)]
            run_program(
                checkout, ["teacher", "train", str(data), "--out", str(teacher), *length], {"model.image_size": "64", **COMMON}
            )
            arguments = ["train", str(data), "--teacher", str(teacher), "--out", str(student), *length]
            run_program(checkout, [*arguments, "--recipe", "small-data-distilled"], {**STUDENT_SHAPE, **COMMON})
            rates[name]["teacher"].append(images_per_second(teacher))
            rates[name]["student"].append(images_per_second(student))
    return {name: {verb: quartiles(values) for verb, values in verbs.items()} for name, verbs in rates.items()}


class Parts:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Times the body."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


def student_trainer(data: Path, teacher: Path) -> Trainer:
    """Builds the trainer of the student."""
    device = choose_device("cpu")
    settings = RunSettings(str(data), teacher=str(teacher))
    splits = open_data(settings.data, settings.split_seed, settings.validation_fraction)
    record = DataRecord(splits.fingerprint, settings.split_seed, settings.validation_fraction)
    recipe = get_recipe("small-data-distilled").with_settings({**STUDENT_SHAPE, **COMMON})
    built = build_model(recipe, splits.classes, None)
    loaded = load_teacher(built.recipe, settings, splits, record)
    return build_trainer(Path(), built, loaded, splits, record, settings, device, 0)


def timed_step(trainer: Trainer, batch: Batch, step: int, parts: Parts) -> None:
    """Runs a student's step as :func:`deit.training.step.train_step` does, part by part."""
    context, recipe, model = trainer.context, trainer.context.recipe, trainer.model
    assert context.teacher is not None and context.features is not None
    assert isinstance(recipe.model, Transformer)
    trainer.optimizer.zero_grad(set_to_none=True)
    with autocast(trainer.device, context.precision):
        with parts.time("teacher"):
            taught = context.teacher.targets(batch, features=True)
        with parts.time("student, forward"):
            output = model(batch.pixel_values, output_hidden_states=True)
        with parts.time("feature loss, forward"):
            feature_loss = context.features(output.hidden_states, taught.feature_maps)
    with parts.time("backward"):
        heads = output.heads
        terms = loss_terms(recipe.distillation, heads["class"], batch.targets, heads["distillation"], taught.targets)
        total_loss(recipe.distillation, {**terms, "feature_loss": feature_loss}).backward()  # type: ignore[no-untyped-call]
    with parts.time("optimizer, clipping and EMA"):
        assert recipe.optimizer.clip_norm is not None and trainer.ema is not None
        torch.nn.utils.clip_grad_norm_(trainable_modules(model, context.features).parameters(), recipe.optimizer.clip_norm)
        set_learning_rate(trainer.optimizer, 1e-3)
        trainer.optimizer.step()
        trainer.ema.update(model, step)


def measure_parts(trainer: Trainer) -> dict[str, Any]:
    """Returns milliseconds per image of each part, FLOPs per image, and the peak."""
    parts, recipe = Parts(), trainer.context.recipe
    plans = [plan for step in view_steps(recipe, len(trainer.samples.source.labels), 0) for plan in step]
    trainer.model.train()
    peaks, images, operations = [], 0, 0
    with retained_memory(trainer.device):
        for step in range(PART_STEPS):
            with parts.time("loading, augmentation"):
                batch = trainer.samples.batch(plans[step % len(plans)])
            if step == 0:
                timed_step(trainer, batch, 0, Parts())  # a warm-up
            timed_step(trainer, batch, step, parts)
            images += len(batch.labels)
            if step % INTERVAL == 0:
                peaks.append(measure_matmul_peak("bf16"))
                with FlopCounterMode(display=False) as counter:
                    timed_step(trainer, batch, step, Parts())
                operations += counter.get_total_flops() * INTERVAL
    return {
        "milliseconds_per_image": {name: 1000 * sum(values) / images for name, values in parts.seconds.items()},
        "flops_per_image": operations / images,
        "peak": quartiles(peaks),
    }


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rates, parts = result["images_per_second"], result["parts"]
    lines = [
        "# The training step on small data",
        "",
        f"{result['date']}, {result['hardware']}; {result['software']}.",
        f"`python -m benchmarks.small_step --turns {result['turns']} --epochs {result['epochs']}`: images per second of whole",
        "programs, loading included, median (quartiles) over the turns; 2,800 images of 64 pixels, student of width 96 and",
        "depth 4.",
        "",
        "| | teacher | student |",
        "|---|--:|--:|",
        *(
            f"| {name} | {with_quartiles(figures['teacher'], 0)} | {with_quartiles(figures['student'], 0)} |"
            for name, figures in rates.items()
        ),
    ]
    if BEFORE in rates:
        ratios = {verb: rates[NOW][verb]["median"] / rates[BEFORE][verb]["median"] for verb in ("teacher", "student")}
        lines.append(f"| ratio | {ratios['teacher']:.2f} | {ratios['student']:.2f} |")
    total = sum(parts["milliseconds_per_image"].values())
    rate, peak = 1000 * parts["flops_per_image"] / total, parts["peak"]["median"]
    lines += [
        "",
        f"A student's step in one process with {result['threads']} threads, its parts one after the other: {total:.2f} ms per",
        f"image for {parts['flops_per_image'] / 1e6:,.0f} MFLOP: {rate / 1e9:,.0f} GFLOP/s, {rate / peak:.0%} of the peak of "
        f"{peak / 1e9:,.0f} GFLOP/s.",
        "",
        "| part | ms per image | share |",
        "|---|--:|--:|",
        *(
            f"| {name} | {milliseconds:.3f} | {milliseconds / total:.0%} |"
            for name, milliseconds in parts["milliseconds_per_image"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="root of a checkout of another commit")
    parser.add_argument("--turns", type=int, default=3, help="runs of each contender")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per run, at least 2")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    checkouts = {NOW: Path(__file__).parents[1]}
    if options.before is not None:
        checkouts[BEFORE] = options.before.resolve()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "signs"
        signs_dataset.write_dataset(data)
        rates = measure_programs(checkouts, data, Path(folder), options.turns, max(options.epochs, 2))
        parts = measure_parts(student_trainer(data, Path(folder) / f"teacher {NOW} 0"))
    result = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "turns": options.turns,
        "epochs": options.epochs,
        "threads": torch.get_num_threads(),
        "images_per_second": rates,
        "parts": parts,
    }
    publish(result, table(result), "small_step" if options.write else None)


if __name__ == "__main__":
    main()
