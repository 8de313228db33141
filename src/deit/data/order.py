"""Which sample comes when: the order of an epoch, cut into steps, ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deit.draws import Stream, generator


@dataclass(frozen=True)
class Plan:
    """The samples of one batch.

    Attributes:
        epoch: counted from 0.
        step: of the epoch, counted from 0.
        samples: (n, 3) of int64: index in the data set, which of its repeats, and position in the global batch.
    """

    epoch: int
    step: int
    samples: np.ndarray


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in an epoch; a data set smaller than a batch makes one."""
    return max(count // batch_size, 1)


def epoch_steps(count: int, batch_size: int, seed: int, epoch: int, repeats: int = 1) -> list[Plan]:
    """The global batches of an epoch.

    With repeated augmentation (Hoffer et al., arXiv 1901.09335; section 6 of the paper) an epoch has as many samples as the
    data set, but ``repeats`` of each image that is in it, all in one batch but for the image that a batch's edge cuts. What
    does not fill a last batch is left for another epoch; a data set smaller than a batch is one batch.

    Args:
        count: images in the data set, at least 1.
        batch_size: of all machines together.
        repeats: how often an image comes in its batch, each time augmented anew.
    """
    order = generator(seed, Stream.ORDER, epoch).permutation(count)
    distinct = order[: -(-count // repeats)]
    samples = np.stack([np.repeat(distinct, repeats), np.tile(np.arange(repeats), len(distinct))], axis=1)[:count]
    plans = []
    for step in range(steps_per_epoch(count, batch_size)):
        chosen = samples[step * batch_size : (step + 1) * batch_size]
        if repeats > 1:  # else the repeats of an image would be mixed with each other
            chosen = chosen[generator(seed, Stream.ARRANGE, epoch, step).permutation(len(chosen))]
        plans.append(Plan(epoch, step, np.column_stack([chosen, np.arange(len(chosen))])))
    return plans


def share(plan: Plan, rank: int, ranks: int) -> Plan:
    """One rank's part of a global batch: neighbours stay together, so that pairs are never cut."""
    pairs = -(-len(plan.samples) // 2)
    start, stop = (2 * (pairs * place // ranks) for place in (rank, rank + 1))
    return Plan(plan.epoch, plan.step, plan.samples[start:stop])


def micro_batches(plan: Plan, size: int) -> list[Plan]:
    """Cut a batch into pieces of at most ``size`` samples, an even number."""
    assert size % 2 == 0
    return [Plan(plan.epoch, plan.step, plan.samples[start : start + size]) for start in range(0, len(plan.samples), size)]
