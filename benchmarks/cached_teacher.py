"""Images a second of distilled training from a stored teacher, beside undistilled training and a live teacher.

    python -m benchmarks.cached_teacher [--device cpu|cuda] [--teacher regnety_160] [--steps 4] [--repeats 9] [--top-k 10]
                                        [--write]

tiny at 224 with the whole pipeline of the recipes ``deit`` and ``deit-distilled``, from JPEG files of 500 x 375 that are made
here, 1,000 classes, batch 32, bf16: without a teacher (and without distillation token); with the teacher's hard labels from a
store; with its top probabilities from a store; and with the teacher itself, RegNetY-16GF with random weights, which costs what
trained ones cost. First the two stores of one view are built by ``deit.distillation.build_cache``.

In each repeat the contenders take their turns, each with steps over the same samples, its own model and its own workers. A
turn's first step and the making of its first batches are not timed, and the loader is kept busy beyond the last timed step. The
figure is the median over the repeats with the quartiles; a ratio is that of two turns of the same repeat, and its median.

The last line printed is the result as JSON. ``--write`` writes ``stored_teacher.json`` and ``stored_teacher.md``
(``stored_teacher_cuda`` on a GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

# Threads of torch that wait would spin for a while, and take a core from the workers and from whoever has the next turn.
os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from torch import nn

from deit.data.loader import Batch, Loader, default_workers
from deit.data.sources import FileSource, fingerprint
from deit.data.splits import DataRecord, Splits
from deit.distillation.build_cache import CacheResult, build_cache_on
from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.protocol import DistillationTeacher
from deit.distillation.teacher import Teacher
from deit.models.modeling import new_classifier
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import training_samples, view_steps
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import choose_device, describe
from deit.system.malloc import retained_memory
from deit.training.optimization import make_optimizer
from deit.training.step import StepContext, train_step

SIZE = (500, 375)
CLASSES = tuple(f"class {number}" for number in range(1000))
FILES = 128
BATCH = 32
AHEAD = 5  # batches that a worker makes before they are asked for, and one: so many more than are timed
NONE, HARD, TOP, LIVE = "undistilled", "stored, hard labels", "stored, top probabilities", "live teacher"
IMAGENET = 1_281_167


@dataclass
class Contender:
    """A training in progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    context: StepContext
    loader: Loader


def photos(folder: Path, count: int) -> list[str]:
    """Names of JPEG files with large shapes and fine grain, the same on every machine."""
    names = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 3))
        names.append(f"{seed}.jpg")
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return names


def data(folder: Path) -> Splits:
    """One training image of each of a thousand classes; several classes share a file."""
    names = photos(folder, FILES)
    shared = tuple(names[number % FILES] for number in range(len(CLASSES)))
    train = FileSource(folder, shared, CLASSES, np.arange(len(CLASSES), dtype=np.int64))
    return Splits(train, train, None, "made by the benchmark", fingerprint(train))


def recipe(name: str, mode: str = "none") -> Recipe:
    """The paper's, in the batch and precision of this benchmark."""
    shape = {"batch_size": BATCH, "micro_batch_size": BATCH, "precision": "bf16", "views": 1}
    return get_recipe(name).replace(**shape, distillation={"mode": mode})


def contender(chosen: Recipe, splits: Splits, device: torch.device, teacher: DistillationTeacher | None) -> Contender:
    """A model, its optimizer and its batches."""
    assert isinstance(chosen.model, Transformer)
    targets = None if teacher is None else teacher.sample_targets
    model = new_classifier(chosen.model.config(CLASSES), torch.Generator().manual_seed(0)).to(device).train()
    return Contender(
        model,
        make_optimizer(model, chosen.optimizer),
        StepContext(chosen, "bf16", teacher),
        Loader(training_samples(chosen, splits.train, teacher_targets=targets), pin=device.type == "cuda"),
    )


def turn(one: Contender, steps: int) -> float:
    """Images a second of ``steps`` steps."""
    shown = view_steps(one.context.recipe, len(CLASSES), 0)[: steps + 1 + AHEAD * default_workers()]
    batches: Iterator[Batch] = one.loader.run([piece for step in shown for piece in step])
    start = 0.0
    for step in range(steps + 1):
        losses = train_step(one.model, one.optimizer, [next(batches)], one.context, 0, step, 1e-5)
        losses["loss"].item()  # waits for a GPU, as training does
        if step == 0:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    for _ in batches:  # made while the steps were timed, as the next ones are in training
        pass
    return steps * BATCH / seconds


