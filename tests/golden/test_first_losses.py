"""The first ten losses of every recipe in its tiny mode: any change of a draw, augmentation, loss or step shows here.

The values are of one machine. Rounding differs between machines: by less than 1e-6 of a loss between two generations of
processors. With Muon, whose orthogonalization in bf16 amplifies it from step to step, by up to 1e-4, and in the recipe
``convnet`` by up to 5e-4 in nine steps and 2.1e-3 in the tenth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deit.data.loader import TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.transforms.augment import TrainTransform
from deit.distillation.teacher import Teacher
from deit.models.auto import LoadedClassifier
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.schema import ConvNet, Recipe
from deit.training.model_building import build_model
from deit.training.optimization import learning_rate, make_optimizer
from deit.training.step import StepContext, train_step
from tests.helpers import MemorySource

GOLDEN = Path(__file__).with_name("first_losses.json")
STEPS = 10
TOLERANCE, MUON_TOLERANCE, CONVNET_LAST_TOLERANCE = 1e-4, 2e-3, 5e-3  # relative
CLASSES = ("a", "b", "c")


def first_losses(recipe: Recipe) -> list[float]:
    """Trains ten steps on synthetic images."""
    if isinstance(recipe.model, ConvNet):
        recipe = recipe.replace(model={"architecture": "test_resnet", "arguments": {}})
    source = MemorySource(96, CLASSES)
    processor = recipe.processor()
    model, teacher = build_model(recipe, CLASSES).model, None
    if recipe.distillation.mode != "none":
        network = new_timm_classifier("test_resnet", CLASSES, processor, {}, seed=1)
        teacher = Teacher(LoadedClassifier(network, processor, CLASSES), CLASSES, processor, "t")
    transform = TrainTransform(recipe.augmentation, *recipe.image_hw)
    samples = TrainSamples(source, transform, recipe.mixing, recipe.seed, recipe.smoothing)
    context = StepContext(recipe, "fp32", teacher)
    optimizer = make_optimizer(model, recipe.optimizer)
    losses: list[float] = []
    for epoch in range(STEPS):
        plans = epoch_steps(len(source.labels), recipe.images_per_batch, recipe.seed, epoch, recipe.augmentation.repeats)
        for step, plan in enumerate(plans):
            batches = [samples.batch(piece) for piece in micro_batches(plan, recipe.images_per_micro_batch)]
            lr = learning_rate(recipe.optimizer, recipe.peak_lr, STEPS, epoch + step / len(plans))
            losses.append(train_step(model, optimizer, batches, context, epoch, step, lr)["loss"].item())
            if len(losses) == STEPS:
                return losses
    raise AssertionError


@pytest.mark.parametrize("name", RECIPES)
def test_first_losses_match_golden_values(name: str) -> None:
    recipe = get_recipe(name).tiny()
    *losses, last = first_losses(recipe)
    *golden, golden_last = json.loads(GOLDEN.read_text())[name]
    tolerance = MUON_TOLERANCE if recipe.optimizer.name == "muon" else TOLERANCE
    assert losses == pytest.approx(golden, rel=tolerance)
    assert last == pytest.approx(golden_last, rel=CONVNET_LAST_TOLERANCE if name == "convnet" else tolerance)


if __name__ == "__main__":  # python -m tests.golden.test_first_losses, after an intended change
    values = {name: [round(loss, 6) for loss in first_losses(get_recipe(name).tiny())] for name in RECIPES}
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
