"""Training in several processes on one machine: the same batches, how far the weights drift apart, and killed processes.

    python -m benchmarks.ranks [--kills 20] [--seed 0] [--write]

The same run is trained by ``torchrun`` with 1, 2 and 4 processes on the CPU (gloo). Each takes its share of the same global
batches, so that the runs differ in the order in which gradients are added up, and in the statistics of batch norms. Their
weights are compared with those of one process. Two processes are run twice, which must end in the same bits.

Then two processes train again, and one of them, drawn at random, is killed after a random time. torchrun starts both again, the
run resumes, and so on for all kills. It must end in the bits of the run that was not killed; in the log, durations are left
out.

The models are tiny: this measures correctness, not speed. The last line printed is the result as JSON. ``--write`` writes
``ranks.json`` and ``ranks.md``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.kills import final_state, make_images, make_teachers, setups
from benchmarks.reporting import environment, publish
from deit.checkpoints.run_log import read_log
from deit.recipes.schema import Recipe
from deit.training.state import newest_checkpoint

SIZES = (1, 2, 4)  # processes
EPOCHS = 30


def recipe() -> Recipe:
    """Returns the recipe: a live teacher, feature maps, mixing, stochastic depth, Muon, EMA."""
    found = next(setup.recipe for setup in setups() if setup.teacher == "teacher")
    return found.replace(epochs=EPOCHS)


def start(folder: Path, directory: Path, processes: int, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Starts torchrun with some processes on this machine."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *("--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", "deit", "train", folder / "images"),
            *("--recipe", folder / "recipe.toml", "--teacher", folder / "teacher", "--out", directory),
            *("--workers", "0", "--device", "cpu", "--checkpoint-minutes", "1e-6"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(program: subprocess.Popen[bytes]) -> None:
    """Waits for a program.

    Raises:
        RuntimeError: it failed.
    """
    _, errors = program.communicate()
    if program.returncode:
        raise RuntimeError(f"torchrun ended with exit code {program.returncode}:\n{errors.decode()}")


def ranks_of(program: subprocess.Popen[bytes]) -> list[int]:
    """Returns the processes that torchrun has started and that train."""
    tasks = Path(f"/proc/{program.pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"deit" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill_and_restart(
    folder: Path, expected: dict[str, Any], kills: int, rng: random.Random, duration: float
) -> tuple[int, int]:
    """Trains in two processes, of which one is killed at random moments, until a number of kills is used up.

    Args:
        folder: with images, teacher and recipe.
        expected: final state of a run that was not killed.
        kills: how often a process is killed.
        rng: draws processes and moments.
        duration: seconds between two kills at most.

    Returns:
        The number of runs that ended, and how many of them did not end in the expected state.
    """
    ended = different = 0
    while kills > 0:
        directory = folder / f"killed {ended}"
        program = start(folder, directory, processes=2, restarts=kills)
        while kills > 0:
            try:
                program.wait(rng.uniform(0, duration))
                break
            except subprocess.TimeoutExpired:
                kills -= _kill_one(program, rng)
        finish(program)
        ended += 1
        different += final_state(directory) != expected
    return ended, different


def _kill_one(program: subprocess.Popen[bytes], rng: random.Random) -> int:
    """Kills one of the processes, and returns 1; 0 if they are just being started, or have ended."""
    try:
        os.kill(rng.choice(ranks_of(program)), signal.SIGKILL)
    except (IndexError, OSError):
        return 0
    return 1


def weights(directory: Path) -> torch.Tensor:
    """Returns all weights of the last checkpoint as a vector."""
    found, _ = newest_checkpoint(directory / "checkpoints")
    assert found is not None
    tensors = load_file(found.path / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        make_teachers(folder)
        recipe().save(folder / "recipe.toml")
        for processes in SIZES:
            finish(start(folder, folder / f"{processes}", processes))
        begun = time.monotonic()
        finish(start(folder, folder / "again", 2))
        duration = time.monotonic() - begun
        expected = final_state(folder / "2")
        repeats = final_state(folder / "again") == expected
        alone = weights(folder / "1")
        rows = []
        for processes in SIZES:
            last = read_log(folder / f"{processes}")[-1]
            row = {
                "processes": processes,
                "loss": last["loss"],
                "validation_images": last["validation"]["images"],
                "validation_loss": last["validation"]["loss"],
                "drift": float((weights(folder / f"{processes}") - alone).norm() / alone.norm()),
            }
            print(row, flush=True)
            rows.append(row)
        rng = random.Random(arguments.seed)
        ended, different = kill_and_restart(folder, expected, arguments.kills, rng, duration)
        killed = {"kills": arguments.kills, "seed": arguments.seed, "runs": ended, "different": different}
        result: dict[str, Any] = {"rows": rows, "repeats": repeats, **killed}
    measured = {**environment(torch.device("cpu"), {"torch": torch.__version__}), "epochs": EPOCHS, **result}
    publish(measured, table(measured), "ranks" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = [
        f"| {row['processes']} | {row['loss']:.6f} | {row['validation_images']} | {row['validation_loss']:.6f} "
        f"| {row['drift']:.1e} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            "# Training in several processes",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            f"`python -m benchmarks.ranks --kills {result['kills']} --seed {result['seed']}`: a tiny student with a live",
            f"teacher and feature maps, {result['epochs']} epochs, started by torchrun on one machine (gloo). Losses are",
            "those of the last epoch; drift is the distance of the weights to those of one process, relative to their norm.",
            "",
            "| processes | training loss | validation images | validation loss | drift |",
            "|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"Two processes, trained twice, ended in {'the same' if result['repeats'] else 'different'} bits.",
            f"With {result['kills']} kills of one of the two at random moments, {result['runs']} runs ended, of which "
            f"{result['different']} ended in other bits than one that was not killed.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
