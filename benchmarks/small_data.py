"""How much is learned from little data in little time: accuracy against wall-clock, over several seeds.

    python benchmarks/small_data.py [DATA] [--made] [--minutes 10] [--seeds 5] [--out benchmarks/results]

On the digits, on any folder of images, or (``--made``) on the signs of ``benchmarks/signs.py``. For each seed, each of:

- ``six-layer convnet``: plain convolutions without a teacher, with the recipe's own augmentation, for all of the minutes;
- ``timm``: its tiny DeiT with the settings of its training script as far as they concern learning, for all of the minutes;
- ``teacher``: ``deit teacher train``, for two fifths of the minutes;
- ``undistilled``: ``deit train`` without a teacher, for all of the minutes;
- ``soft``, ``hard``: ``deit train`` with that teacher, for the other three fifths;
- ``stored hard``: ``deit teacher store`` and training from it, for the other three fifths too.

Every program ends by the clock, so a machine that others use too gives other figures. Writes ``small_data-NAME.json``, ``.md``
and ``.svg``; the last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import signs
from deit.data.loader import EvaluationSamples, Loader
from deit.data.named import DIGITS
from deit.data.opening import open_data
from deit.data.order import epoch_steps
from deit.data.sources import Splits
from deit.devices import autocast, choose_device, choose_precision, describe
from deit.distillation.losses import soft_target_cross_entropy
from deit.distillation.store import store_on
from deit.evaluation import evaluate_source
from deit.outputs import ImageClassifierOutput
from deit.progress import say
from deit.training.loop import read_log
from deit.training.recipe import Recipe
from deit.training.recipes import get_recipe
from deit.training.run import TrainResult, fitted, train_on
from deit.training.samples import training_samples
from deit.training.settings import RunSettings

TEACHER_SHARE = 0.4  # of the minutes
CONTENDERS = ("six-layer convnet", "timm", "teacher", "undistilled", "soft", "hard", "stored hard")
STORED_VIEWS = 12
Curve = list[tuple[float, float]]  # minutes, validation top-1


class SixLayers(nn.Module):
    """Convolution, batch norm, ReLU, six times; answers as our classifiers do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for place, width in enumerate((32, 64, 96, 128, 192, 256)):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if place in (0, 1, 3):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.layers(pixel_values))


class Timm(nn.Module):
    """A network of timm that answers as our classifiers do."""

    def __init__(self, name: str, classes: int, **arguments: Any) -> None:
        super().__init__()
        self.network = timm.create_model(name, num_classes=classes, **arguments)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.network(pixel_values))


def baseline(model: nn.Module, recipe: Recipe, splits: Splits, minutes: float) -> tuple[float, Curve]:
    """Train a network by the clock with AdamW and a cosine: test top-1, and the curve."""
    device = choose_device()
    model.to(device).to(memory_format=torch.channels_last)
    precision = choose_precision("auto", device)
    samples = training_samples(recipe, splits.train)
    judge = EvaluationSamples(splits.validation, recipe.processor())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=recipe.optimizer.weight_decay, betas=recipe.optimizer.betas
    )
    curve: Curve = []
    loader = Loader(samples)
    start = time.monotonic()
    done = 0.0
    for epoch in _forever():
        plans = epoch_steps(len(splits.train.labels), recipe.batch_size, recipe.seed, epoch, recipe.augmentation.repeats)
        model.train()
        for batch in loader.run(plans):
            done = (time.monotonic() - start) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak_lr * min(done / 0.05, (1 + math.cos(math.pi * min(done, 1))) / 2)
            batch = batch.to(device)
            with autocast(device, precision):
                logits = model(batch.pixel_values).logits
            optimizer.zero_grad(set_to_none=True)
            soft_target_cross_entropy(logits, batch.targets).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if done >= 1:
                break
        result = evaluate_source(model.eval(), judge, precision=precision, quiet=True)
        curve.append(((time.monotonic() - start) / 60, result.answer.top1))
        if done >= 1:
            break
    held_out = EvaluationSamples(splits.held_out[1], recipe.processor())
    return evaluate_source(model.eval(), held_out, precision=precision, quiet=True).answer.top1, curve


def _forever() -> Iterator[int]:
    epoch = 0
    while True:
        yield epoch
        epoch += 1


def recipes(data: str, seed: int) -> dict[str, Recipe]:
    """The recipe of each contender: the digits' own ones on digits."""
    stem, network = ("digits", "digits-convnet") if data == DIGITS else ("small-data", "convnet")
    distilled = get_recipe(f"{stem}-distilled").replace(seed=seed)
    return {
        "teacher": get_recipe(network).replace(seed=seed),
        "undistilled": get_recipe(stem).replace(seed=seed),
        "soft": distilled.replace(distillation={"mode": "soft", "weight": 0.5}),
        "hard": distilled,
        "stored hard": distilled.replace(views=STORED_VIEWS),
    }


def curve_of(result: TrainResult, before: float) -> Curve:
    """Validation top-1 of each epoch; ``before`` minutes had gone by when it began."""
    points, seconds = [], 0.0
    for row in read_log(result.directory):
        seconds += row["seconds"]
        points.append((before + seconds / 60, row["validation"]["top1"]))
    return points


