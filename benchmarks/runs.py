"""How long it takes to list many runs.

    python -m benchmarks.runs [--runs 1000] [--repeats 5] [--write]

Each run has 30 epochs and 35 classes. ``deit.evaluation.runs`` reads all of them, after they have been read once. The last line
printed is the result as JSON. ``--write`` writes ``runs.json`` and ``runs.md``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.checkpoints.run_log import write_log
from deit.evaluation.runs import find_runs, read_summary
from deit.recipes.presets import get_recipe
from deit.system.files import EVALUATION_NAME, RECIPE_NAME, RUN_NAME, write_json

EPOCHS, CLASSES = 30, 35


def make_run(path: Path) -> None:
    """Writes the files of a finished run, without its models."""
    path.mkdir(parents=True)
    (path / RECIPE_NAME).write_text(get_recipe("small-data").to_toml())
    write_json(path / RUN_NAME, {"data": "photos"})
    rows = [
        {"epoch": epoch, "loss": 1.0, "lr": 0.1, "seconds": 9.0, "validation": {"top1": 0.5, "loss": 1.0, "images": 700}}
        for epoch in range(1, EPOCHS + 1)
    ]
    write_log(path, rows)
    head = {"top1": 0.5, "top5": 0.9, "loss": 1.0, "calibration_error": 0.1}
    evaluation = {
        "split": "test",
        "images": 1050,
        "heads": {"class": head, "both": head},
        "top1_interval": {"low": 0.4, "high": 0.6},
        "per_class": {f"class {number}": 0.5 for number in range(CLASSES)},
        "confusion": [[number, number, 30] for number in range(CLASSES)],
    }
    write_json(path / EVALUATION_NAME, evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), []
        for number in range(arguments.runs):
            make_run(folder / f"{number:06d}")
        for _ in range(arguments.repeats + 1):
            start = time.perf_counter()
            found = [read_summary(run) for run in find_runs(folder)]
            seconds.append(time.perf_counter() - start)
    assert len(found) == arguments.runs
    result = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "runs": arguments.runs,
        "repeats": arguments.repeats,
        "seconds": quartiles(seconds[1:]),
    }
    publish(result, table(result), "runs" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n".join(
        [
            "# Listing runs",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            f"`python -m benchmarks.runs --runs {result['runs']} --repeats {result['repeats']}`: median (quartiles).",
            "",
            f"{result['runs']:,} runs of {EPOCHS} epochs are listed in {with_quartiles(result['seconds'], 2)} s.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
