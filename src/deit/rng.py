"""Random numbers that depend on integers alone.

Every draw in training comes from a Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3") keyed by
the seed, the purpose, and the place in training. There is no generator whose state lives on, so nothing has to be saved for
a resume, the number of workers or machines cannot change a batch, and any sample can be made again alone.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class RngStream(IntEnum):
    """What a draw is for. Two purposes never share a sequence. The values are part of the saved state: never renumber."""

    SPLIT = 1
    ORDER = 2
    AUGMENT = 4
    MIX = 5
    DROP_PATH = 6
    INIT = 7
    MASK = 8
    FEATURES = 9


def generator(seed: int, stream: RngStream, epoch: int = 0, index: int = 0, repeat: int = 0) -> np.random.Generator:
    """The generator of one place in training.

    Args:
        seed: of the run, 0 <= seed < 2**64.
        stream: what the draws are for.
        epoch: counted from 0.
        index: of the sample in its data set, or of the step, whichever the stream is about.
        repeat: which of the repeats of repeated augmentation.
    """
    # The lowest counter word is the one Philox advances, so the place stands in the three words above it.
    key = np.array([seed, int(stream)], np.uint64)  # as a plain list, a seed from 2**63 on would become a float
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, repeat, index, epoch], np.uint64)))


def torch_seed(seed: int, stream: RngStream) -> int:
    """A seed for torch's own generator, used once: for a model's initial weights."""
    return int(generator(seed, stream).integers(2**63))
