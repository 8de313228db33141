"""The recipe: every setting of a training run, validated. The defaults are those of table 9, except for the batch size."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deit.config import ViTConfig, variant_config
from deit.data.transforms.augment import Augmentation
from deit.data.transforms.mixing import Mixing
from deit.errors import CheckpointError, ConfigError, RecipeError, did_you_mean, validation_problem
from deit.images.crops import CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD
from deit.images.processor import DeiTImageProcessor
from deit.models.losses import Distillation
from deit.system.files import read_toml, write_text
from deit.variants import variant

TINY_VARIANTS = ("deit-tiny-patch16-224", "deit-tiny-distilled-patch16-224")  # without and with the distillation token
IMAGENET_IMAGES = 1_281_167  # training images of ImageNet-1k

Side = Annotated[int, Field(ge=8, le=2048)]
MIN_HALVED = 16  # pixels per side that training at half the size needs
MAX_EPOCHS = 20_000  # the log has up to 800 bytes per epoch, and is read up to 16 MiB
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=1, le=10**12)]
Rate = Annotated[float, Field(ge=0, le=100)]
Unit = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=100)]


class Section(BaseModel):
    """Base of all recipe sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


LENGTH: dict[str, Any] = {"minutes": None, "steps": None, "corrections": ()}  # without it, a recipe trains whole epochs
SHAPE = (
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "initializer_range",
    "layer_scale",
)


class Transformer(Section):
    """The transformer to train: a published variant, a modified one, or the shape of the checkpoint that training starts from.

    Attributes:
        variant: a name from ``deit model list``; None takes the shape from the checkpoint.
        image_size: input size in pixels, one side or (height, width); None keeps the variant's.
        patch_size: patch size in pixels; None keeps the variant's.
        hidden_size: embedding dimension; None keeps the variant's.
        num_hidden_layers: depth; None keeps the variant's.
        num_attention_heads: attention heads per block; None keeps the variant's.
        initializer_range: standard deviation of the initial weights; None keeps the variant's.
        layer_scale: initial value of LayerScale (arXiv 2103.17239); None disables it. Saved models have the factors folded
            into the weights, so that they are ordinary DeiT checkpoints.
        drop_path: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        patch_dropout: fraction of the patches that a training step leaves out (arXiv 2208.07220), which makes it faster.
        patch_dropout_until: fraction of training with patch dropout; the rest processes all patches.
        sizes: where the sizes that are None come from: the ``variant``, or the ``data`` and the available time
            (:mod:`deit.recipes.planning`).
        init: weight initialization: ``normal`` (section 3), or ``local``, where each head attends to a neighboring patch at
            first (:mod:`deit.training.local_init`).
        head: classification heads of the checkpoint: ``keep`` them, replace them by ``new`` ones, or ``auto``: keep them if
            its classes are those of the data.
        trainable: ``all`` weights, the ``heads`` only, or ``attention`` with heads and position embeddings (arXiv 2203.09795).
        eval_mode: train in evaluation mode (no stochastic depth, no dropout), as the original DeiT was fine-tuned.
    """

    kind: Literal["transformer"] = "transformer"
    variant: str | None = None
    image_size: Side | tuple[Side, Side] | None = None
    patch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    hidden_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=256)] | None = None
    num_attention_heads: Annotated[int, Field(ge=1, le=256)] | None = None
    initializer_range: Annotated[float, Field(gt=0, le=1)] | None = None
    layer_scale: Annotated[float, Field(gt=0, le=10)] | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patch_dropout_until: Annotated[float, Field(ge=0, le=1)] = 0.8
    sizes: Literal["variant", "data"] = "variant"
    init: Literal["normal", "local"] = "normal"
    head: Literal["auto", "keep", "new"] = "auto"
    trainable: Literal["all", "heads", "attention"] = "all"
    eval_mode: bool = False

    def config(self, classes: tuple[str, ...] = ("0", "1")) -> ViTConfig:
        """Returns the model configuration for the classes of a data set.

        Raises:
            RecipeError: the sizes are inconsistent, or the shape comes from a checkpoint.
        """
        if self.variant is None:
            raise RecipeError(
                "The recipe starts from a checkpoint, but none is given", "pass --init MODEL, or set model.variant"
            )
        fields = {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}
        if self.hidden_size is not None:
            fields["intermediate_size"] = 4 * self.hidden_size
        try:
            return variant_config(self.variant, **fields, id2label=dict(enumerate(classes)))
        except ConfigError as error:
            raise RecipeError(error.problem, "set model.image_size, patch_size, hidden_size and heads that fit") from error


