"""The model that training starts with: fresh, or from a checkpoint, with new heads and for another resolution where needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from deit.checkpoints.reading import Checkpoint, model_path, open_checkpoint
from deit.config import DeiTConfig, ViTConfig, config_from_dict
from deit.errors import RecipeError, TeacherError
from deit.hub import fetch
from deit.models.auto import (
    TimmClassifier,
    fresh_network,
    is_convolutional,
    load_classifier,
    processor_beside,
)
from deit.models.modeling import (
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    TransformerClassifier,
    ViTForImageClassification,
    new_classifier,
)
from deit.recipes.schema import SHAPE, ConvNet, Recipe, Transformer
from deit.rng import RngStream, torch_seed
from deit.system.files import CONFIG_NAME, read_json
from deit.training.local_init import local_init_
from deit.training.optimization import freeze

CLASS_HEADS = ("classifier", "cls_classifier")  # on the class token: of one head, and of two
HEADS = (*CLASS_HEADS, "distillation_classifier")
TrainedTransformer = TransformerClassifier | DeiTForMaskedImageModeling
Trained = TrainedTransformer | TimmClassifier


@dataclass(frozen=True)
class Start:
    """What training starts with.

    Attributes:
        recipe: with image size and normalization resolved.
        model: its frozen weights ask for no gradient.
        notes: what came from the checkpoint and what is new, for the user.
    """

    recipe: Recipe
    model: Trained
    notes: list[str]


def start(recipe: Recipe, classes: tuple[str, ...], init: str | None = None, resumed: Path | None = None) -> Start:
    """Make the model of a recipe.

    Args:
        classes: of the data.
        init: a checkpoint of any format, a run, a name on the hub or a variant's name; weights are fresh without it.
        resumed: a checkpoint of this very run: only the shape is taken from it here.

    Raises:
        CheckpointError: no such checkpoint, or none that fits.
        RecipeError: the recipe starts from a checkpoint and there is none, or asks for what the checkpoint has not.
        TeacherError: likewise of a convolutional network.
    """
    if isinstance(recipe.model, ConvNet):
        return _network(recipe, recipe.model, classes, None if resumed else init)
    begun = _begun(recipe, recipe.model, classes, init, resumed)
    freeze(begun.model, recipe.model.trainable)
    return begun


def _begun(recipe: Recipe, chosen: Transformer, classes: tuple[str, ...], init: str | None, resumed: Path | None) -> Start:
    if chosen.variant is None and resumed is not None:
        return Start(recipe, _fresh(recipe, config_from_dict(read_json(resumed / CONFIG_NAME))), [])
    if init is not None and resumed is None:
        return _from_checkpoint(recipe, chosen, classes, init)
    return Start(recipe, _fresh(recipe, chosen.config(classes)), [])


def _fresh(recipe: Recipe, config: ViTConfig) -> TrainedTransformer:
    generator = torch.Generator().manual_seed(torch_seed(recipe.seed, RngStream.INIT))
    model: TrainedTransformer
    if recipe.masked:
        model = DeiTForMaskedImageModeling(_reconstructing(config))
        model.init_weights(generator)
    else:
        model = new_classifier(config, generator)
    if isinstance(recipe.model, Transformer) and recipe.model.first_weights == "local":
        local_init_(model, generator)
    return model


def _reconstructing(config: ViTConfig) -> DeiTConfig:
    """The configuration of a model that fills in patches: the decoder's pixels are a patch.

    Raises:
        RecipeError: patches are no squares.
    """
    height, width = config.patch_hw
    if height != width:
        raise RecipeError(f"Masked image modeling takes square patches, not {height} x {width}", "choose another patch_size")
    return config.as_class(DeiTConfig).replace(encoder_stride=height)


def _from_checkpoint(recipe: Recipe, chosen: Transformer, classes: tuple[str, ...], init: str) -> Start:
    path = model_path(fetch(init))
    if is_convolutional(path):
        raise RecipeError(f"{init} is a convolutional network", "`deit teacher train` goes on with one")
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    fields: dict[str, Any] = {} if chosen.image_size is None else {"image_size": chosen.image_size}
    distilled = recipe.masked or recipe.distillation.mode != "none"
    step = _step(checkpoint, masked=recipe.masked, distilled=distilled)
    if recipe.masked:
        stride = _reconstructing(config).encoder_stride
        model: TrainedTransformer = DeiTForMaskedImageModeling.from_checkpoint(
            checkpoint, {**fields, "encoder_stride": stride}, distillation=step, quiet=True
        )
    else:
        kind = DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification
        fields |= {"id2label": dict(enumerate(classes))}
        model = kind.from_checkpoint(checkpoint, fields, distillation=step, quiet=True)
    new = {*model.load_report.new} | _new_heads(chosen, checkpoint, classes, model)
    model.init_weights(torch.Generator().manual_seed(torch_seed(recipe.seed, RngStream.INIT)), new)
    model.config.return_dict = True  # whatever its file says: here it is asked by name
    mean, std = processor_beside(checkpoint, model.config).rgb_statistics
    height, width = model.config.image_hw
    shape = dict.fromkeys(SHAPE) | {"variant": None, "image_size": height if height == width else (height, width)}
    resolved = recipe.replace(model=shape, mean=mean, std=std)
    return Start(resolved, model.train(), _notes(init, chosen, checkpoint, model, new))


def _step(checkpoint: Checkpoint, masked: bool, distilled: bool) -> Literal["drop", "new"] | None:
    """What happens to the distillation token and its head."""
    had = isinstance(checkpoint.config, DeiTConfig)
    one_head = f"{CLASS_HEADS[0]}.weight" in checkpoint.shapes
    if had == distilled:  # with one head on two tokens, a head alone is new
        return "new" if distilled and one_head and not masked else None
    return "new" if distilled else "drop"


def _new_heads(chosen: Transformer, checkpoint: Checkpoint, classes: tuple[str, ...], model: TrainedTransformer) -> set[str]:
    """Tensors of heads that would fit but are made anew, since the checkpoint's classes are others.

    Raises:
        RecipeError: the heads are to be kept, and there are none or the numbers of classes differ.
    """
    if chosen.head == "keep" and not any(f"{head}.weight" in checkpoint.shapes for head in CLASS_HEADS):
        raise RecipeError("The checkpoint has no heads that could be kept", "leave model.head at auto")
    config = checkpoint.config
    if chosen.head == "keep" and config.num_labels != len(classes):
        raise RecipeError(
            f"The checkpoint knows {config.num_labels} classes and the data has {len(classes)}",
            "its heads cannot be kept: leave model.head at auto",
        )
    if chosen.head == "keep" or (chosen.head == "auto" and config.classes == classes):
        return set()
    return {name for name in model.canonical_state() if name.partition(".")[0] in HEADS}


def _notes(init: str, chosen: Transformer, checkpoint: Checkpoint, model: TrainedTransformer, new: set[str]) -> list[str]:
    report = model.load_report
    notes = [f"Starts from {init}"]
    if new:
        notes.append(f"New, with fresh weights: {_parts(new)}")
    old, now = checkpoint.config.grid, model.config.grid
    if old != now:
        notes.append(f"Position embeddings are resampled from {old[0]} x {old[1]} patches to {now[0]} x {now[1]}")
    if report.ignored:
        notes.append(f"Of the checkpoint not used: {_parts(report.ignored)}")
    asked = [name for name in ("variant", *SHAPE) if name != "image_size" and getattr(chosen, name) is not None]
    if asked:
        notes.append(f"The shape is the checkpoint's; the recipe's {', '.join(asked)} has no effect")
    return notes


def _parts(names: Collection[str]) -> str:
    """Tensors' names -> those of what they are parts of, for the user."""
    return ", ".join(sorted({name.removeprefix("embeddings.").partition(".")[0] for name in names}))


def _network(recipe: Recipe, chosen: ConvNet, classes: tuple[str, ...], init: str | None) -> Start:
    seed = torch_seed(recipe.seed, RngStream.INIT)
    if init is None:
        network = fresh_network(chosen.architecture, classes, recipe.processor(), dict(chosen.arguments), seed)
        return Start(recipe, network, [])
    loaded = load_classifier(init)
    if not isinstance(loaded.model, TimmClassifier):
        raise TeacherError(f"{init} is a transformer", "`deit train --init` goes on with one")
    network = loaded.model
    notes = [f"Starts from {init}"]
    if loaded.classes != classes:
        network.new_head(classes, seed)
        notes.append("New, with fresh weights: the classifier")
    mean, std = loaded.processor.rgb_statistics
    model = {"architecture": network.architecture, "arguments": network.arguments}
    resolved = recipe.replace(model=model, mean=mean, std=std)
    network.processor = resolved.processor()
    return Start(resolved, network.train(), notes)
