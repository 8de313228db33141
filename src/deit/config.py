"""The shape of a model, written and read as Hugging Face JSON.

Every field is bounded, so that a configuration from outside is refused before any memory is taken for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from deit.errors import ConfigError, validation_problem
from deit.files import read_json, write_json

CONFIG_NAME = "config.json"
MAX_TOKENS = 65_536  # a 4096 x 4096 image in patches of 16
MAX_CLASSES = 1_000_000


def _pair(value: Any) -> Any:
    """JSON knows lists only: [224, 160] -> (224, 160)."""
    return tuple(value) if isinstance(value, list) else value


Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[Side | tuple[Side, Side], BeforeValidator(_pair)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class ViTConfig(BaseModel):
    """A vision transformer: what it looks at, how wide and deep it is, and the names of its classes.

    Field names are those of transformers. Unknown fields are kept for the way back to disk and have no effect.

    Raises:
        ConfigError: from the constructor, :meth:`from_dict` and :meth:`from_pretrained`, for values that cannot be built.

    Example:
        >>> ViTConfig(hidden_size=192, num_attention_heads=3).tokens  # 14 x 14 patches and [CLS]
        197
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    PREFIX_TOKENS: ClassVar[int] = 1

    model_type: str = "vit"
    hidden_size: Annotated[int, Field(ge=1, le=16_384)] = 768
    num_hidden_layers: Annotated[int, Field(ge=1, le=256)] = 12
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 12
    intermediate_size: Annotated[int, Field(ge=1, le=65_536)] = 3072
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"] = "gelu"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    initializer_range: Annotated[float, Field(gt=0, le=10)] = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-12
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: Annotated[int, Field(ge=1, le=1024)] = 3
    qkv_bias: bool = True
    pooler_output_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    pooler_act: Literal["tanh"] = "tanh"
    id2label: Annotated[dict[int, str], Field(max_length=MAX_CLASSES)] = Field(
        default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"}
    )

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(f"Model configuration: {validation_problem(error)}", "correct config.json") from error

    @model_validator(mode="before")
    @classmethod
    def _name_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """``num_labels`` alone stands for that many numbered names; numbers serve as names too."""
        rest = {key: value for key, value in fields.items() if key not in ("num_labels", "label2id")}
        count, names = fields.get("num_labels"), fields.get("id2label")
        if isinstance(names, dict):
            rest["id2label"] = {key: str(name) if isinstance(name, int | float) else name for key, name in names.items()}
        if count is None:
            return rest
        if not isinstance(count, int) or not 0 <= count <= MAX_CLASSES:
            raise ValueError(f"num_labels is no whole number in 0..{MAX_CLASSES}")
        if names is None:
            rest["id2label"] = {index: f"LABEL_{index}" for index in range(count)}
        elif isinstance(names, dict) and len(names) != count:
            raise ValueError(f"num_labels is {count}, and id2label names {len(names)} classes")
        return rest

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own = type(self).model_fields["model_type"].default
        if self.model_type != own:
            raise ValueError(f"model_type is {self.model_type!r}, this class reads {own!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by {self.num_attention_heads} heads")
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        if height % patch_height or width % patch_width:
            raise ValueError(f"an image of {height} x {width} does not divide into {patch_height} x {patch_width} patches")
        if self.tokens > MAX_TOKENS:
            raise ValueError(f"{self.tokens} tokens are more than {MAX_TOKENS}")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("id2label does not number its classes from 0 on")
        return self

    @field_serializer("id2label")
    def _label_keys(self, labels: dict[int, str]) -> dict[str, str]:
        return {str(index): name for index, name in labels.items()}

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return _both(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return _both(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        return height // patch_height, width // patch_width

    @property
    def tokens(self) -> int:
        """Length of the sequence: the tokens before the patches, and the patches."""
        rows, columns = self.grid
        return self.PREFIX_TOKENS + rows * columns

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for a model without a head."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Class name -> index. It is never read from disk: ``id2label`` is the one truth."""
        return {name: index for index, name in self.id2label.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.id2label[index] for index in range(self.num_labels))

    def with_classes(self, names: tuple[str, ...] | list[str]) -> Self:
        """The same shape for other classes."""
        return self.replace(id2label=dict(enumerate(names)))

    def replace(self, **fields: Any) -> Self:
        """A copy with other values, validated again."""
        own = self.model_dump(exclude={"id2label"} if "num_labels" in fields else None)
        return type(self)(**{**own, **fields})

    def to_dict(self) -> dict[str, Any]:
        """What stands in ``config.json``."""
        return {**self.model_dump(mode="json"), "label2id": self.label2id}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; a ``model_type`` of another class is refused."""
        return cls(**content)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json``."""
        write_json(Path(directory) / CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read ``config.json`` of a model directory."""
        return cls.from_dict(read_json(Path(directory) / CONFIG_NAME))


class DeiTConfig(ViTConfig):
    """A data-efficient image transformer: a :class:`ViTConfig` with a distillation token after [CLS] (section 4).

    Example:
        >>> DeiTConfig(image_size=384).tokens  # 24 x 24 patches, [CLS], distillation token
        578
    """

    PREFIX_TOKENS: ClassVar[int] = 2

    model_type: str = "deit"
    encoder_stride: Annotated[int, Field(ge=1, le=1024)] = 16


def config_from_dict(content: dict[str, Any]) -> ViTConfig:
    """The configuration class that ``model_type`` names.

    Raises:
        ConfigError: another model type, or values that cannot be built.
    """
    classes: dict[str, type[ViTConfig]] = {"vit": ViTConfig, "deit": DeiTConfig}
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in classes:
        raise ConfigError(f"The configuration's model_type is {kind!r}", "only deit and vit models are read")
    return classes[kind].from_dict(content)


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
