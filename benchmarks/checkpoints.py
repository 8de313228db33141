"""How long training waits for a checkpoint that is written beside it.

    python -m benchmarks.checkpoints [--variants NAME ...] [--repeats 3] [--write]

Training waits while weights, their EMA and the optimizer state are copied. While a thread writes the copy, steps are slower,
since they share the cores with it. Both together, in percent of the five minutes between two checkpoints, are what a checkpoint
costs.

A step is that of AdamW on random images at the variant's own size, in the precision that training would choose. The checkpoints
are below the current directory, so that its disk is measured. Figures are medians over the repeats. The last line printed is
the result as JSON. ``--write`` writes ``checkpoints.json`` and ``checkpoints.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment, publish
from deit.config import variant_config
from deit.models.modeling import new_classifier
from deit.recipes.run_settings import CHECKPOINT_MINUTES
from deit.recipes.schema import Ema, Optimizer
from deit.system.devices import autocast, choose_device, choose_precision
from deit.system.malloc import retained_memory
from deit.training.checkpoint_writer import CheckpointWriter
from deit.training.optimization import ModelEma, make_optimizer
from deit.training.state import TrainState, take_snapshot

VARIANTS = ("deit-tiny-patch16-224", "deit-base-patch16-224")
BATCH = 8
STEPS = 4  # without a checkpoint, for comparison


def measure(variant: str, repeats: int, folder: Path, device: torch.device) -> dict[str, Any]:
    """Measures the checkpoints of a variant. Returns medians in seconds, and the bytes of a checkpoint."""
    model = new_classifier(variant_config(variant), torch.Generator().manual_seed(0)).to(device).train()
    ema, optimizer = ModelEma(model, Ema()), make_optimizer(model, Optimizer())
    pixels = torch.randn(BATCH, 3, *model.config.image_hw, device=device)
    precision = choose_precision("auto", device)

    def step() -> None:
        with autocast(device, precision):
            loss = model(pixels).logits.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(model, 0)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    rows: list[dict[str, float]] = []
    with CheckpointWriter(folder, 0.0, "") as writer:
        step()
        for repeat in range(repeats):
            alone = statistics.median(seconds(step) for _ in range(STEPS))
            begun = time.perf_counter()
            snapshot = take_snapshot(TrainState(epoch=repeat), model, ema, optimizer)
            copying = time.perf_counter() - begun
            writer.start(snapshot)
            begun, beside = time.perf_counter(), []
            while not writer.is_due:
                beside.append(seconds(step))
            writing = time.perf_counter() - begun
            waited = copying + sum(beside) - alone * len(beside)
            rows.append({"step": alone, "copying": copying, "writing": writing, "waited": waited})
    size = sum(file.stat().st_size for file in max(folder.iterdir()).iterdir())
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"variant": variant, "bytes": size, **medians, "share": medians["waited"] / (60 * CHECKPOINT_MINUTES)}


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="model variants")
    parser.add_argument("--repeats", type=int, default=3, help="checkpoints per variant")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    device = choose_device()
    with retained_memory(device), tempfile.TemporaryDirectory(dir=".") as name:
        rows = [measure(variant, options.repeats, Path(name) / variant, device) for variant in options.variants]
    result = {**environment(device, {"torch": torch.__version__}), "repeats": options.repeats, "rows": rows}
    publish(result, table(result), "checkpoints" if options.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Checkpoints beside training",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"`python -m benchmarks.checkpoints --repeats {result['repeats']} --write`: seconds, medians. Training waits while the",
        "weights, their EMA and the optimizer state are copied, and its steps are slower while the copy is written; both",
        f"together in percent of the {CHECKPOINT_MINUTES:g} minutes between two checkpoints.",
        "",
        "| model | MB | step of 8 images | copying | writing | training waited | of the time |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['variant']} | {row['bytes'] / 1e6:,.0f} | {row['step']:.2f} | {row['copying']:.3f} | {row['writing']:.2f} "
        f"| {row['waited']:.2f} | {row['share']:.2%} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
