"""The summary of a run: data, model, recipe and estimated time, printed before training and shown in the report."""

from __future__ import annotations

from deit.checkpoints.metadata import shape_name
from deit.data.splits import Splits
from deit.distillation.protocol import DistillationTeacher
from deit.models.timm_classifier import TimmClassifier
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import ConvNet
from deit.system.devices import describe
from deit.system.distributed import group_size
from deit.system.progress import duration, plural, print_status
from deit.training.loop import Trainer

SHOWN_CLASSES = 5


def print_summary(
    trainer: Trainer,
    splits: Splits,
    settings: RunSettings,
    teacher: DistillationTeacher | None,
    notes: list[str],
    seconds: float | None,
) -> None:
    """Prints the summary of a run, notes and the estimated time in ``seconds``; None if it is unknown."""
    for label, text in run_summary(trainer, splits, settings, teacher).items():
        print_status(f"{label + ':':<11}{text}")
    for note in notes:
        print_status(f"Note:      {note}.")
    if seconds is not None:
        print_status(f"Time:      about {duration(seconds)} on {describe(trainer.device)}")


def run_summary(trainer: Trainer, splits: Splits, settings: RunSettings, teacher: DistillationTeacher | None) -> dict[str, str]:
    """Returns the summary of a run, label -> text."""
    recipe, context = trainer.context.recipe, trainer.context
    height, width = recipe.image_hw
    images = ", ".join(f"{count:,} {name}" for name, count in image_counts(splits).items())
    classes = ", ".join(splits.classes[:SHOWN_CLASSES]) + (", ..." if len(splits.classes) > SHOWN_CLASSES else "")
    summary = {
        "Data": f"{settings.data}: {images} images ({splits.origin})",
        "Classes": "not used" if recipe.masked else f"{len(splits.classes)} ({classes})",
        "Model": f"{_model_name(trainer, settings.init)} at {height} x {width}, {_parameter_counts(trainer)}",
        "Recipe": (
            f"{recipe.name}: {_length(trainer)}, "
            f"{_extensions(settings)}batch size {recipe.images_per_batch}, peak learning rate {recipe.peak_lr:.3g}, "
            f"seed {recipe.seed}"
        ),
        "Precision": f"{context.precision} on {trainer.device}{_processes(settings.shard)}",
        "Run": str(trainer.directory),
    }
    if teacher is not None:
        features = "" if context.features is None else " with feature distillation"
        summary["Teacher"] = f"{teacher.name}, {recipe.distillation.mode} distillation{features}"
    return summary


def _processes(is_divided: bool) -> str:
    """Returns the number of processes, with a comma before it; empty for one."""
    if group_size() == 1:
        return ""
    return f", {group_size()} processes{' that share the model' if is_divided else ''}"


def _length(trainer: Trainer) -> str:
    """Returns the number of epochs, and of steps in a run that may end within an epoch."""
    recipe = trainer.context.recipe
    if recipe.steps is None:
        return f"{plural(recipe.epochs, 'epoch')} of {plural(trainer.steps_per_epoch, 'step')}"
    epochs = trainer.total_steps / trainer.steps_per_epoch
    return f"{plural(trainer.total_steps, 'step')}, {epochs:,.1f} epochs of {trainer.steps_per_epoch:,}"


def _extensions(settings: RunSettings) -> str:
    """Returns how the run was extended, with a final separator."""
    return "".join(f"extended from {planned:,} after epoch {done:,}, " for done, planned in settings.extended)


def image_counts(splits: Splits) -> dict[str, int]:
    """Returns the number of images of each split that exists."""
    sources = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: len(source.labels) for name, source in sources.items() if source is not None}


def _model_name(trainer: Trainer, init: str | None) -> str:
    """Returns the name of the architecture or variant, with the changes of the recipe or the initial checkpoint."""
    settings, model = trainer.context.recipe.model, trainer.model
    source = "" if init is None else f", from {init},"
    if isinstance(settings, ConvNet):
        return f"{settings.architecture}{source}"
    if settings.variant is None:
        assert not isinstance(model, TimmClassifier)
        return f"{shape_name(model.config)}{source}"
    fields = {"patch_size": "patch", "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
    changes = [f"{label} {value}" for name, label in fields.items() if (value := getattr(settings, name)) is not None]
    return f"{settings.variant} with {', '.join(changes)}" if changes else settings.variant


def _parameter_counts(trainer: Trainer) -> str:
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + ("" if trainable == total else f", {trainable:,} of them trainable")
