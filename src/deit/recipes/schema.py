"""A recipe: everything that decides how a model is trained, as validated values with names. The defaults are table 9's."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deit.config import ViTConfig, variant_config
from deit.data.transforms.augment import Augmentation
from deit.data.transforms.mixing import Mixing
from deit.errors import ConfigError, RecipeError, validation_problem
from deit.images.processor import CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD, DeiTImageProcessor
from deit.models.losses import Distillation
from deit.system.files import write_text
from deit.variants import variant

TINY_VARIANTS = ("deit-tiny-patch16-224", "deit-tiny-distilled-patch16-224")  # without and with a distillation token
IMAGENET_IMAGES = 1_281_167  # for training, in ImageNet-1k

Side = Annotated[int, Field(ge=8, le=2048)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(ge=0, le=100)]
Unit = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=100)]


class Section(BaseModel):
    """What all parts of a recipe share: unknown names are errors, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """The student: a published shape, a change of one, or the shape of the checkpoint that training starts from.

    Attributes:
        variant: a name of ``deit model list``; None for the checkpoint's shape.
        image_size: pixels a side, or height and width; the variant's own when None, like all that follow.
        layer_scale: first value of a learned factor of each channel of each residual branch (arXiv 2103.17239); none when
            None. What is saved has the factors multiplied into the weights, so that it is an ordinary DeiT.
        drop_path: stochastic depth's rate at the last block, rising linearly from 0 at the first.
        sizes: those that are None are the ``variant``'s, or chosen from ``data`` and time (:mod:`deit.recipes.planning`).
        first_weights: ``normal`` draws (section 3), or ``local``: each head begins by looking at a neighboring patch
            (:mod:`deit.training.local_init`).
        head: of a checkpoint: ``keep`` it, or a ``new`` one; ``auto`` keeps it where its classes are the data's.
        trainable: ``all``; the ``heads`` alone; or ``attention``, with heads and position embeddings (arXiv 2203.09795).
        evaluation_mode: train without stochastic depth and dropout, as the original DeiT was fine-tuned.
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
    sizes: Literal["variant", "data"] = "variant"
    first_weights: Literal["normal", "local"] = "normal"
    head: Literal["auto", "keep", "new"] = "auto"
    trainable: Literal["all", "heads", "attention"] = "all"
    evaluation_mode: bool = False

    def config(self, classes: tuple[str, ...] = ("0", "1")) -> ViTConfig:
        """The model's configuration for a data set's classes.

        Raises:
            RecipeError: sizes that do not fit each other, or the shape is a checkpoint's.
        """
        if self.variant is None:
            raise RecipeError(
                "The recipe starts from a checkpoint, and none is given", "pass --init MODEL, or set model.variant"
            )
        fields = {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}
        if self.hidden_size is not None:
            fields["intermediate_size"] = 4 * self.hidden_size
        try:
            return variant_config(self.variant, **fields, id2label=dict(enumerate(classes)))
        except ConfigError as error:
            raise RecipeError(error.problem, "set model.image_size, patch_size, hidden_size and heads that fit") from error


class ConvNet(Section):
    """A teacher: a convolutional network of timm.

    Attributes:
        architecture: timm's name.
        image_size: pixels a side, or height and width; chosen from the data and the time when None.
        arguments: further arguments of ``timm.create_model``.
    """

    kind: Literal["convnet"] = "convnet"
    architecture: str = "regnety_004"
    image_size: Side | tuple[Side, Side] | None = None
    arguments: dict[str, bool | int | float | str | list[int]] = {}


class Masking(Section):
    """Masked image modeling (SimMIM, arXiv 2111.09886): the model fills in hidden patches; no label is looked at.

    Attributes:
        ratio: share of the patches that is hidden; 0 learns the labels.
        block: patches a side that are hidden together.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    block: Annotated[int, Field(ge=1, le=64)] = 2


