"""Throughput of a training step on a quiet and on a busy machine, by how long waiting OpenMP threads spin.

    python -m benchmarks.busy_machine [--spins 0 1000 ...] [--steps 8] [--repeats 9] [--write]

The step is that of the smallest student of the recipe ``small-data-distilled`` (64 pixels, patch 8, width 96, depth 4, bf16,
batch 32), with a ``plain_convnet`` as its teacher and the feature maps distilled. Its weights are random, which takes the same
time. It consists of hundreds of short parallel loops, so that it depends on how threads wait for each other more than a larger
model does.

``divided batch`` is what ``deit train`` does: it divides the batch into one micro-batch per core, which run at the same time
(``deit/training/parallel_batches.py``). In all other settings, each operation is divided among the cores. The variables of the
last setting are those that the program sets (``deit/system/openmp.py``).

Each setting of the environment has a process of its own, since OpenMP reads it when torch is loaded. In each repeat, all of
them take a turn on the machine as it is, and then a turn beside a process that keeps one core busy. Figures are medians over
the repeats; a ratio is that of two turns of the same repeat.

The last line printed is the result as JSON. ``--write`` writes ``busy_machine.json`` and ``busy_machine.md``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Contender
from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.data.loader import Batch
from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.teacher import Teacher
from deit.models.auto import LoadedClassifier
from deit.models.modeling import new_classifier
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe, Transformer
from deit.system.hardware import cores
from deit.system.malloc import retained_memory
from deit.system.openmp import SPIN_COUNT, SPIN_VARIABLE, WAIT_VARIABLE
from deit.training.optimization import make_optimizer, trainable_modules
from deit.training.parallel_batches import ParallelBatches
from deit.training.step import StepContext, train_step

BATCH, IMAGE_SIZE = 32, 64
CLASSES = tuple(map(str, range(35)))
WARM_UP_STEPS = 5
REST_SECONDS = 0.05  # before each turn, so that the threads of the previous one have stopped spinning
START_SECONDS = 1.0  # until a new process runs
DEFAULT, PASSIVE = "default", f"{WAIT_VARIABLE}=PASSIVE"
DIVIDED = "divided batch, "
CHOSEN = f"{DIVIDED}{SPIN_VARIABLE}={SPIN_COUNT}, {WAIT_VARIABLE}=ACTIVE"
QUIET, BUSY = "quiet", "busy"


@dataclass(frozen=True)
class Setting:
    """How OpenMP threads wait.

    Attributes:
        name: name of the contender.
        variables: variables of the environment.
        divides_batch: whether micro-batches run at the same time.
    """

    name: str
    variables: Mapping[str, str]
    divides_batch: bool = False


def settings(spins: list[int]) -> list[Setting]:
    """Returns the contenders: OpenMP's default, passive waiting, numbers of spins (also with divided batches), and ours."""
    counts = [
        Setting(f"{prefix}{SPIN_VARIABLE}={count}", {SPIN_VARIABLE: str(count)}, divides_batch=bool(prefix))
        for prefix in ("", DIVIDED)
        for count in spins
    ]
    chosen = Setting(CHOSEN, {SPIN_VARIABLE: str(SPIN_COUNT), WAIT_VARIABLE: "ACTIVE"}, divides_batch=True)
    return [Setting(DEFAULT, {}), Setting(PASSIVE, {WAIT_VARIABLE: "PASSIVE"}), *counts, chosen]


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets how OpenMP waits in the processes that are started in this context."""
    before = dict(os.environ)
    for name in (WAIT_VARIABLE, SPIN_VARIABLE):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_recipe() -> Recipe:
    """Returns the recipe with the smallest shape that it chooses."""
    shape = {"image_size": IMAGE_SIZE, "patch_size": 8, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8}
    return get_recipe("small-data-distilled").replace(batch_size=BATCH, model={**shape, "sizes": "variant"})


def make_step(divides_batch: bool) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that takes a training step on a random batch."""
    recipe, processor = make_recipe(), make_recipe().processor()
    assert isinstance(recipe.model, Transformer)
    network = new_timm_classifier(PLAIN_CONVNET, CLASSES, processor, {}, seed=0)
    teacher = Teacher(LoadedClassifier(network, processor, CLASSES), CLASSES, processor, PLAIN_CONVNET)
    model = new_classifier(recipe.model.config(CLASSES), torch.Generator().manual_seed(0)).train()
    batches = make_batches(cores() if divides_batch else 1)
    reduction = teacher.feature_reduction(batches, "")
    features = FeatureDistillation(model.config, reduction.shapes, recipe.seed, reduction)
    optimizer = make_optimizer(trainable_modules(model, features), recipe.optimizer)
    parallel = ParallelBatches(model, features, len(batches)) if divides_batch else None
    context = StepContext(recipe, "bf16", teacher, features, parallel)
    return lambda: train_step(model, optimizer, batches, context, 0, 0, 1e-3)