class ConvNet(Section):
    """A convolutional network from timm, usually trained as a teacher.

    Attributes:
        architecture: timm's model name.
        image_size: input size in pixels, one side or (height, width); None chooses it from the data and the available time.
        half_size_until: fraction of training on images of half the height and width, which are several times faster.
        whitened: whiten and freeze the first layer of a ``plain_convnet`` (:mod:`deit.training.whitening`). Other networks have
            no such layer.
        arguments: additional arguments of ``timm.create_model``.
    """

    kind: Literal["convnet"] = "convnet"
    architecture: str = "regnety_004"
    image_size: Side | tuple[Side, Side] | None = None
    half_size_until: Annotated[float, Field(ge=0, lt=1)] = 0.0
    whitened: bool = False
    arguments: dict[str, bool | int | float | str | list[int]] = {}

    @model_validator(mode="after")
    def _check_half_size(self) -> Self:
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size or MIN_HALVED,)
        if self.half_size_until and min(sides) < MIN_HALVED:
            raise ValueError(f"images of less than {MIN_HALVED} pixels cannot be halved; set model.half_size_until=0")
        return self


class Masking(Section):
    """Masked image modeling (SimMIM, arXiv 2111.09886), which needs no labels.

    Attributes:
        ratio: fraction of the patches that are masked; 0 trains a classifier instead.
        block: side of a masked block, in patches.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    block: Annotated[int, Field(ge=1, le=64)] = 2


class Optimizer(Section):
    """The optimizer and its learning rate schedule (table 9).

    Attributes:
        name: ``adamw``; ``sgd`` with momentum; ``lamb`` (arXiv 1904.00962); or ``muon`` (arXiv 2502.16982) for the kernels,
            with AdamW for all other weights.
        lr: peak learning rate at a batch size of ``reference_batch``; scales linearly with the batch size.
        reference_batch: batch size that ``lr`` is given for.
        schedule: ``cosine`` or ``constant``, both after the warm-up.
        min_lr: final learning rate of the cosine schedule.
        warmup_lr: learning rate at the start of the warm-up.
        warmup_epochs: epochs of linear warm-up from ``warmup_lr``; may be fractional.
        lr_update: update the learning rate once per ``epoch``, as the released code does, or at every ``step``.
        weight_decay: decoupled weight decay; not applied to biases, norms, tokens and position embeddings.
        layer_decay: layer-wise learning rate decay: factor from one layer to the layer below it; 1 disables it.
        betas: Adam betas, for ``adamw``, ``lamb`` and the AdamW part of ``muon``.
        eps: Adam epsilon, for the same optimizers.
        momentum: momentum of ``sgd`` and ``muon``.
        muon_iterations: Newton-Schulz iterations of ``muon``; fewer are faster and orthogonalize less exactly.
        adamw_lr_scale: learning rate of the AdamW part of ``muon``, relative to ``lr``.
        clip_norm: maximum gradient norm; None disables clipping.
        max_skipped_steps: how many steps of a run may be skipped because their loss or gradients are not finite; the next one
            stops training.
    """

    name: Literal["adamw", "lamb", "muon", "sgd"] = "adamw"
    lr: Rate = 5e-4
    reference_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: Rate = 1e-5
    warmup_lr: Rate = 1e-6
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    lr_update: Literal["epoch", "step"] = "epoch"
    weight_decay: Rate = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    muon_iterations: Annotated[int, Field(ge=2, le=5)] = 5
    adamw_lr_scale: Annotated[float, Field(gt=0, le=1000)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    max_skipped_steps: Annotated[int, Field(ge=0, le=1000)] = 0


class Ema(Section):
    """Exponential moving average (EMA) of the weights.

    Attributes:
        decay: decay per step; 0 disables the EMA.
        warmup: use min(decay, (1 + step) / (10 + step)), so that the EMA of a short run forgets its initial weights.
        evaluate: evaluate and save the EMA weights. The released code does not.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99996
    warmup: bool = False
    evaluate: bool = False


