"""How much is learned from little data in little time: accuracy against wall-clock, over several seeds.

    python -m benchmarks.small_data [DATA] [--made] [--minutes 10] [--seeds 5] [--only ...] [--out benchmarks/results]

On the digits, on any folder of images, or (``--made``) on the signs of ``benchmarks/signs_dataset.py``. For each seed, each of:

- ``convnet, torchvision``: the teacher's network as one would train it by hand, with AdamW, a plain loop and torchvision's
  crops, turns, slants and color jitter, for all of the minutes;
- ``convnet, our augmentation``: the same with the teacher's augmentation;
- ``timm``: its tiny DeiT with the settings of its training script as far as they concern learning, for all of the minutes;
- ``teacher``: ``deit teacher train``, for 30% of the minutes;
- ``undistilled``: ``deit train`` without a teacher, for all of the minutes;
- ``soft``, ``hard``: ``deit train`` with that teacher, its maps as hints where the recipe has them, for the other 70%;
- ``stored hard``: ``deit teacher store`` and training from it, without hints, for the other 70% too;
- ``masked``: ``deit pretrain`` for 30%, then ``deit train`` from it without a teacher.

Every program ends by the clock, so a machine that others use too gives other figures. Writes ``small_data-NAME.json``, ``.md``
and ``.svg`` after each one; what the first holds of these minutes is not measured again. The last line printed is the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from benchmarks import signs_dataset
from deit.data.datasets.named import DIGITS
from deit.data.loader import EvaluationSamples, Loader
from deit.data.opening import open_data
from deit.data.sampler import epoch_steps
from deit.data.sources import ImageSource
from deit.data.splits import Splits
from deit.distillation.build_cache import build_cache_on
from deit.evaluation.evaluate import evaluate_source
from deit.models.losses import as_targets, soft_target_cross_entropy
from deit.models.outputs import ImageClassifierOutput
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.recipes.planning import resolve_recipe
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import training_samples
from deit.recipes.schema import Recipe
from deit.system.devices import autocast, choose_device, choose_precision, describe
from deit.system.progress import print_status
from deit.training.finishing import TrainResult
from deit.training.loop import read_log
from deit.training.run import pretrain, train_on

TEACHER_SHARE = 0.3  # of the minutes
CONVNET, CONVNET_OURS = "convnet, torchvision", "convnet, our augmentation"
CONTENDERS = (CONVNET, CONVNET_OURS, "timm", "teacher", "undistilled", "soft", "hard", "stored hard", "masked")
DISTILLED = {"soft", "hard", "stored hard"}
STORED_VIEWS = 12
Curve = list[tuple[float, float]]  # minutes, validation top-1
Epochs = Iterator[Iterable[tuple[torch.Tensor, torch.Tensor]]]  # batches of images and soft labels


class Timm(nn.Module):
    """A network of timm that answers as our classifiers do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.network(pixel_values))