def measure(contenders: dict[str, Contender], steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Images a second by contender, and the ratios of the stored ones; the first round is for warming up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with retained_memory(device):
        for repeat in range(repeats + 1):
            for name, one in contenders.items():
                rate = turn(one, steps)
                if repeat:
                    rates[name].append(rate)
    ratios = {
        f"{stored} to {other}": spread([a / b for a, b in zip(rates[stored], rates[other], strict=True)])
        for stored in (HARD, TOP)
        for other in (NONE, LIVE)
    }
    return {"images_per_second": {name: spread(each) for name, each in rates.items()}, "ratios": ratios}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return dict(zip(("low", "median", "high"), statistics.quantiles(values, n=4), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--teacher", default="regnety_160", help="an architecture of timm")
    parser.add_argument("--steps", type=int, default=4, help="timed in each turn")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results")
    options = parser.parse_args()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = data(folder)
        run = RunSettings("made by the benchmark", teacher=str(folder / "teacher"))
        hard, soft = recipe("deit-distilled", "hard"), recipe("deit-distilled", "soft")
        new_timm_classifier(options.teacher, CLASSES, hard.processor(), {}, seed=0).save_pretrained(folder / "teacher")
        built = {
            HARD: build_cache_on(splits, hard, run, folder / "hard", views=1, device=options.device),
            TOP: build_cache_on(splits, soft, run, folder / "soft", views=1, top_k=options.top_k, device=options.device),
        }
        record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
        teacher = Teacher.load(folder / "teacher", CLASSES, hard.processor()).to(device)
        contenders = {
            NONE: contender(recipe("deit"), splits, device, None),
            HARD: contender(hard, splits, device, CachedTeacher.open(folder / "hard", hard, splits, record)),
            TOP: contender(soft, splits, device, CachedTeacher.open(folder / "soft", soft, splits, record)),
            LIVE: contender(hard, splits, device, teacher),
        }
        measured = measure(contenders, options.steps, options.repeats, device)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "hardware": describe(device),
        "software": f"Python {platform.python_version()}, Pillow {PIL.__version__}, torch {torch.__version__}, "
        f"timm {timm.__version__}",
        "teacher": options.teacher,
        "device": options.device,
        "batch": BATCH,
        "steps": options.steps,
        "repeats": options.repeats,
        "top_k": options.top_k,
        "workers": default_workers(),
        **measured,
        "stores": {name: {**asdict(store), "directory": None} for name, store in built.items()},
    }
    print(table(result, built))
    if options.write:
        place = Path(__file__).parent / "results"
        place.mkdir(exist_ok=True)
        stem = "stored_teacher" if device.type == "cpu" else f"stored_teacher_{device.type}"
        (place / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
        (place / f"{stem}.md").write_text(table(result, built))
    print(json.dumps(result))


def table(result: dict[str, Any], built: dict[str, CacheResult]) -> str:
    """The figures as Markdown."""
    command = (
        f"--device {result['device']} --teacher {result['teacher']} --steps {result['steps']} --repeats {result['repeats']}"
    )
    lines = [
        "# A stored teacher",
        "",
        f"{result['date']}, {result['hardware']}, {result['workers']} loader workers, {result['software']}.",
        f"tiny at 224, batch {result['batch']}, bf16, JPEG files of 500 x 375, the teacher {result['teacher']}.",
        f"Images a second, median of {result['repeats']} interleaved repeats and the quartiles; ratios within a repeat. By",
        f"`python -m benchmarks.cached_teacher {command} --top-k {result['top_k']} --write`.",
        "",
        f"| training | images a second | to {NONE} | to the {LIVE} |",
        "|---|--:|--:|--:|",
    ]
    for name, rate in result["images_per_second"].items():
        ratios = [result["ratios"].get(f"{name} to {other}") for other in (NONE, LIVE)]
        cells = [words(rate, 1), *("" if ratio is None else words(ratio, 2) for ratio in ratios)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| store | bytes a sample and view | built at, images a second | one view of ImageNet-1k |",
        "|---|--:|--:|---|",
    ]
    for name, store in built.items():
        size, hours = IMAGENET * store.bytes_per_sample / 1e6, IMAGENET / store.images_per_second / 3600
        cost = f"{size:,.1f} MB, {hours:.1f} hours on this machine"
        lines.append(f"| {name} | {store.bytes_per_sample} | {store.images_per_second:.1f} | {cost} |")
    return "\n".join(lines) + "\n"


def words(figure: dict[str, float], digits: int) -> str:
    """``36.1 (35.0 to 36.4)``."""
    return f"{figure['median']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


if __name__ == "__main__":
    main()
