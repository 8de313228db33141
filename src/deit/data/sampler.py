"""Which sample comes when: the order of an epoch, cut into steps, ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deit.rng import RngStream, generator


@dataclass(frozen=True)
class BatchPlan:
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


def epoch_steps(count: int, batch_size: int, seed: int, epoch: int, repeats: int = 1) -> list[BatchPlan]:
    """The global batches of an epoch.

    With repeated augmentation (Hoffer et al., arXiv 1901.09335; section 6 of the paper) an epoch has as many samples as the
    data set, but ``repeats`` of each image that is in it, all in one batch but for the image that a batch's edge cuts, and
    close together, so that an image is decoded once. What does not fill a last batch is left for another epoch; a data
    set smaller than a batch is one batch.

    Args:
        count: images in the data set, at least 1.
        batch_size: of all machines together.
        repeats: how often an image comes in its batch, each time augmented anew.
    """
    order = generator(seed, RngStream.ORDER, epoch).permutation(count)
    distinct = order[: -(-count // repeats)]
    samples = np.stack([np.repeat(distinct, repeats), np.tile(np.arange(repeats), len(distinct))], axis=1)[:count]
    plans = []
    for step in range(steps_per_epoch(count, batch_size)):
        chosen = samples[step * batch_size : (step + 1) * batch_size]
        if repeats > 1:  # else the repeats of an image would be mixed with each other
            chosen = arranged(chosen, repeats)
        plans.append(BatchPlan(epoch, step, np.column_stack([chosen, np.arange(len(chosen))])))
    return plans


def arranged(samples: np.ndarray, repeats: int) -> np.ndarray:
    """Put a batch's samples in an order in which neighbors, which are mixed with each other, are different images.

    A few images and all their repeats stand together, in as many rounds as there are repeats; in each round every image has
    another neighbor than before. What is left over at the batch's end is paired as well as it can be: an image meets itself
    only where no other is left.

    Args:
        samples: (n, 2) of int64, index and repeat, the repeats of an image one after the other.
        repeats: of each image but the first and the last, which the batch's edges may cut.
    """
    rounds = _rounds(repeats)
    per_group = rounds.size
    # An image that the edge of the batch before has cut comes last, so that whole images are where the groups are cut.
    whole = int(np.argmax(samples[:, 1] == 0))
    samples = np.concatenate([samples[whole:], samples[:whole]])
    # The last group stays with what is left over, so that this has images enough to be paired.
    groups = max((len(samples) - whole) // per_group - 1, 0)
    grouped = samples[: groups * per_group].reshape(groups, rounds.shape[1], repeats, 2)
    turn = np.arange(repeats)[:, None]
    ordered = grouped[:, rounds, turn].reshape(-1, 2)  # (groups, repeats, images, 2)
    return np.concatenate([ordered, _paired(samples[groups * per_group :])])


def _rounds(repeats: int) -> np.ndarray:
    """(repeats, images): in each row all images of a group, neighbors as in a round-robin tournament."""
    images = repeats + 1 + (repeats + 1) % 2  # the least even number with enough rounds
    first, others = np.zeros(1, np.int64), np.arange(1, images)
    rows = []
    for turn in range(repeats):
        circle = np.concatenate([first, np.roll(others, turn)])
        rows.append(np.column_stack([circle[: images // 2], circle[: images // 2 - 1 : -1]]).ravel())
    return np.stack(rows)


def _paired(samples: np.ndarray) -> np.ndarray:
    """Neighbours from the two images with the most samples left, which were not neighbors before if possible."""
    left: dict[int, list[list[int]]] = {}
    for index, repeat in samples.tolist():
        left.setdefault(index, []).append([index, repeat])
    met: set[tuple[int, int]] = set()
    ordered: list[list[int]] = []
    while len(left) > 1:
        # The image with the most left must not wait; sorting is stable, so equal ones come in their order.
        first = max(left, key=lambda index: len(left[index]))
        second = max(
            (index for index in left if index != first), key=lambda index: (len(left[index]), (first, index) not in met)
        )
        met |= {(first, second), (second, first)}
        for index in (first, second):
            ordered.append(left[index].pop(0))
            if not left[index]:
                del left[index]
    ordered += [sample for rest in left.values() for sample in rest]
    return np.asarray(ordered, np.int64).reshape(-1, 2)


def share(plan: BatchPlan, rank: int, ranks: int) -> BatchPlan:
    """One rank's part of a global batch: neighbors stay together, so that pairs are never cut."""
    pairs = -(-len(plan.samples) // 2)
    start, stop = (2 * (pairs * place // ranks) for place in (rank, rank + 1))
    return BatchPlan(plan.epoch, plan.step, plan.samples[start:stop])


def micro_batches(plan: BatchPlan, size: int) -> list[BatchPlan]:
    """Cut a batch into pieces of at most ``size`` samples, an even number."""
    assert size % 2 == 0
    return [BatchPlan(plan.epoch, plan.step, plan.samples[start : start + size]) for start in range(0, len(plan.samples), size)]
