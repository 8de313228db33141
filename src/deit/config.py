"""The shape of a model, written and read as Hugging Face JSON.

Every field is bounded, so that a configuration from outside is refused before any memory is taken for it.

In the examples, ``config`` is a small :class:`DeiTConfig` with five classes and ``folder`` an empty directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from deit.errors import ConfigError, did_you_mean, validation_problem
from deit.hub import fetch, hub_arguments
from deit.system.files import CONFIG_NAME, json_text, read_json, write_json
from deit.variants import variant

MAX_TOKENS = 65_536  # a 4096 x 4096 image in patches of 16
MAX_CLASSES = 1_000_000


def _plain(value: Any) -> str:
    """What JSON has no words for, as transformers writes it: ``torch.float32`` is "float32"."""
    return str(value).removeprefix("torch.")


def _pair(value: Any) -> Any:
    """JSON knows lists only: [224, 160] -> (224, 160)."""
    return tuple(value) if isinstance(value, list) else value


Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[Side | tuple[Side, Side], BeforeValidator(_pair)]
Probability = Annotated[float, Field(ge=0, lt=1)]


Config = TypeVar("Config", bound="ViTConfig")


class ViTConfig(BaseModel):
    """A vision transformer: what it looks at, how wide and deep it is, and the names of its classes.

    Field names are those of transformers. Unknown fields are kept for the way back to disk and have no effect. A field may be
    assigned: the whole is validated again. ``num_labels`` and ``label2id`` follow from ``id2label``; either may stand for it in
    the constructor.

    Attributes:
        image_size: pixels, of both sides or as (height, width); likewise ``patch_size``.
        problem_type: which loss ``labels`` are for; taken from the labels' type and the number of classes when None.
        pruned_heads: layer -> numbers of the attention heads that were taken out.
        encoder_stride: pixels a token stands for in masked image modeling.

    Raises:
        ConfigError: from the constructor, assignment, :meth:`from_dict` and :meth:`from_pretrained`, for values that cannot be
            built.

    Example:
        >>> ViTConfig(hidden_size=192, num_attention_heads=3).tokens  # 14 x 14 patches and [CLS]
        197
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

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
    encoder_stride: Annotated[int, Field(ge=1, le=1024)] = 16
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    layer_scale: Annotated[float, Field(gt=0, le=10)] | None = None
    pruned_heads: Annotated[dict[int, list[int]], Field(max_length=256)] = {}
    id2label: Annotated[dict[int, str], Field(max_length=MAX_CLASSES)] = Field(
        default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"}
    )

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(f"Model configuration: {validation_problem(error)}", "correct config.json") from error

    def __setattr__(self, name: str, value: Any) -> None:
        changed = self.replace(**{name: value})
        self.__dict__.update(changed.__dict__)
        object.__setattr__(self, "__pydantic_extra__", changed.__pydantic_extra__)

    @model_validator(mode="before")
    @classmethod
    def _name_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """``num_labels`` alone stands for that many numbered names; numbers serve as names too."""
        rest = {key: value for key, value in fields.items() if key not in ("num_labels", "label2id")}
        count, names, numbers = fields.get("num_labels"), fields.get("id2label"), fields.get("label2id")
        if names is None and isinstance(numbers, dict) and all(isinstance(number, int | str) for number in numbers.values()):
            names = {number: name for name, number in numbers.items()}
        if isinstance(names, dict):
            rest["id2label"] = {key: str(name) if isinstance(name, int | float) else name for key, name in names.items()}
        elif names is None:
            rest.pop("id2label", None)
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
        for layer, heads in self.pruned_heads.items():
            if not 0 <= layer < self.num_hidden_layers or not set(heads) < set(range(self.num_attention_heads)):
                raise ValueError(f"pruned_heads of layer {layer} leaves no head, or there is no such layer or head")
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
        """Class name -> index; from ``id2label``, which is the one truth where a file holds both.

        Of classes of one name the last is found.
        """
        return {name: index for index, name in self.id2label.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.id2label[index] for index in range(self.num_labels))

    def with_classes(self, names: tuple[str, ...] | list[str]) -> Self:
        """The same shape for other classes.

        Example:
            >>> config.with_classes(["cat", "dog"]).classes
            ('cat', 'dog')
        """
        return self.replace(id2label=dict(enumerate(names)))

    def replace(self, **fields: Any) -> Self:
        """A copy with other values, validated again.

        Example:
            >>> config.replace(image_size=64).grid
            (4, 4)
        """
        names_too = {"num_labels", "label2id", "id2label"} & fields.keys()
        own = self.model_dump(exclude={"id2label"} if names_too else None)
        return type(self)(**{**own, **fields})

    def override(self, fields: Mapping[str, Any]) -> Self:
        """As :meth:`replace`, for names that a user typed.

        Raises:
            ConfigError: a name that is none of a field.

        Example:
            >>> config.override({"num_label": 3})
            Traceback (most recent call last):
            ...
            deit.errors.ConfigError: DeiTConfig has no field 'num_label': did you mean num_labels.
        """
        known = {*type(self).model_fields, *(self.__pydantic_extra__ or {}), "num_labels", "label2id"}
        for name in fields:
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no field {name!r}", did_you_mean(name, known))
        return self.replace(**fields) if fields else self

    def as_class(self, kind: type[Config]) -> Config:
        """The same shape with or without a distillation token.

        Example:
            >>> config.as_class(deit.ViTConfig).tokens
            5
        """
        return kind(**self.model_dump(exclude={"model_type"}))

    def to_dict(self) -> dict[str, Any]:
        """What stands in ``config.json``.

        Example:
            >>> config.to_dict()["label2id"]["LABEL_4"]
            4
        """
        content = {**self.model_dump(mode="json", fallback=_plain), "label2id": self.label2id}
        return content if self.layer_scale is not None else {key: content[key] for key in content if key != "layer_scale"}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; a ``model_type`` of another class is refused.

        Example:
            >>> deit.DeiTConfig.from_dict(config.to_dict()) == config
            True
        """
        return cls(**content)

    def to_json_string(self) -> str:
        """:meth:`to_dict` as text.

        Example:
            >>> config.to_json_string().splitlines()[1]
            '  "model_type": "deit",'
        """
        return json_text(self.to_dict())

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json``.

        Example:
            >>> config.save_pretrained(folder)
            >>> [path.name for path in folder.iterdir()]
            ['config.json']
        """
        write_json(Path(directory) / CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path, **arguments: Any) -> Self:
        """Read ``config.json``.

        Args:
            name: a model directory, the file itself, a name on the hub, or a variant's name.
            arguments: fields that take the place of those in the file; and where on the hub, as in
                :func:`deit.hub.fetch`: ``revision``, ``cache_dir``, ``local_files_only``, ``token`` and so on.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
            ConfigError: values that cannot be built, or an argument of an unknown name.

        Example:
            >>> config.save_pretrained(folder)
            >>> deit.DeiTConfig.from_pretrained(folder, num_labels=3).num_labels
            3
        """
        options, fields = hub_arguments(arguments)
        path = fetch(name, (CONFIG_NAME,), **options)
        return cls.from_dict(read_json(path if path.is_file() else path / CONFIG_NAME)).override(fields)


