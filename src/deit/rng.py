"""Random number generators keyed by integers.

All random draws in training come from Philox, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3"), keyed by the seed of the run, a stream, and a position in training. No generator keeps state between draws. Resuming
therefore needs no saved random state, the number of workers or machines does not change a batch, and each sample can be
reproduced on its own.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class RngStream(IntEnum):
    """Purpose of a draw. Two streams never share a sequence. The values are part of the saved state: never renumber."""

    SPLIT = 1
    ORDER = 2
    AUGMENT = 4
    MIX = 5
    DROP_PATH = 6
    INIT = 7
    MASK = 8
    FEATURES = 9
    PATCH_DROPOUT = 10
    TUNE = 11


def generator(seed: int, stream: RngStream, epoch: int = 0, index: int = 0, repeat: int = 0) -> np.random.Generator:
    """Returns the generator for one position in training.

    Args:
        seed: seed of the run, 0 <= seed < 2**64.
        stream: purpose of the draws.
        epoch: epoch, counted from 0.
        index: index of the sample in its data set, or of the step, depending on the stream.
        repeat: index of the repeat under repeated augmentation.
    """
    # Philox increments the lowest counter word. The position fills the other three, so no two sequences overlap.
    key = np.array([seed, int(stream)], np.uint64)  # a plain list would turn a seed of 2**63 or more into a float
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, repeat, index, epoch], np.uint64)))


def torch_seed(seed: int, stream: RngStream) -> int:
    """Returns a seed for a torch generator that is used once, such as for a model's initial weights."""
    return int(generator(seed, stream).integers(2**63))
