"""Recipes: everything that decides how a model is trained, as validated values with names.

Each recipe below is a small function that derives from another, so that what is special about it is all that it says.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deit.config import ViTConfig, variant_config
from deit.data.augment import Augmentation
from deit.data.mixing import Mixing
from deit.distillation.losses import Distillation
from deit.errors import RecipeError, validation_problem
from deit.files import write_text
from deit.image_processor import CROP_RATIO, DeiTImageProcessor
from deit.variants import variant

REFERENCE_BATCH = 512  # the learning rate of a recipe is for this batch size (section 5.1)

Side = Annotated[int, Field(ge=8, le=2048)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Probability = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """What all parts of a recipe share: unknown names are errors, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_SHAPE = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")


class Transformer(Section):
    """The student: a published shape, or a change of one.

    Attributes:
        variant: a name of ``deit model list``.
        image_size: pixels a side, or height and width; the variant's own when None, like all that follow.
        drop_path: stochastic depth's rate at the last block, rising linearly from 0 at the first.
    """

    kind: Literal["transformer"] = "transformer"
    variant: str = "deit-tiny-patch16-224"
    image_size: Side | tuple[Side, Side] | None = None
    patch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    hidden_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=256)] | None = None
    num_attention_heads: Annotated[int, Field(ge=1, le=256)] | None = None
    initializer_range: Annotated[float, Field(gt=0, le=1)] | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def config(self, classes: tuple[str, ...] = ("0", "1")) -> ViTConfig:
        """The model's configuration for a data set's classes.

        Raises:
            ConfigError: sizes that do not fit each other.
        """
        fields = {name: getattr(self, name) for name in _SHAPE if getattr(self, name) is not None}
        if self.hidden_size is not None:
            fields["intermediate_size"] = 4 * self.hidden_size
        return variant_config(self.variant, **fields, id2label=dict(enumerate(classes)))


class ConvNet(Section):
    """A teacher: a convolutional network of timm.

    Attributes:
        architecture: timm's name.
        image_size: pixels a side, or height and width.
        arguments: further arguments of ``timm.create_model``.
    """

    kind: Literal["convnet"] = "convnet"
    architecture: str = "regnety_004"
    image_size: Side | tuple[Side, Side] = 224
    arguments: dict[str, bool | int | float | str] = {}