def make_batches(count: int) -> list[Batch]:
    """Returns a random batch in ``count`` parts."""
    pixels = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(BATCH) % len(CLASSES)
    targets = torch.nn.functional.one_hot(labels, len(CLASSES)).float()
    samples = torch.stack([torch.arange(BATCH)] * 3, dim=1)
    parts = zip(*(tensor.chunk(count) for tensor in (pixels, labels, targets, samples)), strict=True)
    return [Batch(*part) for part in parts]


def serve(connection: Connection, job: tuple[int, bool]) -> None:
    """Runs a contender, which divides batches or does not: replies to each request with the images per second of some steps."""
    steps, divides_batch = job
    torch.set_num_threads(cores())
    with retained_memory(torch.device("cpu")):
        step = make_step(divides_batch)
        for _ in range(WARM_UP_STEPS):
            step()
        connection.send("ready")
        for _ in iter(connection.recv, None):
            start = time.perf_counter()
            for _ in range(steps):
                step()
            connection.send(BATCH * steps / (time.perf_counter() - start))
    connection.send("stopped")


@contextmanager
def busy_core() -> Iterator[None]:
    """Keeps the last core busy with a process that never waits. It ends with this process at the latest."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile os.getppid() == {os.getpid()}: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(START_SECONDS)
        yield
    finally:
        process.kill()
        process.wait()


def measure(contenders: Mapping[str, Contender], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Returns the images per second of each turn, by the state of the machine and by contender."""
    rates: dict[str, dict[str, list[float]]] = {state: {name: [] for name in contenders} for state in (QUIET, BUSY)}

    def take_turns(state: str) -> None:
        for name, contender in contenders.items():
            time.sleep(REST_SECONDS)
            rates[state][name].append(contender.request("turn"))

    for _ in range(repeats):
        take_turns(QUIET)
        with busy_core():
            take_turns(BUSY)
    return rates


def summarize(rates: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Returns one row for each contender: images per second, and their ratio to the default's, by the state of the machine."""
    rows = []
    for name in rates[QUIET]:
        row: dict[str, Any] = {"setting": name}
        for state, by_name in rates.items():
            ratios = [mine / default for mine, default in zip(by_name[name], by_name[DEFAULT], strict=True)]
            row[state] = {"images_per_second": quartiles(by_name[name]), "of_default": quartiles(ratios)}
        shares = [busy / quiet for busy, quiet in zip(rates[BUSY][name], rates[QUIET][name], strict=True)]
        rows.append({**row, "busy_share": quartiles(shares)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_spins = sorted({0, 300, 1_000, 3_000, 10_000, SPIN_COUNT})
    parser.add_argument("--spins", type=int, nargs="+", default=default_spins, help=f"values of {SPIN_VARIABLE}")
    parser.add_argument("--steps", type=int, default=8, help="steps per turn")
    parser.add_argument("--repeats", type=int, default=9, help="number of turns of each setting")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    contenders: dict[str, Contender] = {}
    for setting in settings(options.spins):
        with variables_set(setting.variables):
            contenders[setting.name] = Contender(serve, (options.steps, setting.divides_batch))
    rates = measure(contenders, options.repeats)
    for contender in contenders.values():
        contender.stop()
    torch.set_num_threads(cores())
    result: dict[str, Any] = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "spins": options.spins,
        "steps": options.steps,
        "repeats": options.repeats,
        "chosen": CHOSEN,
        "rows": summarize(rates),
    }
    publish(result, table(result), "busy_machine" if options.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    spins = " ".join(map(str, result["spins"]))
    command = f"--spins {spins} --steps {result['steps']} --repeats {result['repeats']}"
    lines = [
        "# Training step on a busy machine",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Images per second of a small student with its teacher, medians of {result['repeats']} turns, and the",
        "quartiles. Busy: another process keeps one core busy. Ratios are within a repeat. Command:",
        f"`python -m benchmarks.busy_machine {command} --write`.",
        "",
        "| setting | quiet | of default | busy | of default | busy / quiet |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        chosen = " (in `deit train`)" if row["setting"] == result["chosen"] else ""
        cells = [
            cell
            for state in (QUIET, BUSY)
            for cell in (with_quartiles(row[state]["images_per_second"], 0), with_quartiles(row[state]["of_default"], 2))
        ]
        lines.append(f"| {row['setting']}{chosen} | {' | '.join(cells)} | {with_quartiles(row['busy_share'], 2)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
