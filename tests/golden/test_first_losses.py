"""The first ten losses of each recipe in its tiny mode: a change of any draw, augmentation, loss or step shows here.

The values are of one machine's arithmetic; another's may differ in the last digits, never in the fourth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deit.data.loader import TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.transforms.augment import TrainTransform
from deit.distillation.teacher import Teacher
from deit.models.auto import LoadedClassifier, TimmClassifier, fresh_network
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.schema import ConvNet, Recipe
from deit.training.model_building import start
from deit.training.optimization import learning_rate, make_optimizer
from deit.training.step import StepContext, train_step
from tests.helpers import MemorySource

GOLDEN = Path(__file__).with_name("first_losses.json")
STEPS = 10
CLASSES = ("a", "b", "c")


def first_losses(recipe: Recipe) -> list[float]:
    """Ten steps on images made from their numbers."""
    if isinstance(recipe.model, ConvNet):
        recipe = recipe.replace(model={"architecture": "test_resnet", "arguments": {}})
    source = MemorySource(96, CLASSES)
    processor = recipe.processor()
    model, teacher = start(recipe, CLASSES).model, None
    if recipe.distillation.mode != "none":
        network = fresh_network("test_resnet", CLASSES, processor, {}, seed=1)
        teacher = Teacher(LoadedClassifier(network, processor, CLASSES), CLASSES, processor, "t")
    transform = TrainTransform(recipe.augmentation, *recipe.image_hw)
    samples = TrainSamples(source, transform, recipe.mixing, recipe.seed, recipe.smoothing)
    config = None if isinstance(model, TimmClassifier) else model.config
    context = StepContext(recipe, torch.device("cpu"), "fp32", teacher, config)
    optimizer = make_optimizer(model, recipe.optimizer)
    losses: list[float] = []
    for epoch in range(STEPS):
        plans = epoch_steps(len(source.labels), recipe.batch_size, recipe.seed, epoch, recipe.augmentation.repeats)
        for step, plan in enumerate(plans):
            batches = [samples.batch(piece) for piece in micro_batches(plan, recipe.micro_batch_size)]
            lr = learning_rate(recipe.optimizer, recipe.peak_lr, STEPS, epoch + step / len(plans))
            losses.append(train_step(model, optimizer, batches, context, epoch, step, lr).item())
            if len(losses) == STEPS:
                return losses
    raise AssertionError


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_losses_are_as_they_were(name: str) -> None:
    assert first_losses(get_recipe(name).tiny()) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=2e-3)


if __name__ == "__main__":  # python -m tests.golden.test_first_losses: after a change that is meant
    values = {name: [round(loss, 6) for loss in first_losses(get_recipe(name).tiny())] for name in RECIPES}
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