class Recipe(Section):
    """How a model is trained. Immutable: :meth:`replace` and :meth:`with_settings` return modified copies.

    Attributes:
        name: name of the recipe, or of the one that it was derived from.
        seed: seed of every random draw.
        images: size of the training set that the values were chosen for; see :func:`deit.recipes.scaling.scaling_notes`.
        epochs: training epochs, each with as many samples as the data set has images.
        minutes: time limit of the whole command. Steps, and the sizes that the model leaves open, are chosen to fit it.
        steps: optimizer steps, which may end within an epoch; None trains whole ``epochs``.
        corrections: how ``steps`` was corrected while the run trained for a given time: pairs of the finished steps and the new
            total (:mod:`deit.recipes.schedule`).
        views: V, the number of distinct epochs: epoch e repeats the random draws (order, augmentation, mixing) of epoch
            e mod V, which cached logits require. None draws every epoch afresh. Stochastic depth is not affected.
        batch_size: images per optimizer step, over all processes; None chooses it by the number of training images.
        micro_batch_size: images per forward pass; an even number. Gradients are accumulated up to ``batch_size``. None divides
            a batch among the cores of a CPU (:func:`deit.recipes.planning.choose_micro_batch_size`).
        precision: of the matrix products: ``auto``, ``fp32`` or ``bf16``.
        mirror_test: test on the data whether horizontally flipped images still look like their class, and disable flips if
            not (:mod:`deit.data.mirror`).
        light_augmentation_below: with ``minutes``, RandAugment, color jitter and label smoothing are removed if the time allows
            fewer epochs (:func:`deit.recipes.planning.lighten_augmentation`).
        loss: loss on the labels: ``cross-entropy``, or ``binary`` cross-entropy per class, where every class of a mixed image
            is a positive (as in the released code of DeiT III).
        smoothing: label smoothing.
        crop_ratio: evaluation resizes images to size / ratio before the center crop.
        mean: per-channel mean for normalization. A checkpoint brings its own.
        std: per-channel standard deviation for normalization. A checkpoint brings its own.
        model: the model to train.
        masking: masked image modeling.
        augmentation: data augmentation.
        mixing: mixup and cutmix.
        distillation: distillation from a teacher.
        optimizer: optimizer and learning rate schedule.
        ema: exponential moving average of the weights.

    Raises:
        RecipeError: an unknown key or an invalid value.
    """

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    images: Annotated[int, Field(ge=1, le=10**12)] = IMAGENET_IMAGES
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 300
    minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    steps: Steps | None = None
    corrections: tuple[tuple[Steps, Steps], ...] = ()
    views: Count | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    micro_batch_size: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    mirror_test: bool = False
    light_augmentation_below: Annotated[float, Field(ge=0, le=MAX_EPOCHS)] = 0.0
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = CROP_RATIO
    mean: tuple[Unit, Unit, Unit] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD
    model: Annotated[Transformer | ConvNet, Field(discriminator="kind")] = Transformer()
    masking: Masking = Masking()
    augmentation: Augmentation = Augmentation()
    mixing: Mixing = Mixing(mixup=0.8, cutmix=1.0)
    distillation: Distillation = Distillation()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(f"Recipe: {validation_problem(error)}", "`deit recipe show` lists all keys and values") from error

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if isinstance(self.model, Transformer) and self.model.variant is not None:
            self._check_variant(self.model.variant)
            self.model.config()  # raises if the sizes are inconsistent
        if isinstance(self.model, ConvNet) and self.distillation.mode != "none":
            raise ValueError("a convolutional network has no distillation token; set distillation.mode=none")
        if self.loss == "binary" and self.smoothing:
            raise ValueError("binary cross-entropy takes unsmoothed labels; set smoothing=0")
        if self.masked and (isinstance(self.model, ConvNet) or self.distillation.mode != "none" or self.model.drop_path):
            raise ValueError("masked image modeling needs a transformer without a teacher, and model.drop_path=0")
        if self.masked and isinstance(self.model, Transformer) and self.model.trainable != "all":
            raise ValueError("masked image modeling trains the whole model; set model.trainable=all")
        if isinstance(self.model, ConvNet) and self.optimizer.layer_decay != 1:
            raise ValueError("layer-wise decay needs a transformer; set optimizer.layer_decay=1")
        self._check_corrections()
        return self

    def _check_corrections(self) -> None:
        finished, total = 0, self.steps or 0
        for step, corrected in self.corrections:
            if not finished < step < min(total, corrected):
                raise ValueError(f"the correction after step {step} does not fit {total} steps; leave corrections to training")
            finished, total = step, corrected

    def _check_variant(self, name: str) -> None:
        distilled = variant(name).distilled
        if self.distillation.mode != "none" and not distilled:
            raise ValueError(f"{name} has no distillation token; use a distilled variant")
        if self.masked and not distilled:
            raise ValueError(f"masked image modeling needs a distilled variant, not {name}")
        if distilled and self.distillation.mode == "none" and not self.masked:
            raise ValueError(
                "a distilled variant needs a teacher; set distillation.mode, or use a variant without the distillation token"
            )

    @property
    def masked(self) -> bool:
        """Whether the model is trained by masked image modeling instead of labels."""
        return self.masking.ratio > 0

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps, with all corrections; None trains whole ``epochs``."""
        return self.corrections[-1][1] if self.corrections else self.steps

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up, scaled to the batch size."""
        return self.optimizer.lr * self.images_per_batch / self.optimizer.reference_batch

    @property
    def images_per_batch(self) -> int:
        """Images per optimizer step.

        Raises:
            RecipeError: the batch size is chosen from the data when training starts.
        """
        if self.batch_size is None:
            raise RecipeError(f"The batch size of the recipe {self.name} is chosen from the data", "set batch_size")
        return self.batch_size

    @property
    def images_per_micro_batch(self) -> int:
        """Images per forward pass; those of a whole batch if it is not decided yet how batches are divided."""
        return self.micro_batch_size or self.images_per_batch

    def view(self, epoch: int) -> int:
        """Returns the view of an epoch: the epoch whose random draws it uses."""
        return epoch if self.views is None else epoch % self.views

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels.

        Raises:
            RecipeError: they are chosen from the data when training starts.
        """
        size = self.model.image_size
        if size is None and isinstance(self.model, ConvNet):
            raise RecipeError("The image size is chosen from the data when training starts", "set model.image_size to fix it")
        if size is None:
            assert isinstance(self.model, Transformer)
            return self.model.config().image_hw
        return (size, size) if isinstance(size, int) else size

    def processor(self) -> DeiTImageProcessor:
        """Returns the image processor for evaluation and prediction.

        The offset of the center crop is rounded as by the program that reads the saved model and knows no other rounding:
        transformers, or timm for a convolutional network.
        """
        processor = DeiTImageProcessor.for_size(*self.image_hw, self.crop_ratio, self.mean, self.std)
        return processor.replace(crop_rounding=None) if isinstance(self.model, Transformer) else processor

    def replace(self, **fields: Any) -> Recipe:
        """Returns a copy with other values; a mapping updates a section."""
        return Recipe(**_merge(self.model_dump(), fields))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """Returns a copy with values as given to ``--set``: ``{"optimizer.lr": "1e-3"}``.

        Raises:
            RecipeError: an unknown key; the message suggests the closest one.
        """
        content = self.model_dump()
        for path, text in settings.items():
            *parents, last = path.split(".")
            section: Any = content
            for name in parents:
                section = section.get(name) if isinstance(section, dict) else None
            if not isinstance(section, dict) or (last not in section and path != "model.arguments"):
                raise RecipeError(f"The recipe has no setting {path!r}", did_you_mean(path, _paths(content)))
            section[last] = _parse_value(text)
        if "model.variant" in settings and "model.sizes" not in settings:
            content["model"]["sizes"] = "variant"  # the named variant is used unchanged
        if {"epochs", "minutes", "steps"} & settings.keys():  # a new length replaces the one of a run that is repeated
            content |= {name: content[name] if name in settings else default for name, default in LENGTH.items()}
        if "model.architecture" in settings and "model.arguments" not in settings:
            content["model"]["arguments"] = {}  # the recipe's arguments are for its own architecture
            if "model.half_size_until" not in settings and isinstance(self.model, ConvNet):
                content["model"]["half_size_until"] = 0.0  # another one may not take smaller images
        return Recipe(**content)

    def tiny(self) -> Recipe:
        """Returns the recipe scaled down to run in seconds on a CPU, for tests and dry runs."""
        model: dict[str, Any] = {"image_size": 32}
        if isinstance(self.model, Transformer):
            variant = self.model.variant or TINY_VARIANTS[self.distillation.mode != "none"]
            model |= {"variant": variant, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
            model |= {"sizes": "variant"}
        sizes: dict[str, Any] = {"epochs": 2, **LENGTH, "batch_size": 32, "micro_batch_size": 16, "precision": "fp32"}
        return self.replace(**sizes, mirror_test=False, model=model)

    def to_toml(self) -> str:
        """Returns the recipe as TOML, with every value."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def save(self, path: Path) -> None:
        """Writes the recipe to a TOML file."""
        write_text(path, self.to_toml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Loads a recipe from a TOML file.

        Raises:
            RecipeError: the file is missing, is not valid TOML, or holds invalid values.
        """
        try:
            content = read_toml(path)
        except CheckpointError as error:
            raise RecipeError(error.problem, error.remedy) from error
        return cls(**content)


def _merge(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Updates sections key by key; a section of another kind, and ``arguments``, are replaced whole."""
    result = dict(content)
    for name, value in changes.items():
        is_section = isinstance(result.get(name), dict) and isinstance(value, Mapping) and name != "arguments"
        if is_section and value.get("kind", result[name].get("kind")) == result[name].get("kind"):
            result[name] = _merge(result[name], value)
        else:
            result[name] = value
    return result


def _parse_value(text: str) -> Any:
    """Parses a TOML value, or ``none``; anything else is a string."""
    try:
        return None if text.lower() == "none" else tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _paths(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for name, value in content.items():
        paths += _paths(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return paths


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    """Drops None values: TOML has no null, and None is the default of every key that allows it."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value for name, value in content.items() if value is not None
    }
