"""Random masks and the validation loss of masked image modeling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.loader import EvaluationSamples, Loader, TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.transforms.augment import TrainTransform
from deit.errors import DataError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForMaskedImageModeling
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Masking
from deit.training.masking import masked_loss, random_masks
from deit.training.model_building import build_model
from deit.training.optimization import make_optimizer
from deit.training.step import StepContext, train_step
from tests.helpers import MemorySource

PROCESSOR = DeiTImageProcessor.for_size(32, 32)


def _samples(*rows: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(index, repeat, position) for position, (index, repeat) in enumerate(rows)])


def test_mask_depends_only_on_seed_epoch_index_and_repeat() -> None:
    masking, grid = Masking(ratio=0.6), (14, 14)
    whole = random_masks(masking, 3, 5, _samples((7, 0), (8, 0), (7, 1), (9, 0)), grid)
    alone = random_masks(masking, 3, 5, torch.tensor([[7, 1, 911]]), grid)
    assert torch.equal(whole[2], alone[0])
    assert torch.equal(random_masks(masking, 3, 5, _samples((9, 0), (7, 0)), grid), whole[[3, 0]])
    different = [
        whole[1],
        whole[2],
        random_masks(masking, 3, 6, _samples((7, 0)), grid)[0],
        random_masks(masking, 4, 5, _samples((7, 0)), grid)[0],
    ]
    assert not any(torch.equal(other, whole[0]) for other in different)


def test_masks_are_independent_of_micro_batches() -> None:
    plan = epoch_steps(32, 16, 0, 0, repeats=2)[1]
    samples = [torch.from_numpy(piece.samples) for piece in [plan, *micro_batches(plan, 4)]]
    whole, *parts = (random_masks(Masking(ratio=0.5), 0, 1, piece, (6, 5)) for piece in samples)
    assert torch.equal(torch.cat(parts), whole)


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.floats(0.01, 0.99), st.integers(0, 2**62))
def test_whole_blocks_are_masked_the_same_number_per_image(
    rows: int, columns: int, block: int, ratio: float, seed: int
) -> None:
    masking = Masking(ratio=ratio, block=block)
    masked = random_masks(masking, seed, 0, _samples((0, 0), (1, 0)), (rows, columns)).numpy().reshape(2, rows, columns)
    high, wide = -(-rows // block), -(-columns // block)
    for image in masked:
        blocks = [image[y * block : (y + 1) * block, x * block : (x + 1) * block] for y in range(high) for x in range(wide)]
        assert all(part.all() or not part.any() for part in blocks)
        assert sum(bool(part.any()) for part in blocks) == max(round(ratio * high * wide), 1)


def test_ratio_is_exact_and_uniform_over_positions() -> None:
    masked = random_masks(Masking(ratio=0.6), 0, 0, _samples(*((index, 0) for index in range(400))), (14, 14)).float()
    assert masked.sum(dim=1).tolist() == [round(0.6 * 49) * 4] * 400
    assert (masked.mean(dim=0) - masked.mean()).abs().max() < 0.12


def _model() -> DeiTForMaskedImageModeling:
    model = build_model(get_recipe("pretrain-mim").tiny(), ("a", "b")).model
    assert isinstance(model, DeiTForMaskedImageModeling)
    return model


def _loss(model: DeiTForMaskedImageModeling, samples: EvaluationSamples, batch_size: int = 4, seed: int = 0) -> float:
    loader = Loader(samples, 0, pin=False)
    return masked_loss(model, samples, Masking(ratio=0.5), seed, loader=loader, batch_size=batch_size, precision="fp32")


def test_validation_loss_is_deterministic_for_any_batch_size() -> None:
    model, samples = _model().train(), EvaluationSamples(MemorySource(9), PROCESSOR)
    first = _loss(model, samples)
    assert _loss(model, samples) == first
    assert _loss(model, samples, batch_size=2) == pytest.approx(first, rel=1e-5)
    assert _loss(model, samples, seed=1) != pytest.approx(first, rel=1e-5)
    assert model.training


def test_loss_covers_only_masked_pixels() -> None:
    model, samples = _model(), EvaluationSamples(MemorySource(1), PROCESSOR)
    pixels = samples.batch(samples.plans(1)[0]).pixel_values
    masked = random_masks(Masking(ratio=0.5), 0, 2**63, _samples((0, 0)), (4, 4))
    with torch.no_grad():
        reconstruction = model(pixels, bool_masked_pos=masked).reconstruction
    errors = (reconstruction - pixels).abs().mean(dim=1)  # (1, 32, 32)
    where = masked.reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
    assert _loss(model, samples) == pytest.approx(errors[where].mean().item(), rel=1e-4)


def test_unreadable_images_are_skipped_and_an_empty_source_raises() -> None:
    model = _model()
    some = EvaluationSamples(MemorySource(6, broken=frozenset({1, 4})), PROCESSOR, skip_unreadable=True)
    assert np.isfinite(_loss(model, some))
    nothing = EvaluationSamples(MemorySource(3, broken=frozenset(range(3))), PROCESSOR, skip_unreadable=True)
    with pytest.raises(DataError, match="No image of the data set is readable"):
        _loss(model, nothing)


def test_training_lowers_the_loss() -> None:
    recipe = get_recipe("pretrain-mim").tiny()
    model, source = _model(), MemorySource(32)
    samples = TrainSamples(source, TrainTransform(recipe.augmentation, 32, 32), recipe.mixing, recipe.seed, recipe.smoothing)
    context = StepContext(recipe, "fp32")
    optimizer, losses = make_optimizer(model, recipe.optimizer), []
    for epoch in range(60):
        plan = epoch_steps(32, 32, 0, epoch)[0]
        batches = [samples.batch(piece) for piece in micro_batches(plan, 16)]
        losses.append(train_step(model, optimizer, batches, context, epoch, 0, 3e-3)["loss"].item())
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])