class Photographs(Dataset[tuple[torch.Tensor, int]]):
    """A source as somebody's own script would have it: torchvision's augmentation."""

    def __init__(self, recipe: Recipe, source: ImageSource) -> None:
        mean, std = recipe.processor().rgb_statistics
        self.source = source
        self.augment = v2.Compose(
            [
                v2.RandomAffine(15, shear=(-15, 15, -15, 15), interpolation=InterpolationMode.BILINEAR),
                v2.RandomResizedCrop(recipe.image_hw, scale=(0.5, 1.0)),
                v2.RandomHorizontalFlip(recipe.augmentation.flip),
                v2.ColorJitter(0.4, 0.4, 0.4),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.augment(self.source.load(index)), int(self.source.labels[index])


def torchvision_epochs(recipe: Recipe, source: ImageSource) -> Epochs:
    """Endless epochs of torchvision's augmentation."""
    classes = len(source.classes)
    loader = DataLoader(
        Photographs(recipe, source), recipe.batch_size, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
    )
    while True:
        yield (
            (pixels, as_targets(labels, classes) * (1 - recipe.smoothing) + recipe.smoothing / classes)
            for pixels, labels in loader
        )


def our_epochs(recipe: Recipe, source: ImageSource) -> Epochs:
    """Endless epochs of a recipe's augmentation and mixing."""
    loader = Loader(training_samples(recipe, source))
    for epoch in itertools.count():
        plans = epoch_steps(len(source.labels), recipe.batch_size, recipe.seed, epoch, recipe.augmentation.repeats)
        yield ((batch.pixel_values, batch.targets) for batch in loader.run(plans))


def baseline(model: nn.Module, recipe: Recipe, splits: Splits, minutes: float, epochs: Epochs) -> tuple[float, Curve]:
    """Train a network by the clock with AdamW and a cosine: test top-1, and the curve."""
    device = choose_device()
    model.to(device).to(memory_format=torch.channels_last)
    precision = choose_precision("auto", device)
    judge = EvaluationSamples(splits.validation, recipe.processor())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=recipe.optimizer.weight_decay, betas=recipe.optimizer.betas
    )
    curve: Curve = []
    start = time.monotonic()
    done = 0.0
    for epoch in epochs:
        model.train()
        for pixels, targets in epoch:
            done = (time.monotonic() - start) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak_lr * min(done / 0.05, (1 + math.cos(math.pi * min(done, 1))) / 2)
            with autocast(device, precision):
                logits = model(pixels.to(device)).logits
            optimizer.zero_grad(set_to_none=True)
            soft_target_cross_entropy(logits, targets.to(device)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if done >= 1:
                break
        result = evaluate_source(model.eval(), judge, precision=precision, quiet=True)
        curve.append(((time.monotonic() - start) / 60, result.main.top1))
        if done >= 1:
            break
    held_out = EvaluationSamples(splits.held_out[1], recipe.processor())
    return evaluate_source(model.eval(), held_out, precision=precision, quiet=True).main.top1, curve


def recipes(data: str, seed: int) -> dict[str, Recipe]:
    """The recipe of each contender: the digits' own ones on digits."""
    stem, network = ("digits", "digits-convnet") if data == DIGITS else ("small-data", "convnet")
    distilled = get_recipe(f"{stem}-distilled").replace(seed=seed)
    return {
        "teacher": get_recipe(network).replace(seed=seed),
        "undistilled": get_recipe(stem).replace(seed=seed),
        "soft": distilled.replace(distillation={"mode": "soft", "weight": 0.5, "temperature": 2.0}),
        "hard": distilled,
        "stored hard": distilled.replace(views=STORED_VIEWS, distillation={"features": 0.0}),
        "masked": get_recipe(stem).replace(seed=seed),
    }


def curve_of(result: TrainResult, before: float) -> Curve:
    """Validation top-1 of each epoch; ``before`` minutes had gone by when it began."""
    points, seconds = [], 0.0
    for row in read_log(result.directory):
        seconds += row["seconds"]
        points.append((before + seconds / 60, row["validation"]["top1"]))
    return points


@dataclass
class Seed:
    """One seed's contenders, each of them measured when asked for; the teacher comes before its students."""

    data: str
    number: int
    minutes: float
    folder: Path
    taught: float = 0.0

    def __post_init__(self) -> None:
        self.splits = open_data(self.data)
        self.recipes = recipes(self.data, self.number)
        self.plain, _ = resolve_recipe(self.recipes["undistilled"].replace(minutes=self.minutes), self.splits)
        torch.manual_seed(self.number)

    def measure(self, name: str) -> dict[str, Any]:
        """Test top-1 of every head, the minutes that it took with all that it needs, and the curve."""
        classes, (height, _) = len(self.splits.classes), self.plain.image_hw
        if name in (CONVNET, CONVNET_OURS):
            recipe = self.plain.replace(batch_size=64, optimizer={"lr": 3e-3, "reference_batch": 64})
            epochs = torchvision_epochs if name == CONVNET else our_epochs
            return self._baseline(timm.create_model(PLAIN_CONVNET, num_classes=classes), recipe, epochs)
        if name == "timm":
            recipe = get_recipe("deit").replace(seed=self.number, batch_size=64, model={"image_size": height})
            network = timm.create_model("deit_tiny_patch16_224", num_classes=classes, img_size=height, drop_path_rate=0.1)
            return self._baseline(network, recipe, our_epochs)
        start = time.monotonic()
        distilled = name in DISTILLED
        share = {"teacher": TEACHER_SHARE, "undistilled": 1.0}.get(name, 1 - TEACHER_SHARE)
        budget = share * self.minutes
        run = RunSettings(self.data, teacher=str(self.folder / "teacher") if distilled else None)
        if name == "stored hard":
            build_cache_on(self.splits, self.recipes[name].replace(minutes=budget), run, self.folder / "store")
            run = replace(run, teacher=str(self.folder / "store"))
            budget = max(budget - (time.monotonic() - start) / 60, 0.1 * budget)
        if name == "masked":
            run = replace(run, init=str(pretrain(self.data, self._masked(), out=self.folder / "first").directory))
        result = train_on(self.splits, self.recipes[name].replace(minutes=budget), run, self.folder / name.replace(" ", "-"))
        spent = (time.monotonic() - start) / 60
        before = self.taught if distilled else 0.0
        if name == "teacher":
            self.taught = spent
        heads = result.evaluation.heads
        top1 = {"" if len(heads) == 1 else head: score.top1 for head, score in heads.items()}
        own = sum(row["seconds"] for row in read_log(result.directory)) / 60
        return {"top1": top1, "minutes": before + spent, "curve": curve_of(result, before + spent - own)}

    def _masked(self) -> Recipe:
        """Masked pretraining of the shape that the minutes afterwards are for."""
        shape = {"sizes": "data", "init": "local"}
        plain = self.plain.model_dump(include={"batch_size", "micro_batch_size", "optimizer"})
        flips = {"flip": self.plain.augmentation.flip}
        recipe = get_recipe("pretrain-mim").replace(seed=self.number, minutes=TEACHER_SHARE * self.minutes)
        return recipe.replace(**plain, model=shape, augmentation=flips)

    def _baseline(self, network: nn.Module, recipe: Recipe, epochs: Callable[[Recipe, ImageSource], Epochs]) -> dict[str, Any]:
        top1, curve = baseline(Timm(network), recipe, self.splits, self.minutes, epochs(recipe, self.splits.train))
        return {"top1": {"": top1}, "minutes": self.minutes, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=DIGITS)
    parser.add_argument("--made", action="store_true", help="the signs of benchmarks/signs_dataset.py, in place of DATA")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    name = "signs" if options.made else Path(options.data).name
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"small_data-{name}"
    result = earlier(stem.with_suffix(".json"), name, options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if options.made:
            data = str(Path(folder) / "signs")
            signs_dataset.write_dataset(Path(data))
        for number in range(options.seeds):
            known = {row["contender"] for row in result["rows"] if row["seed"] == number}
            wanted = {contender for contender in options.only if contender not in known}
            if wanted & DISTILLED:
                wanted.add("teacher")  # nothing kept it
            seed = Seed(data, number, options.minutes, Path(folder) / str(number))
            for contender in sorted(wanted, key=CONTENDERS.index):
                row = {"seed": number, "contender": contender, "date": date.today().isoformat(), **seed.measure(contender)}
                others = [one for one in result["rows"] if (one["seed"], one["contender"]) != (number, contender)]
                result["rows"] = [*others, row]
                stem.with_suffix(".json").write_text(json.dumps(result) + "\n")
                stem.with_suffix(".md").write_text(table(result))
                plot(result, stem.with_suffix(".svg"))
                print_status(f"Seed {number}, {contender}: {100 * _last(row):.1f} in {row['minutes']:.1f} minutes")
    print(table(result))
    print(json.dumps(result))


def earlier(path: Path, data: str, minutes: float) -> dict[str, Any]:
    """What was measured before on such a machine with the same minutes, or an empty result."""
    fresh: dict[str, Any] = {
        "hardware": describe(choose_device()),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "data": data,
        "minutes": minutes,
    }
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        if all(known.get(field) == value for field, value in fresh.items()):
            return known
    return {**fresh, "rows": []}


def _last(row: dict[str, Any]) -> float:
    """The combined answer, or the only one."""
    return float(row["top1"].get("both", next(iter(row["top1"].values()))))


def _by_contender(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows = {name: [row for row in result["rows"] if row["contender"] == name] for name in CONTENDERS}
    return {name: sorted(found, key=lambda row: int(row["seed"])) for name, found in rows.items() if found}


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    dates = sorted({row["date"] for row in result["rows"]})
    data = "--made" if result["data"] == "signs" else result["data"]
    lines = [
        f"# Small data: {result['data']}",
        "",
        f"{' to '.join(sorted({dates[0], dates[-1]}))}, {result['hardware']}, {result['software']}.",
        f"Top-1 on the test images in percent, mean and standard deviation over the seeds; {result['minutes']:g} minutes",
        "for each row, with the teacher or pretraining that it needs.",
        f"Made by `python -m benchmarks.small_data {data} --minutes {result['minutes']:g}`.",
        "",
        "| | top-1 | seeds | minutes |",
        "|---|---|--:|--:|",
    ]
    for name, rows in _by_contender(result).items():
        minutes = statistics.fmean(row["minutes"] for row in rows)
        for head in rows[0]["top1"]:
            scores = [100 * row["top1"][head] for row in rows]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            label = f"{name}, {head}" if head else name
            lines.append(f"| {label} | {statistics.fmean(scores):.1f}{spread} | {len(rows)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Validation accuracy against wall-clock as lines, one a seed; test accuracy at the end as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in _by_contender(result).items():
        color = f"C{CONTENDERS.index(name)}"
        for row in rows:
            times, scores = zip(*row["curve"], strict=True)
            axes.plot(times, [100 * score for score in scores], color=color, alpha=0.5, linewidth=1)
            axes.plot([row["minutes"]], [100 * _last(row)], "o", color=color, label=name if row is rows[0] else None)
    axes.set_xlabel("minutes, with the teacher's or pretraining's")
    axes.set_ylabel("top-1, %: validation (lines), test (dots)")
    axes.legend(fontsize=8, loc="center right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
