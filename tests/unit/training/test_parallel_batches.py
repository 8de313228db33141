"""Micro-batches at the same time: the same result as one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from deit.data.loader import Batch, TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.transforms.augment import TrainTransform
from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.teacher import Teacher
from deit.models.auto import LoadedClassifier
from deit.models.modeling import new_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe, Transformer
from deit.training import parallel_batches as module
from deit.training.model_building import build_model
from deit.training.optimization import make_optimizer, trainable_modules
from deit.training.parallel_batches import MAX_PIXELS, ParallelBatches, Replica, parallel_batches
from deit.training.step import StepContext, accumulate_gradients, train_step
from tests.helpers import MemorySource, backward

CLASSES = ("a", "b", "c")
CPU = torch.device("cpu")


def _batches(recipe: Recipe, size: int) -> list[Batch]:
    samples = TrainSamples(MemorySource(32, CLASSES), TrainTransform(recipe.augmentation, 32, 32), recipe.mixing, recipe.seed)
    return [samples.batch(piece) for piece in micro_batches(epoch_steps(32, 32, recipe.seed, 0)[0], size)]


def _student() -> tuple[nn.Module, StepContext]:
    """Returns a student of a convolutional teacher, and its step with feature distillation."""
    recipe = get_recipe("small-data-distilled").tiny()
    assert isinstance(recipe.model, Transformer)
    config = recipe.model.config(CLASSES)
    convnet = build_model(get_recipe("convnet").tiny(), CLASSES).model
    teacher = Teacher(LoadedClassifier(convnet, recipe.processor(), CLASSES), CLASSES, recipe.processor(), "a teacher")
    features = FeatureDistillation(config, teacher.feature_shapes(32, 32), seed=0)
    return new_classifier(config, torch.Generator().manual_seed(3)).train(), StepContext(recipe, "fp32", teacher, features)


def _weights(model: nn.Module, context: StepContext) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainable_modules(model, context.features).parameters()])


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_student_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(module, "cores", lambda: cores)
    results = []
    for at_once in (False, True):
        model, context = _student()
        context = replace(context, parallel=ParallelBatches(model, context.features, 4) if at_once else None)
        optimizer = make_optimizer(trainable_modules(model, context.features), context.recipe.optimizer)
        batches = _batches(context.recipe, 8)
        losses = [train_step(model, optimizer, batches, context, 0, step, 1e-2) for step in range(3)]
        results.append((losses, _weights(model, context)))
    assert set(results[0][0][0]) == {"loss", "label_loss", "distillation_loss", "feature_loss"}
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-5)


def test_gradients_of_fewer_batches_than_replicas_are_complete() -> None:
    model, context = _student()
    batches = _batches(context.recipe, 8)
    parallel = replace(context, parallel=ParallelBatches(model, context.features, 4))
    accumulate_gradients(model, batches, parallel, 0, 0)  # leaves nothing behind in the replicas
    model.zero_grad()
    accumulate_gradients(model, batches[:3], parallel, 0, 0)
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    accumulate_gradients(model, batches[:3], context, 0, 0)
    torch.testing.assert_close(gradients, [parameter.grad for parameter in model.parameters()])


def test_replicas_follow_the_mode_of_the_model() -> None:
    model, context = _student()
    parallel, batches = ParallelBatches(model, None, 2), _batches(context.recipe, 16)

    def mode(replica: Replica, _: Batch) -> bool:
        backward(next(replica[0].parameters()).sum())
        return replica[0].training

    assert parallel.run(mode, batches) == [True, True]
    model.eval()
    assert parallel.run(mode, batches) == [False, False]


def test_an_error_in_a_micro_batch_is_raised() -> None:
    model, context = _student()
    batches = _batches(context.recipe, 16)
    batches[1].pixel_values = batches[1].pixel_values[:, :2]
    with pytest.raises(RuntimeError):
        accumulate_gradients(model, batches, replace(context, parallel=ParallelBatches(model, context.features, 2)), 0, 0)


def test_failed_step_leaves_no_gradients_for_the_next_one() -> None:
    model, context = _student()
    batches = _batches(context.recipe, 16)
    damaged = replace(batches[0], pixel_values=batches[0].pixel_values[:, :2])
    parallel = replace(context, parallel=ParallelBatches(model, context.features, 2))
    with pytest.raises(RuntimeError):
        accumulate_gradients(model, [damaged, batches[1]], parallel, 0, 0)  # the second one succeeds, in a replica
    model.zero_grad()
    accumulate_gradients(model, batches, parallel, 0, 0)
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    accumulate_gradients(model, batches, context, 0, 0)
    torch.testing.assert_close(gradients, [parameter.grad for parameter in model.parameters()])


def test_more_batches_than_replicas_are_an_error() -> None:
    model, context = _student()
    parallel = ParallelBatches(model, context.features, 2)
    with pytest.raises(ValueError, match="zip"):
        accumulate_gradients(model, _batches(context.recipe, 8), replace(context, parallel=parallel), 0, 0)


def test_only_small_micro_batches_on_a_cpu_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 1)
    recipe = get_recipe("small-data").tiny()
    assert recipe.micro_batch_size == 16
    parallel = parallel_batches(recipe, CPU, model, None)
    assert parallel is not None
    assert parallel.count == 2
    assert parallel_batches(get_recipe("convnet").tiny(), CPU, model, None) is None
    assert parallel_batches(recipe, torch.device("meta"), model, None) is None
    assert parallel_batches(recipe.replace(micro_batch_size=32), CPU, model, None) is None
    largest = MAX_PIXELS // 32**2
    assert parallel_batches(recipe.replace(batch_size=largest), CPU, model, None) is not None
    assert parallel_batches(recipe.replace(batch_size=largest + 1), CPU, model, None) is None
    for limit, expected in ((4, True), (3, False)):  # two replicas of a weight and a bias
        monkeypatch.setattr(module, "MAX_GRADIENTS", limit)
        assert (parallel_batches(recipe, CPU, model, None) is not None) is expected