def one_seed(data: str, seed: int, minutes: float, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """Each contender's test top-1 (of every head), minutes and curve."""
    splits = open_data(data)
    chosen = recipes(data, seed)
    results: dict[str, dict[str, Any]] = {}
    plain, _ = fitted(chosen["undistilled"].replace(minutes=minutes), splits)
    height, _ = plain.image_hw
    torch.manual_seed(seed)
    if "six-layer convnet" in wanted:
        recipe = plain.replace(optimizer={"lr": 2.4e-2}, mixing={"probability": 0.0})
        top1, curve = baseline(SixLayers(len(splits.classes)), recipe, splits, minutes)
        results["six-layer convnet"] = {"top1": {"": top1}, "minutes": minutes, "curve": curve}
    if "timm" in wanted:
        recipe = get_recipe("deit").replace(seed=seed, batch_size=plain.batch_size, model={"image_size": height})
        network = Timm("deit_tiny_patch16_224", len(splits.classes), img_size=height, drop_path_rate=0.1)
        top1, curve = baseline(network, recipe, splits, minutes)
        results["timm"] = {"top1": {"": top1}, "minutes": minutes, "curve": curve}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        taught = 0.0
        for name in ("teacher", "undistilled", "soft", "hard", "stored hard"):
            if name not in wanted:
                continue
            distilled = name not in ("teacher", "undistilled")
            share = {"teacher": TEACHER_SHARE, "undistilled": 1.0}.get(name, 1 - TEACHER_SHARE)
            start = time.monotonic()
            teacher = str(root / "teacher") if distilled else None
            budget = share * minutes
            if name == "stored hard":
                store_on(splits, chosen[name].replace(minutes=budget), RunSettings(data, teacher=teacher), root / "store")
                teacher = str(root / "store")
                budget = max(budget - (time.monotonic() - start) / 60, 0.1 * budget)
            recipe = chosen[name].replace(minutes=budget)
            done = train_on(splits, recipe, RunSettings(data, teacher=teacher), root / name.replace(" ", "-"))
            spent = (time.monotonic() - start) / 60
            before = taught if distilled else 0.0
            if name == "teacher":
                taught = spent
            heads = {
                "" if len(done.evaluation.heads) == 1 else head: score.top1 for head, score in done.evaluation.heads.items()
            }
            results[name] = {"top1": heads, "minutes": spent + before, "curve": curve_of(done, before)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=DIGITS)
    parser.add_argument("--made", action="store_true", help="the signs of benchmarks/signs.py, in place of DATA")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if {"soft", "hard", "stored hard"} & {*options.only} and "teacher" not in options.only:
        parser.error("students need the teacher among --only")
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if options.made:
            data = str(Path(folder) / "signs")
            signs.write(Path(data))
        seeds = []
        for seed in range(options.seeds):
            seeds.append(one_seed(data, seed, options.minutes, options.only))
            scores = ", ".join(f"{name} {100 * _last(row):.1f}" for name, row in seeds[-1].items())
            say(f"Seed {seed}: {scores}")
    name = "signs" if options.made else Path(options.data).name
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "hardware": describe(choose_device()),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "data": name,
        "minutes": options.minutes,
        "seeds": seeds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"small_data-{name}"
    stem.with_suffix(".json").write_text(json.dumps(result) + "\n")
    stem.with_suffix(".md").write_text(table(result))
    plot(result, stem.with_suffix(".svg"))
    print(table(result))
    print(json.dumps(result))


def _last(row: dict[str, Any]) -> float:
    """The combined answer, or the only one."""
    return float(row["top1"].get("both", next(iter(row["top1"].values()))))


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = [
        f"# Small data: {result['data']}",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}; {len(result['seeds'])} seeds.",
        f"Top-1 on the test images in percent; {result['minutes']:g} minutes in all for each row, the teacher's included.",
        f"Made by `python benchmarks/small_data.py`, {'--made' if result['data'] == 'signs' else result['data']}, "
        f"`--minutes {result['minutes']:g} --seeds {len(result['seeds'])}`.",
        "",
        "| | top-1 | minutes |",
        "|---|---|---|",
    ]
    for name in result["seeds"][0]:
        for head in result["seeds"][0][name]["top1"]:
            scores = [100 * row[name]["top1"][head] for row in result["seeds"]]
            minutes = statistics.fmean(row[name]["minutes"] for row in result["seeds"])
            label = f"{name}, {head}" if head else name
            lines.append(f"| {label} | {statistics.fmean(scores):.1f} ± {_deviation(scores):.1f} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def plot(result: dict[str, Any], path: Path) -> None:
    """Validation accuracy against wall-clock as lines, one a seed; test accuracy at the end as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(result["seeds"][0]):
        for number, row in enumerate(result["seeds"]):
            times, scores = zip(*row[name]["curve"], strict=True)
            axes.plot(times, [100 * score for score in scores], color=f"C{place}", alpha=0.5, linewidth=1)
            label = name if number == 0 else None
            axes.plot([row[name]["minutes"]], [100 * _last(row[name])], "o", color=f"C{place}", label=label)
    axes.set_xlabel("minutes, the teacher's included")
    axes.set_ylabel("top-1, %: validation (lines), test (dots)")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
