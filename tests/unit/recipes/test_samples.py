"""The samples of a recipe, for training and for building a cache."""

from __future__ import annotations

import numpy as np

from deit.data.sampler import epoch_steps
from deit.recipes.presets import get_recipe
from deit.recipes.samples import first_batches, training_samples, view_steps
from tests.helpers import MemorySource


def test_samples_follow_the_recipe() -> None:
    recipe = get_recipe("deit").tiny().replace(seed=7)
    samples = training_samples(recipe, MemorySource(40), skip_unreadable=True)
    assert (samples.seed, samples.smoothing, samples.skip_unreadable) == (7, recipe.smoothing, True)
    assert samples.transform.size == (32, 32)
    assert samples.transform.settings == recipe.augmentation
    assert samples.mixing == recipe.mixing
    assert samples.teacher_targets is None


def test_view_steps_are_epoch_steps_in_micro_batches() -> None:
    recipe = get_recipe("deit").tiny()
    for view in (0, 3):
        whole = epoch_steps(70, recipe.images_per_batch, recipe.seed, view, recipe.augmentation.repeats)
        cut = view_steps(recipe, 70, view)
        assert [len(step) for step in cut] == [2, 2]
        for step, pieces in zip(whole, cut, strict=True):
            assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), step.samples)
            assert {(piece.epoch, piece.step) for piece in pieces} == {(view, step.step)}


def test_first_batches_end_after_some_samples() -> None:
    recipe = get_recipe("deit").tiny()
    samples = training_samples(recipe, MemorySource(70))
    expected = np.concatenate([piece.samples for step in view_steps(recipe, 70, 0) for piece in step])
    for count, sizes in ((5, [5]), (16, [16]), (40, [16, 16, 8]), (1000, [16, 16, 16, 16])):
        batches = list(first_batches(recipe, samples, count))
        assert [len(batch.labels) for batch in batches] == sizes
        assert np.array_equal(np.concatenate([batch.samples.numpy() for batch in batches]), expected[:count])
