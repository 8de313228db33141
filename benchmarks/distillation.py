"""None, soft and hard distillation on the digits, at 10% and 100% of the labels, over several seeds.

    python benchmarks/distillation.py [--seeds 5] [--epochs 12] [--out benchmarks/results]

For each seed and share of the labels a teacher is trained on that share, then three students on the same images: one from
the labels alone, one by soft and one by hard distillation. All are measured on the same 359 test images. Every run takes
the same number of steps: of a tenth of the labels an epoch shows each image ten times, each time augmented anew.

Writes ``distillation.json``, ``distillation.md`` and ``distillation.svg``; the last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit.data.opening import open_data
from deit.data.sources import Splits, subset
from deit.devices import describe
from deit.progress import say
from deit.training.recipe import Recipe
from deit.training.recipes import get_recipe
from deit.training.run import train_on
from deit.training.settings import RunSettings

SHARES = (0.1, 1.0)
TEACHER_EPOCHS = 5
MODES = ("none", "soft", "hard")


def share_of_labels(share: float, seed: int) -> Splits:
    """The digits with a share of each class's training images, drawn by the seed; validation and test stay whole."""
    splits = open_data("digits")
    if share == 1:
        return splits
    rng = np.random.default_rng(seed)
    labels = splits.train.labels
    kept = [
        index
        for label in range(len(splits.classes))
        for index in rng.permutation(np.flatnonzero(labels == label))[: max(round(share * (labels == label).sum()), 1)]
    ]
    return replace(splits, train=subset(splits.train, sorted(kept) * round(1 / share)))


def student(mode: str, seed: int, epochs: int) -> Recipe:
    """The quickstart's student, with another way to learn from the teacher."""
    if mode == "none":
        return get_recipe("digits").replace(seed=seed, epochs=epochs)
    return get_recipe("digits-distilled").replace(seed=seed, epochs=epochs, distillation={"mode": mode})


def one_seed(share: float, seed: int, epochs: int) -> dict[str, float]:
    """Test accuracy of the teacher and of each student, by name."""
    splits = share_of_labels(share, seed)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = get_recipe("digits-convnet").replace(seed=seed, epochs=TEACHER_EPOCHS)
        done = train_on(splits, teacher, RunSettings("digits"), root / "teacher", workers=0)
        results["teacher"] = done.evaluation.answer.top1
        for mode in MODES:
            run = RunSettings("digits", teacher=None if mode == "none" else str(root / "teacher"))
            done = train_on(splits, student(mode, seed, epochs), run, root / mode, workers=0)
            for name, head in done.evaluation.heads.items():
                results[mode if mode == "none" else f"{mode}, {name}"] = head.top1
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    start = time.monotonic()
    scores: dict[str, dict[str, list[float]]] = {}
    for share in SHARES:
        for seed in range(options.seeds):
            for name, top1 in one_seed(share, seed, options.epochs).items():
                scores.setdefault(f"{share:.0%}", {}).setdefault(name, []).append(top1)
            latest = ", ".join(f"{name} {values[-1]:.2%}" for name, values in scores[f"{share:.0%}"].items())
            say(f"{share:.0%} of the labels, seed {seed}: {latest}")
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device("cpu")),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "seeds": options.seeds,
        "epochs": options.epochs,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "top1": scores,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "distillation.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "distillation.md").write_text(table(result))
    plot(result, options.out / "distillation.svg")
    print(table(result))
    print(json.dumps(result))


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation, as Markdown."""
    shares = list(result["top1"])
    names = list(result["top1"][shares[0]])
    lines = [
        "# Distillation on the digits",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}; {result['seeds']} seeds, "
        f"{result['minutes']} minutes in all.",
        "Top-1 on the 359 test images in percent, mean and standard deviation over the seeds. Made by "
        f"`python benchmarks/distillation.py --seeds {result['seeds']} --epochs {result['epochs']}`.",
        "",
        "| | " + " | ".join(f"{share} of the labels" for share in shares) + " |",
        "|---|" + "---|" * len(shares),
    ]
    for name in names:
        cells = [
            f"{_mean(result['top1'][share][name]):.2f} ± {_deviation(result['top1'][share][name]):.2f}" for share in shares
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Each seed as a dot, the mean as a bar."""
    from matplotlib.figure import Figure

    shares = list(result["top1"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, share in enumerate(shares):
        axes = figure.add_subplot(1, len(shares), place + 1)
        names = list(result["top1"][share])
        for row, name in enumerate(names):
            values = result["top1"][share][name]
            axes.plot([100 * value for value in values], [row] * len(values), "o", color="#2f6fd0", alpha=0.5, markersize=5)
            axes.plot([_mean(values)] * 2, [row - 0.3, row + 0.3], color="#222222", linewidth=2)
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axes.invert_yaxis()
        axes.set_xlabel("top-1, %")
        axes.set_title(f"{share} of the labels", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _mean(values: list[float]) -> float:
    return 100 * statistics.fmean(values)


def _deviation(values: list[float]) -> float:
    return 100 * statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
