"""The training of `deit quickstart`, with several seeds: accuracy on the digits' test images, and minutes.

    python -m benchmarks.quickstart [--seeds 5] [--write]

Each seed trains the teacher and its distilled student with the commands and recipes of `deit quickstart`, one process each,
timed from its start to its end. Nothing else should run on the machine. The last line printed is the result as JSON.
``--write`` writes ``quickstart.json`` and ``quickstart.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.reporting import environment, publish
from deit.system.devices import choose_device
from deit.system.progress import print_status

HEADS = {"class": "class head", "distillation": "distillation head", "both": "both heads"}


def run_command(arguments: list[str]) -> dict[str, Any]:
    """Runs a command of ``deit`` and returns the JSON that it prints."""
    command = [sys.executable, "-c", "from deit.cli.main import run; run()", *arguments, "--json"]
    output: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return output


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Trains a teacher and a student. Returns test top-1 of the teacher and of each head of the student, and minutes."""
    start = time.monotonic()
    teacher = run_command(["teacher", "train", "digits", "--seed", str(seed), "--out", str(folder / "teacher")])
    student = run_command(
        ["train", "digits", "--seed", str(seed), "--teacher", str(folder / "teacher"), "--out", str(folder / "student")]
    )
    minutes = (time.monotonic() - start) / 60
    top1 = {head: student["heads"][head]["top1"] for head in HEADS}
    return {"seed": seed, "teacher": teacher["heads"]["class"]["top1"], **top1, "minutes": minutes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            results.append(measure(seed, Path(folder) / str(seed)))
            row = results[-1]
            print_status(f"Seed {seed}: teacher {row['teacher']:.2%}, student {row['both']:.2%}, {row['minutes']:.1f} minutes")
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    result = {**environment(choose_device(), versions), "results": results}
    publish(result, table(result), "quickstart" if options.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = result["results"]
    columns = {"teacher": "teacher", **HEADS}
    lines = [
        "# Quickstart",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        "Top-1 accuracy on the 359 test images of the digits in percent; the recipes were tuned on these images. Minutes are",
        "those of both commands. Command: `python -m benchmarks.quickstart --write`.",
        "",
        f"| seed | {' | '.join(columns.values())} | minutes |",
        f"|{'--:|' * (len(columns) + 2)}",
    ]
    for row in rows:
        figures = " | ".join(f"{100 * row[column]:.1f}" for column in columns)
        lines.append(f"| {row['seed']} | {figures} | {row['minutes']:.1f} |")
    means = " | ".join(f"{100 * statistics.mean(row[column] for row in rows):.1f}" for column in columns)
    lines.append(f"| mean | {means} | {statistics.mean(row['minutes'] for row in rows):.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
