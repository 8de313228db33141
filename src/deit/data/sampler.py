"""The order of samples in an epoch, cut into steps, ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deit.rng import RngStream, generator


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one batch.

    Attributes:
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        samples: (n, 3) int64: index in the data set, repeat, and position in the global batch.
    """

    epoch: int
    step: int
    samples: np.ndarray


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of full batches per epoch; a data set smaller than a batch makes one."""
    return max(count // batch_size, 1)


def epoch_steps(count: int, batch_size: int, seed: int, epoch: int, repeats: int = 1) -> list[BatchPlan]:
    """Returns the global batches of an epoch.

    With repeated augmentation (Hoffer et al., arXiv 1901.09335; section 6 of the paper) an epoch has as many samples as the
    data set has images, but ``repeats`` samples of each image that it contains. They are in the same batch, except for an image
    at the edge of a batch, and close together, so that an image is decoded once. An incomplete last batch is dropped; a data
    set smaller than a batch is one batch.

    Args:
        count: number of images in the data set, at least 1.
        batch_size: global batch size, over all processes.
        seed: seed of the run.
        epoch: counted from 0.
        repeats: samples per image, each with its own augmentation.
    """
    order = generator(seed, RngStream.ORDER, epoch).permutation(count)
    distinct = order[: -(-count // repeats)]
    samples = np.stack([np.repeat(distinct, repeats), np.tile(np.arange(repeats), len(distinct))], axis=1)[:count]
    plans = []
    for step in range(steps_per_epoch(count, batch_size)):
        batch = samples[step * batch_size : (step + 1) * batch_size]
        if repeats > 1:  # otherwise the repeats of an image would be mixed with each other
            batch = arrange_repeats(batch, repeats)
        plans.append(BatchPlan(epoch, step, np.column_stack([batch, np.arange(len(batch))])))
    return plans


def arrange_repeats(samples: np.ndarray, repeats: int) -> np.ndarray:
    """Orders the samples of a batch so that neighbors, which mixup and cutmix combine, are different images.

    Small groups of images are arranged in as many rounds as there are repeats, as in a round-robin tournament: in every
    round each image has another neighbor. The rest of the batch is paired greedily; an image is paired with itself only if no
    other is left.

    Args:
        samples: (n, 2) int64, index and repeat; the repeats of an image are consecutive.
        repeats: samples per image, except for the first and the last image, which the edges of the batch may cut.
    """
    rounds = _round_robin(repeats)
    per_group = rounds.size
    # An image that the start of the batch has cut is moved to the end, so that groups contain whole images.
    first_whole = int(np.argmax(samples[:, 1] == 0))
    samples = np.concatenate([samples[first_whole:], samples[:first_whole]])
    # The last group is left for greedy pairing, which needs enough images.
    groups = max((len(samples) - first_whole) // per_group - 1, 0)
    grouped = samples[: groups * per_group].reshape(groups, rounds.shape[1], repeats, 2)
    turn = np.arange(repeats)[:, None]
    ordered = grouped[:, rounds, turn].reshape(-1, 2)  # (groups, repeats, images, 2)
    return np.concatenate([ordered, _pair_greedily(samples[groups * per_group :])])


def _round_robin(repeats: int) -> np.ndarray:
    """Returns (repeats, images): in each row all images of a group, paired as in a round of a round-robin tournament."""
    images = repeats + 1 + (repeats + 1) % 2  # the smallest even number with enough rounds
    first, others = np.zeros(1, np.int64), np.arange(1, images)
    rows = []
    for turn in range(repeats):
        circle = np.concatenate([first, np.roll(others, turn)])
        rows.append(np.column_stack([circle[: images // 2], circle[: images // 2 - 1 : -1]]).ravel())
    return np.stack(rows)


def _pair_greedily(samples: np.ndarray) -> np.ndarray:
    """Pairs the two images with the most samples left, preferring pairs that have not occurred."""
    remaining: dict[int, list[list[int]]] = {}
    for index, repeat in samples.tolist():
        remaining.setdefault(index, []).append([index, repeat])
    paired: set[tuple[int, int]] = set()
    ordered: list[list[int]] = []
    while len(remaining) > 1:
        # max is stable: ties are resolved by order.
        first = max(remaining, key=lambda index: len(remaining[index]))
        second = max(
            (index for index in remaining if index != first),
            key=lambda index: (len(remaining[index]), (first, index) not in paired),
        )
        paired |= {(first, second), (second, first)}
        for index in (first, second):
            ordered.append(remaining[index].pop(0))
            if not remaining[index]:
                del remaining[index]
    ordered += [sample for rest in remaining.values() for sample in rest]
    return np.asarray(ordered, np.int64).reshape(-1, 2)


def rank_share(plan: BatchPlan, rank: int, ranks: int) -> BatchPlan:
    """Returns one rank's part of a global batch. Pairs of neighbors, which are mixed, stay together."""
    pairs = -(-len(plan.samples) // 2)
    start, stop = (2 * (pairs * edge // ranks) for edge in (rank, rank + 1))
    return BatchPlan(plan.epoch, plan.step, plan.samples[start:stop])


def micro_batches(plan: BatchPlan, size: int) -> list[BatchPlan]:
    """Cuts a batch into micro-batches of at most ``size`` samples, an even number."""
    assert size % 2 == 0
    return [BatchPlan(plan.epoch, plan.step, plan.samples[start : start + size]) for start in range(0, len(plan.samples), size)]
