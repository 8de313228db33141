"""Model configurations, compatible with the JSON files of transformers.

Every field is bounded, so that an invalid configuration is refused before any memory is allocated for it.

In the examples, ``config`` is a small :class:`DeiTConfig` with five classes and ``folder`` an empty directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from deit.errors import ConfigError, UserError, did_you_mean, validation_problem
from deit.hub import fetch_file, hub_arguments
from deit.system.files import CONFIG_NAME, json_text, read_json, write_json, write_text
from deit.variants import variant

MAX_TOKENS = 65_536  # a 4096 x 4096 image in patches of 16
MAX_CLASSES = 1_000_000


def _to_json(value: Any) -> str:
    """Returns a value without a JSON form as transformers writes it, such as "float32" for ``torch.float32``."""
    return str(value).removeprefix("torch.")


def _to_pair(value: Any) -> Any:
    """Turns a JSON list into a tuple, such as [224, 160] into (224, 160)."""
    return tuple(value) if isinstance(value, list) else value


# Names of transformers for a field.
ALIASES = {"_attn_implementation": "attn_implementation", "_attn_implementation_internal": "attn_implementation"}
# Fields of every configuration of transformers without effect on an image classifier -> default. Values are kept and saved.
COMMON_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("add_cross_attention", "is_decoder", "is_encoder_decoder", "torchscript", "use_bfloat16"), False),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id")),
    **dict.fromkeys(("architectures", "dtype", "finetuning_task", "prefix", "task_specific_params", "tokenizer_class")),
    **dict.fromkeys(("cross_attention_hidden_size", "tie_encoder_decoder", "torch_dtype", "transformers_version")),
    "chunk_size_feed_forward": 0,
    "tie_word_embeddings": True,
    "use_cache": False,
}
# Fields that apply to a model in memory, and are not part of ``config.json``, as in transformers.
RUNTIME_FIELDS = {"attn_implementation", "gradient_checkpointing"}
Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[Side | tuple[Side, Side], BeforeValidator(_to_pair)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Config = TypeVar("Config", bound="ViTConfig")


class ViTConfig(BaseModel):
    """Configuration of a vision transformer: input, architecture, and class names.

    The fields are those of transformers. Unknown fields are kept and saved again, and have no effect. Assigning a field
    validates the whole configuration again. ``num_labels`` and ``label2id`` are derived from ``id2label``; the constructor
    accepts either in its place.

    Attributes:
        image_size: side of the square input in pixels, or (height, width).
        patch_size: side of a square patch in pixels, or (height, width).
        attn_implementation: how attention is computed: ``sdpa``, fused, which None means; or ``eager``, with explicit weights.
            Not part of ``config.json``.
        gradient_checkpointing: create models with activation checkpointing enabled. Not part of ``config.json``.
        problem_type: loss for ``labels``; None means that it follows from their dtype and the number of classes.
        pruned_heads: layer index -> indices of the attention heads removed from it. Negative layer indices count from the end.
        encoder_stride: pixels per side that the decoder predicts for each token in masked image modeling.

    Raises:
        ConfigError: from the constructor, assignment, :meth:`from_dict` and :meth:`from_pretrained`, if a value is invalid.

    Example:
        >>> ViTConfig(hidden_size=192, num_attention_heads=3).tokens  # 14 x 14 patches and [CLS]
        197
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    PREFIX_TOKENS: ClassVar[int] = 1
    _commit_hash: ClassVar[None] = None  # read by transformers' pipelines
    # transformers' Trainer predicts all other outputs: the logits, as a single array for compute_metrics.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cls_logits", "distillation_logits"]

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
    attn_implementation: Literal["sdpa", "eager"] | None = None
    gradient_checkpointing: bool = False
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
        self._become(self.replace(**{name: value}))

    @model_validator(mode="before")
    @classmethod
    def _resolve_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Derives ``id2label`` from ``num_labels`` or ``label2id`` if it is missing; turns numeric class names into strings."""
        resolved = {ALIASES.get(key, key): value for key, value in fields.items() if key not in ("num_labels", "label2id")}
        count, id2label, label2id = fields.get("num_labels"), fields.get("id2label"), fields.get("label2id")
        if id2label is None and isinstance(label2id, dict) and all(isinstance(id_, int | str) for id_ in label2id.values()):
            id2label = {id_: label for label, id_ in label2id.items()}
        if isinstance(id2label, dict):
            resolved["id2label"] = {
                id_: str(label) if isinstance(label, int | float) else label for id_, label in id2label.items()
            }
        elif id2label is None:
            resolved.pop("id2label", None)
        if resolved.get("torchscript"):  # of transformers 4: the models return tuples, for torch.jit.trace
            resolved.setdefault("return_dict", False)
        if count is None:
            return resolved
        if not isinstance(count, int) or not 0 <= count <= MAX_CLASSES:
            raise ValueError(f"num_labels must be an integer in 0..{MAX_CLASSES}")
        if id2label is None:
            resolved["id2label"] = {id_: f"LABEL_{id_}" for id_ in range(count)}
        elif isinstance(id2label, dict) and len(id2label) != count:
            raise ValueError(f"num_labels is {count}, and id2label names {len(id2label)} classes")
        return resolved

    @model_validator(mode="after")
    def _count_layers_from_the_end(self) -> Self:
        """Replaces negative layer indices of ``pruned_heads``, as in ``layers[-1]``."""
        if any(layer < 0 for layer in self.pruned_heads):
            self.__dict__["pruned_heads"] = merge_heads(self.pruned_heads, layers=self.num_hidden_layers)
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        expected_type = type(self).model_fields["model_type"].default
        if self.model_type != expected_type:
            raise ValueError(f"model_type is {self.model_type!r}, but {type(self).__name__} needs {expected_type!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads")
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        if height % patch_height or width % patch_width:
            raise ValueError(f"image_size {height} x {width} is not divisible by patches of {patch_height} x {patch_width}")
        if self.tokens > MAX_TOKENS:
            raise ValueError(f"{self.tokens} tokens exceed the limit of {MAX_TOKENS}")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("id2label must number the classes 0, 1, 2, ...")
        for layer, heads in self.pruned_heads.items():
            if not 0 <= layer < self.num_hidden_layers or not set(heads) < set(range(self.num_attention_heads)):
                raise ValueError(f"pruned_heads of layer {layer} leaves no head, or names a layer or head that does not exist")
        return self

    @field_serializer("id2label")
    def _serialize_id2label(self, id2label: dict[int, str]) -> dict[str, str]:
        return {str(id_): label for id_, label in id2label.items()}

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return _height_width(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return _height_width(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        return height // patch_height, width // patch_width

    @property
    def tokens(self) -> int:
        """Sequence length: prefix tokens and patches."""
        rows, columns = self.grid
        return self.PREFIX_TOKENS + rows * columns

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for a model without a head."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Class name -> index, derived from ``id2label``, which takes precedence if a file has both.

        Of several classes with the same name, the last one counts.
        """
        return {name: index for index, name in self.id2label.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return tuple(self.id2label[index] for index in range(self.num_labels))

    def with_classes(self, names: tuple[str, ...] | list[str]) -> Self:
        """Returns a copy with other class names.

        Example:
            >>> config.with_classes(["cat", "dog"]).classes
            ('cat', 'dog')
        """
        return self.replace(id2label=dict(enumerate(names)))

    def replace(self, **fields: Any) -> Self:
        """Returns a copy with other field values, validated again.

        Example:
            >>> config.replace(image_size=64).grid
            (4, 4)
        """
        fields = {ALIASES.get(name, name): value for name, value in fields.items()}
        derived = {"id2label"} if {"num_labels", "label2id", "id2label"} & fields.keys() else set()
        kept = self.model_dump(exclude=derived | ({"return_dict"} if fields.get("torchscript") else set()))
        return type(self)(**{**kept, **fields})

    def override(self, fields: Mapping[str, Any]) -> Self:
        """Returns a copy with other field values, as :meth:`replace`, but refuses unknown names.

        Raises:
            ConfigError: unknown field name.

        Example:
            >>> config.override({"num_label": 3})
            Traceback (most recent call last):
            ...
            deit.errors.ConfigError: DeiTConfig has no field 'num_label': did you mean num_labels.
        """
        own = {*type(self).model_fields, "num_labels", "label2id", *ALIASES}
        known = {*own, *COMMON_FIELDS, *(self.__pydantic_extra__ or {})}
        for name in fields:
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no field {name!r}", did_you_mean(name, own))
        return self.replace(**fields) if fields else self

    def as_class(self, config_class: type[Config]) -> Config:
        """Returns the same configuration with or without a distillation token.

        Example:
            >>> config.as_class(deit.ViTConfig).tokens
            5
        """
        return config_class(**self.model_dump(exclude={"model_type"}))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``config.json``.

        Example:
            >>> config.to_dict()["label2id"]["LABEL_4"]
            4
        """
        content = {**self.model_dump(mode="json", fallback=_to_json), "label2id": self.label2id}
        left_out = RUNTIME_FIELDS if self.layer_scale is not None else {*RUNTIME_FIELDS, "layer_scale"}
        return {key: content[key] for key in content if key not in left_out}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the content of ``config.json`` that differs from the defaults, and ``model_type``.

        Example:
            >>> deit.DeiTConfig(image_size=384).to_diff_dict()
            {'model_type': 'deit', 'image_size': 384}
        """
        defaults = type(self)().to_dict()
        content = self.to_dict()
        return {key: content[key] for key in content if key == "model_type" or defaults.get(key) != content[key]}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **fields: Any) -> Self:
        """Builds a configuration from the content of ``config.json``. The ``model_type`` must be that of this class.

        Args:
            config_dict: content of ``config.json``.
            fields: fields that override it.

        Example:
            >>> deit.DeiTConfig.from_dict(config.to_dict()) == config
            True
        """
        return cls(**config_dict).override(fields)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Assigns several fields at once.

        Example:
            >>> changed = config.replace()
            >>> changed.update({"image_size": 60, "patch_size": 12})
            >>> changed.grid
            (5, 5)
        """
        self._become(self.replace(**config_dict))

    def to_json_string(self, use_diff: bool = False) -> str:
        """Returns the content of ``config.json`` as text; with ``use_diff``, only what differs from the defaults.

        Example:
            >>> config.to_json_string().splitlines()[1]
            '  "model_type": "deit",'
        """
        return json_text(self.to_diff_dict() if use_diff else self.to_dict())

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = False) -> None:
        """Writes :meth:`to_json_string` to a file.

        Example:
            >>> config.to_json_file(f"{folder}/model.json")
            >>> deit.DeiTConfig.from_json_file(f"{folder}/model.json") == config
            True
        """
        write_text(Path(json_file_path), self.to_json_string(use_diff))

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Reads a file that :meth:`to_json_file` wrote.

        Raises:
            CheckpointError: the file does not exist, or is not a JSON object.

        Example:
            >>> config.to_json_file(f"{folder}/model.json")
            >>> deit.DeiTConfig.from_json_file(f"{folder}/model.json").hidden_size
            48
        """
        return cls.from_dict(read_json(Path(json_file)))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes ``config.json``.

        Example:
            >>> config.save_pretrained(folder)
            >>> [path.name for path in folder.iterdir()]
            ['config.json']
        """
        write_json(Path(save_directory) / CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> Self:
        """Loads ``config.json``.

        Args:
            pretrained_model_name_or_path: model directory, run, path of the file, name on the hub, or name of a variant.
            arguments: fields that override those of the file, and arguments of :func:`deit.hub.fetch` such as ``revision``,
                ``cache_dir``, ``local_files_only`` or ``token``.

        Raises:
            CheckpointError: the file does not exist, or is not a JSON object.
            ConfigError: invalid value, or unknown field name.

        Example:
            >>> config.save_pretrained(folder)
            >>> deit.DeiTConfig.from_pretrained(folder, num_labels=3).num_labels
            3
        """
        hub, fields = hub_arguments(arguments)
        path = fetch_file(pretrained_model_name_or_path, (CONFIG_NAME,), **hub)
        content = read_json(path)
        if not content.keys() & cls.model_fields.keys():  # of timm, of an image processor
            raise ConfigError(f"{path} does not configure a DeiT or ViT", "pass one, or use load_model(...).config")
        return cls.from_dict(content).override(fields)

    # The rest is what programs for transformers expect of every configuration. It says that a model of images has one part.

    sub_configs: ClassVar[dict[str, Any]] = {}
    attribute_map: ClassVar[dict[str, str]] = {}
    is_composition: ClassVar[bool] = False
    base_model_tp_plan: ClassVar[None] = None
    base_model_pp_plan: ClassVar[None] = None

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:  # noqa: ARG002
        """Returns the configuration itself: there is no other part.

        Example:
            >>> config.get_text_config() is config
            True
        """
        return self

    def set_name(self, name: str) -> None:
        """Keeps the name that the model was loaded by. It is not part of ``config.json``.

        Example:
            >>> config.set_name("me/digits")
            >>> config.name_or_path
            'me/digits'
        """
        self.__dict__["name_or_path"] = name  # not a field, so that equal models have equal configurations

    @property
    def name_or_path(self) -> str:
        """Name that the model was loaded by; empty for a new model."""
        return str(self.__dict__.get("name_or_path", ""))

    @property
    def _name_or_path(self) -> str:
        """Another name of ``name_or_path``."""
        return self.name_or_path

    @property
    def use_return_dict(self) -> bool:
        """Older name of ``return_dict``."""
        return self.return_dict

    @property
    def _attn_implementation(self) -> str:
        """Name of transformers for ``attn_implementation``, with its default."""
        return self.attn_implementation or "sdpa"

    def __getattr__(self, name: str) -> Any:
        fields = self.__pydantic_extra__ or {}
        if name in COMMON_FIELDS and name not in fields:
            return COMMON_FIELDS[name]
        return super().__getattr__(name)  # type: ignore[misc]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        """Iterates over the names of the fields, as in transformers."""
        yield from type(self).model_fields
        yield from self.__pydantic_extra__ or {}

    def _become(self, changed: Self) -> None:
        self.__dict__.update(changed.__dict__)
        object.__setattr__(self, "__pydantic_extra__", changed.__pydantic_extra__)


class DeiTConfig(ViTConfig):
    """Configuration of a data-efficient image transformer: adds a distillation token after [CLS] (paper, section 4).

    Attributes:
        distillation_type: loss computed from the teacher's logits (paper, section 4, equations 2 and 3).

    Example:
        >>> DeiTConfig(image_size=384).tokens  # 24 x 24 patches, [CLS], distillation token
        578
    """

    PREFIX_TOKENS: ClassVar[int] = 2

    model_type: str = "deit"
    distillation_type: Literal["hard", "soft"] = "hard"

    def __init__(self, /, **fields: Any) -> None:  # explicit, so that type checkers accept num_labels
        super().__init__(**fields)


def as_config(config: Any) -> ViTConfig:
    """Returns a configuration of this package for what transformers accepts as one.

    Args:
        config: configuration of this package, which is returned as it is; configuration of transformers, or the content of its
            file; name or path as in :meth:`ViTConfig.from_pretrained`.

    Raises:
        UserError: not a configuration.
        ConfigError: unsupported model type, or invalid value.

    Example:
        >>> as_config({"model_type": "deit", "image_size": 64}).tokens
        18
    """
    if isinstance(config, ViTConfig):
        return config
    if isinstance(config, str | Path):
        return config_from_dict(read_json(fetch_file(config, (CONFIG_NAME,))))
    if isinstance(config, Mapping):
        return config_from_dict(dict(config))
    if not callable(getattr(config, "to_dict", None)):
        raise UserError(f"A {type(config).__name__} is not a model configuration", "pass a DeiTConfig or a ViTConfig")
    attention = getattr(config, "_attn_implementation", None)  # to_dict leaves it out
    return config_from_dict({**config.to_dict(), **({"attn_implementation": attention} if attention else {})})


def config_from_dict(content: dict[str, Any]) -> ViTConfig:
    """Builds a configuration of the class that ``model_type`` names.

    Raises:
        ConfigError: unsupported model type, or invalid value.
    """
    config_classes: dict[str, type[ViTConfig]] = {"vit": ViTConfig, "deit": DeiTConfig}
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in config_classes:
        raise ConfigError(f"The configuration's model_type is {model_type!r}", "only deit and vit are supported")
    return config_classes[model_type].from_dict(content)


def merge_heads(*pruned: Mapping[int, Iterable[int]], layers: int) -> dict[int, list[int]]:
    """Returns the union of pruned heads, with layers counted from the start. Layers that do not exist are kept as they are.

    Example:
        >>> merge_heads({0: [1]}, {-1: [2], 1: [0]}, layers=2)
        {0: [1], 1: [0, 2]}
    """
    merged: dict[int, set[int]] = {}
    for heads in pruned:
        for layer, layer_heads in heads.items():
            merged.setdefault(layer + layers if -layers <= layer < 0 else layer, set()).update(layer_heads)
    return {layer: sorted(merged[layer]) for layer in sorted(merged)}


def variant_config(name: str, **fields: Any) -> ViTConfig:
    """Returns the configuration of a published variant, with 1000 classes unless ``fields`` set others.

    Raises:
        UserError: unknown variant; the message suggests the closest.

    Example:
        >>> variant_config("deit-tiny-distilled-patch16-224", num_labels=10).hidden_size
        192
    """
    row = variant(name)
    if not {"id2label", "label2id"} & fields.keys():
        fields = {"num_labels": 1000, **fields}
    return (DeiTConfig if row.distilled else ViTConfig)(**{**row.shape, **fields})


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