class Optimizer(Section):
    """The optimizer and its learning rate (table 9).

    Attributes:
        name: ``adamw``; ``sgd`` with momentum; ``lamb``, large-batch Adam (arXiv 1904.00962); ``muon`` for the kernels, whose
            steps it makes orthogonal (arXiv 2502.16982), and AdamW for the other weights.
        lr: peak learning rate at a batch of ``reference_batch``; it scales with the batch.
        schedule: ``cosine`` or, after warm-up, ``constant``.
        min_lr: where the cosine ends.
        warmup_epochs: of linear growth from ``warmup_lr``; a fraction is allowed.
        by: when the rate moves: once an ``epoch``, as in the released code, or at each ``step``.
        layer_decay: each layer learns at this fraction of the rate of the one above it; 1 for all the same.
        betas: of ``adamw``, ``lamb`` and the AdamW beside ``muon``, likewise ``eps``.
        momentum: of ``sgd`` and ``muon``.
        adamw_lr_scale: of ``muon``: the rate of AdamW beside it, as a share of ``lr``.
        clip_norm: largest norm of the gradient; None leaves it.
    """

    name: Literal["adamw", "lamb", "muon", "sgd"] = "adamw"
    lr: Rate = 5e-4
    reference_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: Rate = 1e-5
    warmup_lr: Rate = 1e-6
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    by: Literal["epoch", "step"] = "epoch"
    weight_decay: Rate = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adamw_lr_scale: Annotated[float, Field(gt=0, le=1000)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class Average(Section):
    """The exponential moving average of the weights.

    Attributes:
        decay: of the average, a step; 0 keeps none.
        warmup: begin with a short memory, min(decay, (1 + step) / (10 + step)), so that a short run's average is not
            full of its first weights.
        evaluate: whether the average is what is evaluated and saved, as it is not in the released code.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99996
    warmup: bool = False
    evaluate: bool = False


class Recipe(Section):
    """How a model is trained. Immutable; :meth:`replace` and :meth:`with_settings` give changed copies.

    Attributes:
        name: of the recipe that this one is, or was made from.
        images: in the training set that the values are for; :func:`deit.recipes.scaling.scaled` says what another one means.
        epochs: an epoch has as many samples as the data set has images.
        minutes: that training may take: epochs, and the sizes that the model leaves open, are chosen to fit.
        batch_size: of one optimization step, on all machines together.
        micro_batch_size: how much of it goes through the model at once; an even number.
        views: V: epoch e takes the draws of epoch e mod V (order, augmentation, mixing), which a stored teacher has seen; None
            draws every epoch anew. Stochastic depth is drawn anew in either case.
        mirror_test: ask the data whether mirrored images would do, and leave flips out where not (:mod:`deit.data.mirror`).
        loss: of the labels: ``cross-entropy``, or ``binary``: each class for itself, where every class of a mixed image is
            right (as the released code of DeiT III has it).
        smoothing: of the labels.
        crop_ratio: of evaluation: the image is resized to size / ratio before the center crop.
        mean: of each channel, by which images are normalized; likewise ``std``. A checkpoint brings its own.

    Raises:
        RecipeError: an unknown name or an impossible value.
    """

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    images: Annotated[int, Field(ge=1, le=10**12)] = IMAGENET_IMAGES
    epochs: Count = 300
    minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    views: Count | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    micro_batch_size: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    mirror_test: bool = False
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
    average: Average = Average()

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(
                f"Recipe: {validation_problem(error)}", "`deit recipe show` lists every name and value"
            ) from error

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.model, Transformer) and self.model.variant is not None:
            self._variant_fits(self.model.variant)
            self.model.config()  # refuses sizes that do not fit each other
        if isinstance(self.model, ConvNet) and self.distillation.mode != "none":
            raise ValueError("a convolutional network has no distillation token; set distillation.mode=none")
        if self.loss == "binary" and self.smoothing:
            raise ValueError("binary cross-entropy takes labels as they are; set smoothing=0")
        if self.masked and (isinstance(self.model, ConvNet) or self.distillation.mode != "none" or self.model.drop_path):
            raise ValueError("masked image modeling takes a transformer without teacher and with model.drop_path=0")
        if self.masked and isinstance(self.model, Transformer) and self.model.trainable != "all":
            raise ValueError("masked image modeling trains the whole model; set model.trainable=all")
        if isinstance(self.model, ConvNet) and self.optimizer.layer_decay != 1:
            raise ValueError("a convolutional network learns at one rate; set optimizer.layer_decay=1")
        return self

    def _variant_fits(self, name: str) -> None:
        distilled = variant(name).distilled
        if self.distillation.mode != "none" and not distilled:
            raise ValueError(f"{name} has no distillation token; take a distilled variant")
        if self.masked and not distilled:
            raise ValueError(f"masked image modeling takes a distilled variant, not {name}")
        if distilled and self.distillation.mode == "none" and not self.masked:
            raise ValueError("a distilled variant needs a teacher; set distillation.mode, or take a variant without the token")

    @property
    def masked(self) -> bool:
        """Whether the model learns to fill in hidden patches, and no labels."""
        return self.masking.ratio > 0

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up at this recipe's batch size."""
        return self.optimizer.lr * self.batch_size / self.optimizer.reference_batch

    def view(self, epoch: int) -> int:
        """The epoch whose draws an epoch takes."""
        return epoch if self.views is None else epoch % self.views

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels.

        Raises:
            RecipeError: they are to be chosen from the data.
        """
        size = self.model.image_size
        if size is None and isinstance(self.model, ConvNet):
            raise RecipeError("The image size is chosen from the data when training starts", "set model.image_size to fix it")
        if size is None:
            assert isinstance(self.model, Transformer)
            return self.model.config().image_hw
        return (size, size) if isinstance(size, int) else size

    def processor(self) -> DeiTImageProcessor:
        """The preprocessing of evaluation and prediction."""
        return DeiTImageProcessor.for_size(*self.image_hw, self.crop_ratio, self.mean, self.std)

    def replace(self, **fields: Any) -> Recipe:
        """A copy with other values; a mapping changes part of a section."""
        return Recipe(**_merged(self.model_dump(), fields))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """A copy with values given as on the command line: ``{"optimizer.lr": "1e-3"}``.

        Raises:
            RecipeError: an unknown name; the message says the nearest right one.
        """
        content = self.model_dump()
        for path, text in settings.items():
            *parents, last = path.split(".")
            place: Any = content
            for name in parents:
                place = place.get(name) if isinstance(place, dict) else None
            if not isinstance(place, dict) or (last not in place and path != "model.arguments"):
                near = difflib.get_close_matches(path, _paths(content), n=1, cutoff=0)
                raise RecipeError(f"The recipe has no setting {path!r}", f"did you mean {near[0]}")
            place[last] = _value(text)
        if "model.variant" in settings and "model.sizes" not in settings:
            content["model"]["sizes"] = "variant"  # a shape that the user names is taken as it is
        if "model.architecture" in settings and "model.arguments" not in settings:
            content["model"]["arguments"] = {}  # those of the recipe are for its own architecture
        return Recipe(**content)

    def tiny(self) -> Recipe:
        """The same recipe in a size that a CPU runs in seconds, for tests and first tries."""
        model: dict[str, Any] = {"image_size": 32}
        if isinstance(self.model, Transformer):
            variant = self.model.variant or TINY_VARIANTS[self.distillation.mode != "none"]
            model |= {"variant": variant, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
            model |= {"sizes": "variant"}
        sizes: dict[str, Any] = {"epochs": 2, "minutes": None, "batch_size": 32, "micro_batch_size": 16, "precision": "fp32"}
        return self.replace(**sizes, mirror_test=False, model=model)

    def to_toml(self) -> str:
        """The recipe as TOML, every value in it."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def save(self, path: Path) -> None:
        """Write the recipe as a TOML file."""
        write_text(path, self.to_toml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read what :meth:`save` wrote.

        Raises:
            RecipeError: no such file, no valid TOML, or impossible values.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"Cannot read the recipe {path}", error.strerror or "check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecipeError(f"{path} is no valid TOML", str(error)) from error
        return cls(**content)


def _merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a section change what they name; a section of another kind, and a network's arguments, replace it whole."""
    result = dict(content)
    for name, value in changes.items():
        parts = isinstance(result.get(name), dict) and isinstance(value, Mapping) and name != "arguments"
        if parts and value.get("kind", result[name].get("kind")) == result[name].get("kind"):
            value = _merged(result[name], value)
        result[name] = value
    return result


def _value(text: str) -> Any:
    """A value as TOML writes it; anything else is a string."""
    try:
        return None if text.lower() == "none" else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _paths(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for name, value in content.items():
        paths += _paths(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return paths


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a name that is left out has its default, which is None wherever None is allowed."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value for name, value in content.items() if value is not None
    }
