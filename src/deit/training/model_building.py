"""Builds the model to train: newly initialized, or from a checkpoint, with new heads and another resolution where needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from deit.checkpoints.key_maps import CLASS_HEADS, HEADS
from deit.checkpoints.reading import Checkpoint
from deit.config import DeiTConfig, ViTConfig, config_from_dict
from deit.errors import RecipeError, TeacherError
from deit.models.auto import load_classifier
from deit.models.channels import GRAY_NOTE
from deit.models.modeling import (
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    TransformerClassifier,
    ViTForImageClassification,
    new_classifier,
)
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from deit.recipes.initial_checkpoint import config_changes, open_initial_checkpoint, take_checkpoint_shape
from deit.recipes.schema import SHAPE, ConvNet, Recipe, Transformer
from deit.rng import RngStream, torch_seed
from deit.system.files import CONFIG_NAME, read_json
from deit.training.local_init import local_init_
from deit.training.optimization import freeze
from deit.training.whitening import freeze_first_layer

TrainableTransformer = TransformerClassifier | DeiTForMaskedImageModeling
TrainableModel = TrainableTransformer | TimmClassifier


@dataclass(frozen=True)
class BuiltModel:
    """A model that is ready to train.

    Attributes:
        recipe: the recipe, with image size and normalization resolved.
        model: the model; frozen weights do not require gradients.
        notes: what comes from the checkpoint and what is newly initialized, one sentence each.
        needs_whitening: the first layer is still to be initialized, from the training images
            (:mod:`deit.training.whitening`).
    """

    recipe: Recipe
    model: TrainableModel
    notes: list[str]
    needs_whitening: bool = False


def build_model(recipe: Recipe, classes: tuple[str, ...], init: str | None = None, resume: Path | None = None) -> BuiltModel:
    """Builds the model of a recipe.

    Args:
        recipe: the recipe.
        classes: class names of the data set.
        init: checkpoint to start from: of any format, a run, a hub name or a variant's name. None initializes new weights.
        resume: training checkpoint of this run; only its model shape is read here.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit.
        RecipeError: the recipe needs a checkpoint and none is given, or needs something that the checkpoint lacks.
        TeacherError: the checkpoint of a convolutional network does not fit.
    """
    if isinstance(recipe.model, ConvNet):
        return _build_convnet(recipe, recipe.model, classes, None if resume else init)
    if recipe.model.variant is None and resume is not None:
        config = config_from_dict(read_json(resume / CONFIG_NAME))
        built = BuiltModel(recipe, _new_transformer(recipe, config), [])
    elif init is not None and resume is None:
        built = _build_from_checkpoint(recipe, recipe.model, classes, init)
    else:
        built = BuiltModel(recipe, _new_transformer(recipe, recipe.model.config(classes)), [])
    freeze(built.model, recipe.model.trainable)
    return built


def _new_transformer(recipe: Recipe, config: ViTConfig) -> TrainableTransformer:
    generator = torch.Generator().manual_seed(torch_seed(recipe.seed, RngStream.INIT))
    model: TrainableTransformer
    if recipe.masked:
        model = DeiTForMaskedImageModeling(_masked_modeling_config(config))
        model.init_weights(generator)
    else:
        model = new_classifier(config, generator)
    if isinstance(recipe.model, Transformer) and recipe.model.init == "local":
        local_init_(model, generator)
    return model


def _masked_modeling_config(config: ViTConfig) -> DeiTConfig:
    """Returns the configuration for masked image modeling, whose decoder predicts the pixels of a patch.

    Raises:
        RecipeError: the patches are not square.
    """
    height, width = config.patch_hw
    if height != width:
        raise RecipeError(f"Masked image modeling needs square patches, not {height} x {width}", "choose another patch_size")
    return config.as_class(DeiTConfig).replace(encoder_stride=height)


def _build_from_checkpoint(recipe: Recipe, settings: Transformer, classes: tuple[str, ...], init: str) -> BuiltModel:
    checkpoint = open_initial_checkpoint(init)
    changes = config_changes(settings, checkpoint)
    is_distilled = recipe.masked or recipe.distillation.mode != "none"
    distillation = _distillation_change(checkpoint, recipe.masked, is_distilled)
    if recipe.masked:
        changes["encoder_stride"] = _masked_modeling_config(checkpoint.config).encoder_stride
        model: TrainableTransformer = DeiTForMaskedImageModeling.from_checkpoint(
            checkpoint, changes, distillation=distillation, quiet=True
        )
    else:
        changes["id2label"] = dict(enumerate(classes))
        model_class = DeiTForImageClassificationWithTeacher if is_distilled else ViTForImageClassification
        model = model_class.from_checkpoint(checkpoint, changes, distillation=distillation, quiet=True)
    new = {*model.load_report.new} | _replaced_heads(settings, checkpoint, classes, model)
    model.init_weights(torch.Generator().manual_seed(torch_seed(recipe.seed, RngStream.INIT)), new)
    model.config.return_dict = True  # training reads outputs by name, whatever the checkpoint's config says
    resolved = take_checkpoint_shape(recipe, settings, checkpoint)
    return BuiltModel(resolved, model.train(), _checkpoint_notes(init, settings, checkpoint, model, new))


def _distillation_change(checkpoint: Checkpoint, masked: bool, is_distilled: bool) -> Literal["drop", "new"] | None:
    """Returns whether the distillation token and its head are dropped, newly initialized, or taken from the checkpoint."""
    had_token = isinstance(checkpoint.config, DeiTConfig)
    has_one_head = f"{CLASS_HEADS[0]}.weight" in checkpoint.shapes
    if had_token == is_distilled:  # two tokens with one head: only the distillation head is new
        return "new" if is_distilled and has_one_head and not masked else None
    return "new" if is_distilled else "drop"


def _replaced_heads(
    settings: Transformer, checkpoint: Checkpoint, classes: tuple[str, ...], model: TrainableTransformer
) -> set[str]:
    """Returns the tensors of heads that fit but are newly initialized, because the classes differ.

    Raises:
        RecipeError: the heads are to be kept, but there are none or the number of classes differs.
    """
    if settings.head == "keep" and not any(f"{head}.weight" in checkpoint.shapes for head in CLASS_HEADS):
        raise RecipeError("The checkpoint has no heads to keep", "leave model.head at auto")
    config = checkpoint.config
    if settings.head == "keep" and config.num_labels != len(classes):
        raise RecipeError(
            f"The checkpoint has {config.num_labels} classes and the data has {len(classes)}",
            "its heads cannot be kept: leave model.head at auto",
        )
    if settings.head == "keep" or (settings.head == "auto" and config.classes == classes):
        return set()
    return {name for name in model.canonical_state() if name.partition(".")[0] in HEADS}


def _checkpoint_notes(
    init: str, settings: Transformer, checkpoint: Checkpoint, model: TrainableTransformer, new: set[str]
) -> list[str]:
    report = model.load_report
    notes = [f"Initialized from {init}", *checkpoint.notes]
    if checkpoint.config.num_channels != model.config.num_channels:
        notes.append(GRAY_NOTE)
    if new:
        notes.append(f"Newly initialized: {_modules(new)}")
    old_grid, new_grid = checkpoint.config.grid, model.config.grid
    if old_grid != new_grid:
        sizes = f"{old_grid[0]} x {old_grid[1]} to {new_grid[0]} x {new_grid[1]} patches"
        notes.append(f"Position embeddings are resampled from {sizes}")
    if report.ignored:
        notes.append(f"Not used from the checkpoint: {_modules(report.ignored)}")
    overridden = [name for name in ("variant", *SHAPE) if name != "image_size" and getattr(settings, name) is not None]
    if overridden:
        notes.append(f"The shape is the checkpoint's; the recipe's {', '.join(overridden)} has no effect")
    return notes


def _modules(names: Collection[str]) -> str:
    """Formats the modules that tensors belong to."""
    return ", ".join(sorted({name.removeprefix("embeddings.").partition(".")[0] for name in names}))


def _build_convnet(recipe: Recipe, settings: ConvNet, classes: tuple[str, ...], init: str | None) -> BuiltModel:
    seed = torch_seed(recipe.seed, RngStream.INIT)
    if init is None:
        network = new_timm_classifier(settings.architecture, classes, recipe.processor(), dict(settings.arguments), seed)
        return BuiltModel(recipe, network, [], needs_whitening=settings.whitened and freeze_first_layer(network))
    loaded = load_classifier(init)
    if not isinstance(loaded.model, TimmClassifier):
        raise TeacherError(f"{init} is a transformer", "use `deit train --init` to continue training it")
    network = loaded.model
    notes = [f"Initialized from {init}", *loaded.notes]
    if loaded.classes != classes:
        network.reset_classifier(classes, seed)
        notes.append("Newly initialized: the classifier")
    mean, std = loaded.processor.rgb_statistics
    model = {"architecture": network.architecture, "arguments": network.arguments}
    resolved = recipe.replace(model=model, mean=mean, std=std)
    network.processor = resolved.processor()
    if settings.whitened:
        freeze_first_layer(network)
    return BuiltModel(resolved, network.train(), notes)
