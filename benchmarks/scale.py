"""The arithmetic of a large training run, without its pixels: the order of an epoch of ImageNet on several processes.

    python -m benchmarks.scale [--images 1281167] [--ranks 8] [--batch-size 1024] [--repeats 3] [--write]

Plans an epoch as each process does, and checks that every sample is in one process, at most ``repeats`` times per image; that
each step has the same number of samples in every process, give or take a pair; and that a resumed epoch goes on with the same
samples on half as many processes. The images are those of a packed data set: where each sample is read is looked up in an index
of shards. The last line printed is the result as JSON. ``--write`` writes ``scale.json`` and ``scale.md``.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import environment, publish
from deit.data.datasets.shards import ENTRY
from deit.data.sampler import BatchPlan
from deit.recipes.presets import get_recipe
from deit.recipes.samples import view_steps
from deit.recipes.schema import Recipe

IMAGE_BYTES, SHARD_BYTES = 110_000, 256_000_000


def index_of(images: int) -> np.ndarray:
    """Returns the index of a packed data set with images of one size."""
    entries = np.zeros(images, ENTRY)
    per_shard = SHARD_BYTES // IMAGE_BYTES
    entries["shard"], entries["offset"] = np.arange(images) // per_shard, np.arange(images) % per_shard * IMAGE_BYTES
    entries["bytes"] = IMAGE_BYTES
    return entries


def samples_of(steps: Sequence[Sequence[BatchPlan]]) -> np.ndarray:
    """Returns (n, 4): step, index, repeat, and position of each sample."""
    plans = [plan for step in steps for plan in step if len(plan.samples)]
    return np.concatenate([np.column_stack([np.full(len(plan.samples), plan.step), plan.samples]) for plan in plans])


def check_epoch(recipe: Recipe, images: int, ranks: int) -> dict[str, Any]:
    """Plans and checks an epoch.

    Raises:
        AssertionError: a sample is missing or doubled, or the processes do not share the work.
    """
    start = time.perf_counter()
    by_rank = [view_steps(recipe, images, 0, rank, ranks) for rank in range(ranks)]
    planning = (time.perf_counter() - start) / ranks
    shares = [samples_of(steps) for steps in by_rank]
    alone = samples_of(view_steps(recipe, images, 0))
    everything = np.concatenate(shares)
    order = np.lexsort((everything[:, 3], everything[:, 0]))
    assert (everything[order] == alone).all()
    sizes = np.asarray([[sum(len(plan.samples) for plan in step) for step in steps] for steps in by_rank])
    assert (sizes.max(axis=0) - sizes.min(axis=0) <= 2).all()
    counts = np.bincount(alone[:, 1], minlength=images)
    assert counts.max() <= recipe.augmentation.repeats
    half = len(by_rank[0]) // 2
    resumed = [samples_of(view_steps(recipe, images, 0, rank, ranks // 2)[half:]) for rank in range(ranks // 2)]
    again = np.concatenate(resumed)
    again = again[np.lexsort((again[:, 3], again[:, 0]))]
    assert (again == alone[alone[:, 0] >= half]).all()
    shards = index_of(images)["shard"][alone[:, 1]]
    return {
        "steps": len(by_rank[0]),
        "samples": len(alone),
        "distinct_images": int((counts > 0).sum()),
        "shards": len(np.unique(shards)),
        "planning_seconds_per_rank": planning,
        "seconds": time.perf_counter() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    recipe = get_recipe("deit").replace(batch_size=arguments.batch_size, augmentation={"repeats": arguments.repeats})
    measured = check_epoch(recipe, arguments.images, arguments.ranks)
    settings = {name: getattr(arguments, name) for name in ("images", "ranks", "batch_size", "repeats")}
    result = {**environment(torch.device("cpu"), {"numpy": np.__version__}), **settings, **measured}
    publish(result, table(result), "scale" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n".join(
        [
            "# The order of a large epoch",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            f"`python -m benchmarks.scale --images {result['images']} --ranks {result['ranks']} "
            f"--batch-size {result['batch_size']} --repeats {result['repeats']}`: no pixels are read.",
            "",
            f"{result['samples']:,} samples of {result['distinct_images']:,} images in {result['steps']:,} steps, on "
            f"{result['ranks']} processes: each sample is in one process, and the steps are",
            f"those of one process. Half of the epoch, resumed on {result['ranks'] // 2} processes, has the same samples.",
            f"They are spread over {result['shards']:,} shards.",
            "",
            f"A process plans the epoch in {result['planning_seconds_per_rank']:.1f} s. All checks took "
            f"{result['seconds']:.0f} s, with {result['peak_mb']:,.0f} MB of memory at most.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