class DeiTConfig(ViTConfig):
    """A data-efficient image transformer: a :class:`ViTConfig` with a distillation token after [CLS] (section 4).

    Attributes:
        distillation_type: the loss of a model that is given a teacher's logits (section 4, equations 2 and 3).

    Example:
        >>> DeiTConfig(image_size=384).tokens  # 24 x 24 patches, [CLS], distillation token
        578
    """

    PREFIX_TOKENS: ClassVar[int] = 2

    model_type: str = "deit"
    distillation_type: Literal["hard", "soft"] = "hard"

    def __init__(self, /, **fields: Any) -> None:  # spelled out for type checkers, which know no num_labels otherwise
        super().__init__(**fields)


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


def variant_config(name: str, **fields: Any) -> ViTConfig:
    """The configuration of a row of the paper's table, with 1000 classes unless ``fields`` say otherwise.

    Raises:
        UserError: no such variant; the message names the nearest.

    Example:
        >>> variant_config("deit-tiny-distilled-patch16-224", num_labels=10).hidden_size
        192
    """
    row = variant(name)
    if not {"id2label", "label2id"} & fields.keys():
        fields = {"num_labels": 1000, **fields}
    return (DeiTConfig if row.distilled else ViTConfig)(**{**row.shape, **fields})


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
