"""The optimizer step: accumulation, loss terms, losses that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from deit.data.loader import Batch, TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.transforms.augment import TrainTransform
from deit.distillation.teacher import Teacher
from deit.errors import DataError, InterruptedWorkError
from deit.models.auto import LoadedClassifier
from deit.models.losses import binary_cross_entropy, soft_target_cross_entropy
from deit.models.modeling import ViTForImageClassification, new_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe, Transformer
from deit.training.first_phase import half_size, kept_patches
from deit.training.model_building import build_model
from deit.training.optimization import make_optimizer
from deit.training.step import TOTAL, NonFiniteStepError, StepContext, batch_losses, train_step
from tests.helpers import MemorySource, backward, randomized, tiny_vit

CLASSES = ("a", "b", "c")


def _context(recipe: Recipe, teacher: Teacher | None = None) -> StepContext:
    return StepContext(recipe, "fp32", teacher)


def _batches(recipe: Recipe, size: int) -> list[Batch]:
    source = MemorySource(32, CLASSES)
    samples = TrainSamples(source, TrainTransform(recipe.augmentation, 32, 32), recipe.mixing, recipe.seed, recipe.smoothing)
    plan = epoch_steps(32, recipe.images_per_batch, recipe.seed, 0, recipe.augmentation.repeats)[0]
    return [samples.batch(piece) for piece in micro_batches(plan, size)]


def _student(recipe: Recipe) -> torch.nn.Module:
    assert isinstance(recipe.model, Transformer)
    return new_classifier(recipe.model.config(CLASSES), torch.Generator().manual_seed(3))


def _teacher(recipe: Recipe) -> Teacher:
    model = randomized(ViTForImageClassification(tiny_vit(num_labels=3).with_classes(CLASSES)))
    return Teacher(LoadedClassifier(model, recipe.processor(), CLASSES), CLASSES, recipe.processor(), "a teacher")


@pytest.mark.parametrize("name", ["deit", "deit-distilled"])
def test_micro_batches_do_not_change_the_step(name: str) -> None:
    recipe = get_recipe(name).tiny()
    teacher = _teacher(recipe) if name == "deit-distilled" else None
    weights, losses = [], []
    for size in (32, 8):
        model = _student(recipe)
        optimizer = make_optimizer(model, recipe.optimizer)
        losses.append(train_step(model, optimizer, _batches(recipe, size), _context(recipe, teacher), 0, 0, 1e-3))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-5)


def test_steps_lower_the_loss_of_a_batch() -> None:
    recipe = get_recipe("deit").tiny()
    model, batches, context = _student(recipe), _batches(recipe, 16), _context(recipe)
    optimizer = make_optimizer(model, recipe.optimizer)
    first = train_step(model, optimizer, batches, context, 0, 0, 3e-3)
    for _ in range(5):
        last = train_step(model, optimizer, batches, context, 0, 0, 3e-3)
    assert last[TOTAL] < first[TOTAL]


def test_learning_rate_of_zero_changes_nothing() -> None:
    recipe = get_recipe("deit").tiny()
    model = _student(recipe)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_step(model, make_optimizer(model, recipe.optimizer), _batches(recipe, 16), _context(recipe), 0, 0, 0.0)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_non_finite_loss_updates_nothing() -> None:
    recipe = get_recipe("deit").tiny()
    model, batches = _student(recipe), _batches(recipe, 16)
    batches[1].pixel_values[0, 0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteStepError) as error:
        train_step(model, make_optimizer(model, recipe.optimizer), batches, _context(recipe), 0, 0, 1e-3)
    assert math.isnan(error.value.loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "sgd"])
def test_non_finite_gradient_updates_nothing(clip_norm: float | None, optimizer: str) -> None:
    recipe = get_recipe("deit").tiny().replace(optimizer={"clip_norm": clip_norm, "name": optimizer, "warmup_epochs": 0})
    model, batches = _student(recipe), _batches(recipe, 16)
    weight = dict(model.named_parameters())["classifier.weight"]
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), torch.inf))  # type: ignore[no-untyped-call]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteStepError) as error:
        train_step(model, make_optimizer(model, recipe.optimizer), batches, _context(recipe), 0, 0, 1e-3)
    assert math.isfinite(error.value.loss)
    assert not math.isfinite(error.value.gradient_norm)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_step_that_is_not_taken_restores_batch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("convnet").tiny().replace(optimizer={"max_skipped_steps": 1})
    model = build_model(recipe, CLASSES).model.train()
    optimizer, context = make_optimizer(model, recipe.optimizer), _context(recipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = _batches(recipe, 16)
    batches[0].pixel_values[0, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteStepError):
        train_step(model, optimizer, batches, context, 0, 0, 1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    calls = iter([None, InterruptedWorkError("Stopped")])

    def stop() -> None:
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr("deit.training.step.check_stop", stop)
    with pytest.raises(InterruptedWorkError):
        train_step(model, optimizer, _batches(recipe, 16), context, 0, 0, 1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_student_gets_gradients() -> None:
    recipe = get_recipe("deit-distilled").tiny()
    model, teacher = _student(recipe), _teacher(recipe)
    backward(batch_losses(model, _batches(recipe, 16)[0], _context(recipe, teacher), 0, 0)[TOTAL])
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    for frozen in teacher.classifier.model.parameters():
        assert frozen.grad is None
        assert not frozen.requires_grad


def test_empty_micro_batches_are_skipped_and_an_empty_batch_raises() -> None:
    recipe = get_recipe("deit").tiny()
    broken = TrainSamples(
        MemorySource(4, CLASSES, broken=frozenset(range(4))),
        TrainTransform(recipe.augmentation, 32, 32),
        recipe.mixing,
        seed=0,
        skip_unreadable=True,
    ).batch(epoch_steps(4, 4, 0, 0)[0])
    model, batches, context = _student(recipe), _batches(recipe, 16), _context(recipe)
    optimizer = make_optimizer(model, recipe.optimizer)
    alone = train_step(model, optimizer, batches, context, 0, 0, 0.0)
    torch.testing.assert_close(train_step(model, optimizer, [broken, *batches], context, 0, 0, 0.0), alone)
    with pytest.raises(DataError, match="whole batch"):
        train_step(model, optimizer, [broken, broken], context, 0, 0, 0.0)


def test_eval_mode_disables_stochastic_depth() -> None:
    recipe = get_recipe("deit").tiny().replace(model={"drop_path": 0.8})
    batch = _batches(recipe, 32)[0]
    model, eval_mode = _student(recipe), recipe.replace(model={"eval_mode": True})
    plain = recipe.replace(model={"drop_path": 0.0})
    losses = [batch_losses(model, batch, _context(eval_mode), 0, step)[TOTAL] for step in (0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], batch_losses(model, batch, _context(plain), 0, 0)[TOTAL])
    assert not torch.equal(losses[0], batch_losses(model, batch, _context(recipe), 0, 0)[TOTAL])
    backward(losses[0])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_first_phase_drops_the_drawn_patches() -> None:
    recipe = get_recipe("deit").tiny().replace(model={"drop_path": 0.0, "patch_dropout": 0.5, "patch_dropout_until": 0.6})
    batch, model = _batches(recipe, 32)[0], _student(recipe)
    kept = kept_patches(0.5, 16, recipe.seed, 3, 1, batch.samples[:, 2])
    reduced = soft_target_cross_entropy(model(batch.pixel_values, kept_patches=kept).logits, batch.targets)
    whole = soft_target_cross_entropy(model(batch.pixel_values).logits, batch.targets)
    losses = [batch_losses(model, batch, _context(recipe), 3, 1, progress)[TOTAL] for progress in (0, 0.59, 0.6, 1)]
    assert all(torch.equal(loss, expected) for loss, expected in zip(losses, (reduced, reduced, whole, whole), strict=True))
    assert torch.equal(batch_losses(model, batch, _context(recipe), 3, 1)[TOTAL], whole)


def test_first_phase_of_a_convnet_has_half_of_the_size() -> None:
    recipe = get_recipe("convnet").tiny().replace(model={"image_size": 32, "half_size_until": 0.5})
    batch, model = _batches(recipe, 32)[0], build_model(recipe, CLASSES).model.train()
    expected = [
        soft_target_cross_entropy(model(pixels).logits, batch.targets).item()
        for pixels in (half_size(batch.pixel_values), batch.pixel_values)
    ]
    losses = [batch_losses(model, batch, _context(recipe), 0, 0, progress)[TOTAL].item() for progress in (0.49, 0.5)]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_label_loss_follows_the_recipe() -> None:
    recipe = get_recipe("deit").tiny().replace(smoothing=0.0, loss="binary", model={"drop_path": 0.0})
    batch, model = _batches(recipe, 32)[0], _student(recipe)
    expected = binary_cross_entropy(model(batch.pixel_values).logits, batch.targets)
    assert torch.equal(batch_losses(model, batch, _context(recipe), 0, 0)[TOTAL], expected)
    other = batch_losses(model, batch, _context(recipe.replace(loss="cross-entropy")), 0, 0)[TOTAL]
    assert not torch.equal(other, expected)