class Optimizer(Section):
    """AdamW and its learning rate (table 9).

    Attributes:
        lr: peak learning rate at a batch of 512; it scales with the batch.
        min_lr: where the cosine ends.
        warmup_epochs: of linear growth from ``warmup_lr``; a fraction is allowed.
        by: when the rate moves: once an ``epoch``, as in the released code, or at each ``step``.
        clip_norm: largest norm of the gradient; None leaves it.
    """

    lr: Rate = 5e-4
    min_lr: Rate = 1e-5
    warmup_lr: Rate = 1e-6
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    by: Literal["epoch", "step"] = "epoch"
    weight_decay: Rate = 0.05
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
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
        batch_size: of one optimisation step, on all machines together.
        micro_batch_size: how much of it goes through the model at once; an even number.
        views: V: epoch e takes the draws of epoch e mod V (order, augmentation, mixing), which a stored teacher has seen; None
            draws every epoch anew. Stochastic depth is drawn anew in either case.
        smoothing: of the labels.
        crop_ratio: of evaluation: the image is resized to size / ratio before the centre crop.

    Raises:
        RecipeError: an unknown name or an impossible value.
    """

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Count = 300
    views: Count | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    micro_batch_size: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = CROP_RATIO
    model: Annotated[Transformer | ConvNet, Field(discriminator="kind")] = Transformer()
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
        if self.distillation.mode != "none":
            if isinstance(self.model, ConvNet):
                raise ValueError("a convolutional network has no distillation token; set distillation.mode=none")
            if not variant(self.model.variant).distilled:
                raise ValueError(f"{self.model.variant} has no distillation token; take a distilled variant")
        elif isinstance(self.model, Transformer) and variant(self.model.variant).distilled:
            raise ValueError("a distilled variant needs a teacher; set distillation.mode, or take a variant without the token")
        if isinstance(self.model, Transformer):
            self.model.config()  # refuses sizes that do not fit each other
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up at this recipe's batch size."""
        return self.optimizer.lr * self.batch_size / REFERENCE_BATCH

    def view(self, epoch: int) -> int:
        """The epoch whose draws an epoch takes."""
        return epoch if self.views is None else epoch % self.views

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels."""
        if isinstance(self.model, Transformer):
            return self.model.config().image_hw
        size = self.model.image_size
        return (size, size) if isinstance(size, int) else size

    def processor(self) -> DeiTImageProcessor:
        """The preprocessing of evaluation and prediction."""
        return DeiTImageProcessor.for_size(*self.image_hw, crop_ratio=self.crop_ratio)

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
        return Recipe(**content)

    def tiny(self) -> Recipe:
        """The same recipe in a size that a CPU runs in seconds, for tests and first tries."""
        model: dict[str, Any] = {"image_size": 32}
        if isinstance(self.model, Transformer):
            model |= {"patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
        return self.replace(epochs=2, batch_size=32, micro_batch_size=16, precision="fp32", model=model)

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


def deit() -> Recipe:
    """DeiT without a teacher, table 9. The defaults above are its values.

    Command:   deit train IMAGENET --recipe deit --set model.variant=deit-base-patch16-224
    Hardware:  the paper: 8 GPUs (V100) for 53 hours with base.
    Published: tiny 72.2, small 79.9, base 81.8 top-1 on ImageNet-1k.
    """
    return Recipe(name="deit")


def deit_distilled() -> Recipe:
    """DeiT with hard distillation through the token (section 4): the teacher RegNetY-16GF, else as ``deit``.

    Command:   deit train IMAGENET --recipe deit-distilled --teacher regnety_160
    Published: tiny 74.5, small 81.2, base 83.4 top-1 on ImageNet-1k.
    """
    return deit().replace(
        name="deit-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard"},
    )


def small_data() -> Recipe:
    """From scratch on a few hundred to some ten thousand images, on a laptop or one GPU.

    Against ``deit``: small batches, so that there are enough steps; a learning rate that moves at each of them; milder
    crops, RandAugment and mixing, which a small model with little time can still learn from; an average of the weights
    with a memory of a few epochs.
    """
    return deit().replace(
        name="small-data",
        epochs=100,
        batch_size=64,
        micro_batch_size=32,
        model={"drop_path": 0.05},
        augmentation={"scale": (0.35, 1.0), "randaugment": {"magnitude": 6.0}, "erasing": 0.1, "repeats": 1},
        mixing={"mixup": 0.2, "cutmix": 1.0, "probability": 0.5},
        optimizer={"lr": 4e-3, "min_lr": 1e-6, "by": "step", "clip_norm": 1.0},
        average={"decay": 0.998, "warmup": True, "evaluate": True},
    )


def small_data_distilled() -> Recipe:
    """As ``small-data``, learning from a teacher through the token."""
    return small_data().replace(
        name="small-data-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard"},
    )


def convnet() -> Recipe:
    """A convolutional teacher from scratch on small data: ``small-data``'s pipeline, a convnet's step sizes.

    Command:   deit teacher train PHOTOS --arch regnety_004
    """
    return small_data().replace(
        name="convnet",
        epochs=60,
        model=ConvNet().model_dump(),
        optimizer={"lr": 1.6e-2, "warmup_epochs": 3},
    )


def digits() -> Recipe:
    """The handwritten digits of 8 x 8 pixels, without a teacher.

    Against ``small-data``: a patch is 2 x 2 pixels of the original; wider first weights, since 0.02 is for wide models
    (docs/log.md); crops, slants and turns alone, since the images have no colour and a mirrored digit is none.
    """
    return small_data().replace(
        name="digits",
        epochs=100,
        batch_size=32,
        precision="fp32",
        crop_ratio=1.0,
        model={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "initializer_range": 0.1,
        },
        augmentation={
            "crop": "resized",
            "scale": (0.6, 1.0),
            "flip": 0.0,
            "randaugment": {"subset": "rotate-shear", "magnitude": 5.0},
            "color_jitter": 0.0,
            "erasing": 0.0,
        },
        mixing={"mixup": 0.0, "cutmix": 0.0},
        optimizer={"lr": 1.6e-2, "warmup_epochs": 3, "weight_decay": 0.1},
    )


def digits_distilled() -> Recipe:
    """As ``digits``, learning from a teacher through the token. What ``deit quickstart`` runs."""
    return digits().replace(
        name="digits-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard"},
    )


def digits_convnet() -> Recipe:
    """The small convolutional teacher of ``deit quickstart``."""
    return digits().replace(
        name="digits-convnet",
        epochs=12,
        batch_size=64,
        model={**ConvNet().model_dump(), "architecture": "resnet10t", "image_size": 32},
        augmentation={"randaugment": {"operations": 0}},
        optimizer={"warmup_epochs": 1.5, "weight_decay": 0.05},
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "deit": deit,
    "deit-distilled": deit_distilled,
    "small-data": small_data,
    "small-data-distilled": small_data_distilled,
    "convnet": convnet,
    "digits": digits,
    "digits-distilled": digits_distilled,
    "digits-convnet": digits_convnet,
}


def get_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a TOML file.

    Raises:
        RecipeError: neither; the message says the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".toml"):
        return Recipe.load(Path(name))
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)[0]
    raise RecipeError(f"There is no recipe {name!r}", f"did you mean {near}? `deit recipe list` shows all")


def _merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a section change what they name; a section of another kind replaces it whole."""
    result = dict(content)
    for name, value in changes.items():
        old = result.get(name)
        if isinstance(old, dict) and isinstance(value, Mapping) and value.get("kind", old.get("kind")) == old.get("kind"):
            value = _merged(old, value)
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
