"""Base class of the models: configuration, initialization, loading and saving.

In the examples here and in ``modeling``, ``config`` is a small :class:`deit.DeiTConfig` with five classes, ``model`` is a
:class:`deit.DeiTForImageClassificationWithTeacher` with this configuration, and ``folder`` is an empty directory.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from deit.checkpoints import publishing
from deit.checkpoints.adapting import DistillationChange, LoadReport, adapt_checkpoint
from deit.checkpoints.reading import Checkpoint, open_checkpoint
from deit.checkpoints.writing import write_transformers
from deit.config import ViTConfig, as_config, merge_heads
from deit.errors import CheckpointError, UserError
from deit.hub import fetch, hub_arguments
from deit.models.compatibility import CompatibilityMixin, drop_arguments, refuse_arguments
from deit.models.outputs import ModelOutput
from deit.models.state_names import canonical_name, full_name, rename_state
from deit.system.devices import choose_device

logger = logging.getLogger("deit")

# Arguments of transformers that are accepted and have no effect, besides those of :mod:`deit.hub`.
IGNORED_ARGUMENTS = frozenset(
    {
        *("_fast_init", "adapter_kwargs", "backend", "low_cpu_mem_usage", "max_memory"),
        *("offload_buffers", "offload_folder", "offload_state_dict", "use_fast", "use_kernels"),
        *("use_safetensors", "weights_only"),
    }
)
IGNORED_SAVE_ARGUMENTS = frozenset({"max_shard_size", "save_function", "save_original_format", "save_peft_format"})
# Arguments of transformers that are accepted only without a value, and what to do instead.
UNSUPPORTED_ARGUMENTS = {
    "from_flax": "load the model in transformers 4 and save it with safetensors",
    "from_tf": "load the model in transformers 4 and save it with safetensors",
    "gguf_file": "pass a model directory with safetensors",
    "key_mapping": "rename the tensors in the file",
    "quantization_config": "load the model, then quantize it, or use deit export --int8",
    "tp_plan": "the model fits on one device: use device_map",
    "tp_size": "the model fits on one device: use device_map",
    "variant": "rename the file to model.safetensors, and pass dtype for another precision",
}
UNSUPPORTED_SAVE_ARGUMENTS = {"variant": "pass another directory"}
# Configuration fields that the tensors of a file without configuration may not determine.
AMBIGUOUS_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "num_labels")
MASK_TOKEN = "embeddings.mask_token"
AttentionName = Literal["sdpa", "eager"]
DeviceMap = str | int | torch.device | Mapping[str, Any] | None
Output = TypeVar("Output", bound=ModelOutput)
Model = TypeVar("Model", bound=nn.Module)


class SupportsSavePretrained(Protocol):
    """Object that can be saved in a directory, such as an image processor."""

    def save_pretrained(self, directory: str) -> object:
        """Saves the object."""


class PreTrainedModel(CompatibilityMixin):
    """Base class of the public models.

    Example:
        >>> model.device, model.dtype, model.base_model is model.deit
        (device(type='cpu'), torch.float32, True)
    """

    config_class: ClassVar[type[ViTConfig]] = ViTConfig
    base_model_prefix: ClassVar[str] = "vit"
    main_input_name: ClassVar[str] = "pixel_values"
    # Arguments of the constructor besides the configuration.
    _init_arguments: ClassVar[frozenset[str]] = frozenset()

    config: ViTConfig
    load_report: LoadReport
    num_labels: int

    def __init__(self, config: ViTConfig) -> None:
        own_config = as_config(config)
        if type(own_config) is not self.config_class:
            raise UserError(f"{type(self).__name__} takes a {self.config_class.__name__}", f"not a {type(config).__name__}")
        super().__init__()
        self.config = own_config
        self.load_report = LoadReport()
        self.num_labels = own_config.num_labels
        self.name_or_path = own_config.name_or_path
        self.register_load_state_dict_pre_hook(rename_state)  # type: ignore[no-untyped-call]

    @property
    def base_model(self) -> Any:
        """Transformer without a head: a submodule, or the model itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:  # noqa: ARG002
        """Returns the number of parameters.

        Args:
            only_trainable: count only parameters that require gradients.
            exclude_embeddings: no effect: a vision transformer has no embedding tables. transformers' Trainer passes it.

        Example:
            >>> from deit.config import variant_config
            >>> with torch.device("meta"):
            ...     deit.ViTForImageClassification(variant_config("deit-tiny-patch16-224")).num_parameters()
            5717416
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def materialize(self) -> None:
        """Moves weights from the meta device to the device of new parameters and initializes them.

        Models create their submodules on the meta device, so that only the outermost model initializes weights, once. The
        weights stay there if new parameters do, as within ``accelerate.init_empty_weights``.

        Example:
            >>> with torch.device("meta"):
            ...     model = deit.DeiTForImageClassification(config)
            >>> model.materialize()
            >>> model.device
            device(type='cpu')
        """
        probe = nn.Module()
        probe.register_parameter("parameter", nn.Parameter(torch.empty(0)))
        device = probe.get_parameter("parameter").device
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None, names: Collection[str] | None = None) -> None:
        """Initializes the weights (paper, section 6).

        Biases are zero and the weights of layer norms one; all others, and tokens and position embeddings, are drawn from a
        truncated normal distribution with the configuration's ``initializer_range`` as standard deviation.

        Args:
            generator: source of the random weights; torch's default generator if None.
            names: canonical names of the tensors to initialize; None means all.

        Example:
            >>> model.init_weights(torch.Generator().manual_seed(0))
            >>> model.cls_classifier.bias.tolist()
            [0.0, 0.0, 0.0, 0.0, 0.0]
        """
        for name, parameter in self.named_parameters():
            if names is None or name.removeprefix(f"{self.base_model_prefix}.") in names:
                _init_tensor(name, parameter, self.config, generator)

    def without_layer_scale(self) -> Self:
        """Folds layer scale into the weights, so that other libraries can load them.

        Returns:
            A copy without layer scale; the model itself if it has none.

        Example:
            >>> scaled = deit.DeiTForImageClassification(config.replace(layer_scale=0.1))
            >>> scaled.without_layer_scale().config.layer_scale is None
            True
        """
        if self.config.layer_scale is None:
            return self
        folded = copy.deepcopy(self)
        for layer in folded.base_model.layers:
            layer.fold_layer_scale()
        folded.config.layer_scale = None
        return folded

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes layers in the backward pass instead of storing their activations.

        This needs less memory, and up to a third more computation.

        Args:
            activation_checkpointing_kwargs: arguments of ``torch.utils.checkpoint.checkpoint``; ``use_reentrant`` defaults to
                False.
            every_n_layers: recompute the first of every n layers.
            offload: not supported.

        Raises:
            UserError: ``offload`` is set, or ``every_n_layers`` is less than 1.

        Example:
            >>> model.activation_checkpointing_enable(every_n_layers=2)
            >>> model.is_gradient_checkpointing
            True
        """
        if offload or every_n_layers < 1:
            raise UserError("every_n_layers must be at least 1, and offload is not supported", "omit offload")
        self.base_model.checkpoint_arguments = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        self.base_model.checkpointed_layers = range(0, self.config.num_hidden_layers, every_n_layers)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Enables checkpointing of every layer; the older name of :meth:`activation_checkpointing_enable`.

        Example:
            >>> model.gradient_checkpointing_enable()
            >>> model.is_gradient_checkpointing
            True
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Disables checkpointing; the older name of :meth:`activation_checkpointing_disable`.

        Example:
            >>> model.gradient_checkpointing_disable()
            >>> model.is_gradient_checkpointing
            False
        """
        self.activation_checkpointing_disable()

    def activation_checkpointing_disable(self) -> None:
        """Stores all activations again.

        Example:
            >>> model.activation_checkpointing_enable()
            >>> model.activation_checkpointing_disable()
            >>> model.is_activation_checkpointing
            False
        """
        self.base_model.checkpointed_layers = range(0)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return len(self.base_model.checkpointed_layers) > 0

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Older name of :attr:`is_activation_checkpointing`."""
        return self.is_activation_checkpointing

    def set_attn_implementation(self, attn_implementation: AttentionName) -> None:
        """Sets how attention is computed (``config.attn_implementation``). With ``output_attentions``, it is always ``eager``.

        Args:
            attn_implementation: ``sdpa``, fused; or ``eager``, with explicit attention weights.

        Raises:
            UserError: unknown implementation.

        Example:
            >>> model.set_attn_implementation("eager")
            >>> model.config.attn_implementation
            'eager'
        """
        if attn_implementation not in ("sdpa", "eager"):
            # The words of transformers, whose users look for them.
            problem = f'Specified `attn_implementation="{attn_implementation}"` is not supported'
            raise UserError(problem, "use sdpa or eager")
        self.config.attn_implementation = attn_implementation

    def prune_heads(self, heads: Mapping[int, list[int]]) -> None:
        """Removes attention heads and records them in the configuration.

        Args:
            heads: layer index -> head indices in the unpruned layer. Negative layer indices count from the end.

        Raises:
            ConfigError: there is no such layer or head, or no head of a layer would be left.

        Example:
            >>> model.prune_heads({0: [1]})
            >>> [layer.attention.heads for layer in model.deit.layers]
            [[0, 2], [0, 1, 2]]
        """
        count = self.config.num_hidden_layers
        removed = merge_heads({int(layer): map(int, layer_heads) for layer, layer_heads in heads.items()}, layers=count)
        self.config.pruned_heads = merge_heads(self.config.pruned_heads, removed, layers=count)
        for layer, layer_heads in removed.items():
            self.base_model.layers[layer].attention.prune(layer_heads)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **hub: Any,
    ) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in the format of transformers.

        Args:
            save_directory: directory to write to; created if missing.
            is_main_process: False writes nothing; for the other processes of distributed training.
            state_dict: tensors to write instead of the model's, under the names of the model's ``state_dict`` or any others
                that ``load_state_dict`` takes.
            push_to_hub: also upload the model.
            safe_serialization: False writes ``pytorch_model.bin``, for programs that do not read safetensors.
            hub: arguments of :meth:`push_to_hub`, of which ``repo_id`` is required. ``save_function``, ``max_shard_size`` and
                ``save_original_format`` of transformers are accepted and have no effect: weights are always a single file.

        Raises:
            UserError: unknown argument, or ``push_to_hub`` without ``repo_id``.
            CheckpointError: ``state_dict`` does not have the tensors of the model.

        Example:
            >>> model.save_pretrained(folder)
            >>> type(model).from_pretrained(folder).num_parameters() == model.num_parameters()
            True
        """
        hub = drop_arguments(refuse_arguments(hub, UNSUPPORTED_SAVE_ARGUMENTS), IGNORED_SAVE_ARGUMENTS)
        if push_to_hub and "repo_id" not in hub:
            raise UserError("push_to_hub needs a repo_id", "pass repo_id='owner/name'")
        if hub and not push_to_hub:
            raise UserError(
                f"save_pretrained has no argument {min(hub)!r}",
                "remove it; arguments of push_to_hub need push_to_hub=True",
            )
        directory = Path(save_directory)
        if is_main_process:
            config, state = self.config, self.canonical_state() if state_dict is None else self._canonical(state_dict)
            if config.layer_scale is not None:  # not supported by other libraries
                model = copy.deepcopy(self)
                model.load_state_dict({self._full_name(name): tensor for name, tensor in state.items()})
                folded = model.without_layer_scale()
                config, state = folded.config, folded.canonical_state()
            write_transformers(directory, config, state, type(self).__name__, safe_serialization)
        if is_main_process and push_to_hub:
            publishing.push_to_hub(directory, **hub)

    def push_to_hub(self, repo_id: str, processor: SupportsSavePretrained | None = None, **arguments: Any) -> str:
        """Uploads the model to the hub, with a model card.

        The model card of a trained model, with data, recipe and metrics, is part of its run: use ``deit model push RUN REPO``.

        Args:
            repo_id: ``owner/name``.
            processor: image processor to upload with the model.
            arguments: see :func:`deit.checkpoints.publishing.push_to_hub`.

        Returns:
            URL of the upload.

        Example (with a hub that accepts everything):
            >>> model.push_to_hub("me/digits", private=True)
            'https://huggingface.co/me/digits'
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)
            return publishing.push_to_hub(Path(folder), repo_id, **arguments)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        output_loading_info: Literal[False] = False,
        **arguments: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *, output_loading_info: Literal[True], **arguments: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: Any = None,
        state_dict: Mapping[str, Tensor] | None = None,
        ema: bool = False,
        distillation: DistillationChange | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: AttentionName | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = True,
        device_map: DeviceMap = None,
        device: str | torch.device | None = None,
        **arguments: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Loads a model, in evaluation mode.

        The format is detected: that of transformers, of timm, of the original DeiT code, or of this package.

        Tensors that the checkpoint lacks are newly initialized and reported: heads for another number of classes, a pooler.
        Position embeddings are resampled if ``image_size`` gives another grid of patches. Any other tensor of the transformer
        that is missing or left over is an error.

        Args:
            pretrained_model_name_or_path: file, directory, name on the hub, or name of a variant. None if ``config`` and
                ``state_dict`` are the model.
            config: configuration that replaces the stored one: one of this package or of transformers, or its name or path.
            state_dict: tensors to load instead of those of a file, with the names that ``load_state_dict`` takes.
            ema: load the exponential moving average of the weights, if a training checkpoint has both.
            distillation: ``drop`` loads a distilled checkpoint into a plain model, with its class head. ``new`` loads a plain
                checkpoint into a distilled model, with a newly initialized token and head. None refuses both; only
                ``DeiTForImageClassification`` accepts a distilled checkpoint, with a newly initialized head, as transformers
                does.
            dtype: dtype of the weights, its name, or ``auto`` for that of the file; None means float32.
            torch_dtype: the older name of ``dtype``.
            attn_implementation: see :meth:`set_attn_implementation`; None uses the configuration's value.
            output_loading_info: return ``(model, info)``, where ``info`` is ``model.load_report`` as a dictionary with the keys
                of transformers.
            ignore_mismatched_sizes: initialize heads for another number of classes; False makes them an error.
            device_map: device of the whole model: a device, ``auto``, or ``{"": device}``. The model is never split.
            device: another name of ``device_map``.
            arguments: arguments of the constructor; configuration fields such as ``num_labels``, ``id2label`` or
                ``image_size``; and arguments of the hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.
                Arguments of transformers that are accepted and have no effect are listed in ``IGNORED_ARGUMENTS``.

        Raises:
            CheckpointError: a file is missing or corrupt, or the tensors do not fit the model.
            ConfigError: invalid configuration.
            UserError: heads of another size with ``ignore_mismatched_sizes=False``, or an unknown dtype, attention
                implementation or device.

        Example:
            >>> model.save_pretrained(folder)
            >>> larger = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder, num_labels=2, image_size=(64, 32))
            >>> list(larger.load_report.resized), larger.load_report.new[0]
            (['embeddings.position_embeddings'], 'cls_classifier.weight')
        """
        target = None if config is None else as_config(config)
        if state_dict is not None:
            model = cls._from_state_dict(state_dict, target, pretrained_model_name_or_path, arguments)
            if attn_implementation is not None:
                model.set_attn_implementation(attn_implementation)
        else:
            checkpoint, fields = open_pretrained(pretrained_model_name_or_path, ema, arguments, target)
            model = cls.from_checkpoint(
                checkpoint,
                fields,
                config=target,
                distillation=distillation,
                dtype=dtype or torch_dtype,
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
            )
        model.set_name(pretrained_model_name_or_path)
        apply_device_map(model, device if device_map is None else device_map)
        return (model, model.load_report.to_dict()) if output_loading_info else model

    @classmethod
    def _from_state_dict(
        cls, state: Mapping[str, Tensor], config: ViTConfig | None, name: str | Path | None, arguments: dict[str, Any]
    ) -> Self:
        """Creates a model with the tensors of a state dict, in evaluation mode."""
        hub, fields = loading_arguments(arguments)
        if config is None:
            if name is None:
                raise UserError("There is a state_dict without a configuration", "pass config")
            config = cls.config_class.from_pretrained(name, **hub)
        init_arguments = {name: value for name, value in fields.items() if name in cls._init_arguments}
        overrides = {name: value for name, value in fields.items() if name not in cls._init_arguments}
        model = cls(config.override(overrides).as_class(cls.config_class), **init_arguments)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            problem = str(error).partition("\n\t")[2].partition("\n")[0].rstrip(". ")
            raise CheckpointError(f"The state_dict does not fit the model: {problem}", "pass that of the same class") from error
        return model.eval()

    def set_name(self, name: str | Path | None) -> None:
        """Keeps the name that the model was loaded by, for model cards and adapters.

        Example:
            >>> model.set_name("me/digits")
            >>> model.name_or_path, model.config.name_or_path
            ('me/digits', 'me/digits')
        """
        self.name_or_path = "" if name is None else str(name)
        self.config.set_name(self.name_or_path)

    def to(self, *args: Any, **options: Any) -> Self:
        """Moves or casts the weights, as ``torch.nn.Module.to``.

        Raises:
            CheckpointError: the weights were never loaded: they are on the meta device.

        Example:
            >>> model.to(torch.float64).dtype
            torch.float64
        """
        try:
            return super().to(*args, **options)
        except NotImplementedError as error:
            raise CheckpointError(
                "The model has weights on the meta device, which were never loaded",
                "load it by from_pretrained with device_map, or by load_state_dict, which takes the names of every checkpoint",
            ) from error

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dict, as ``torch.nn.Module.load_state_dict``, with the tensor names of any readable checkpoint.

        Weights on the meta device, as within ``accelerate.init_empty_weights``, are replaced by those of the state dict.

        Args:
            state_dict: name -> tensor.
            strict: refuse missing and unexpected tensors.
            assign: use the tensors themselves instead of copying them.

        Returns:
            A named tuple with the names of ``missing_keys`` and ``unexpected_keys``.

        Example:
            >>> model.load_state_dict({f"module.{name}": tensor for name, tensor in model.state_dict().items()})
            <All keys matched successfully>
        """
        on_meta = any(parameter.is_meta for parameter in self.parameters())
        return super().load_state_dict(state_dict, strict, assign or on_meta)

    @classmethod
    def _from_config(cls, config: Any, *, attn_implementation: AttentionName | None = None, **options: Any) -> Self:
        """Creates a newly initialized model of a copy of the configuration, as transformers does."""
        dtype = _resolve_dtype(options.pop("dtype", None) or options.pop("torch_dtype", None))
        model = cls(copy.deepcopy(as_config(config)), **options)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model.to(dtype)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        fields: Mapping[str, Any],
        *,
        config: ViTConfig | None = None,
        distillation: DistillationChange | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: AttentionName | None = None,
        ignore_mismatched_sizes: bool = True,
        quiet: bool = False,
    ) -> Self:
        """Loads a model from an opened checkpoint. All shapes are checked before memory is allocated.

        Args:
            checkpoint: opened checkpoint.
            fields: arguments of the constructor, and configuration fields that override those of the checkpoint.
            config: see :meth:`from_pretrained`.
            distillation: see :meth:`from_pretrained`.
            dtype: see :meth:`from_pretrained`.
            attn_implementation: see :meth:`from_pretrained`.
            ignore_mismatched_sizes: see :meth:`from_pretrained`.
            quiet: do not log ``load_report``.

        Example:
            >>> from deit.checkpoints.reading import open_checkpoint
            >>> model.save_pretrained(folder)
            >>> checkpoint = open_checkpoint(Path(folder))
            >>> deit.DeiTForImageClassification.from_checkpoint(checkpoint, {}, distillation="drop").load_report.ignored
            ('distillation_classifier.bias', 'distillation_classifier.weight')
        """
        weights_dtype = checkpoint.dtype if dtype == "auto" else _resolve_dtype(dtype)
        init_arguments = {name: value for name, value in fields.items() if name in cls._init_arguments}
        overrides = {name: value for name, value in fields.items() if name not in cls._init_arguments}
        target = (config or checkpoint.config).override(overrides).as_class(cls.config_class)
        with torch.device("meta"):
            model = cls(target, **init_arguments)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.canonical_state().items()}
        adapted = adapt_checkpoint(checkpoint, target, shapes, distillation)
        report = adapted.report
        if not ignore_mismatched_sizes and report.mismatched:
            raise UserError(
                f"The heads have another size in the checkpoint: {report}",
                "pass ignore_mismatched_sizes=True to initialize new heads",
            )
        tensors = adapted.tensors(weights_dtype)
        for name in report.new:
            tensors[name] = torch.zeros(shapes[name], dtype=weights_dtype)
            if name != MASK_TOKEN:  # zero, as in transformers, so that a file and its masked outputs are always the same
                _init_tensor(name, tensors[name], target, None)
        model.load_state_dict({model._full_name(name): tensor for name, tensor in tensors.items()}, assign=True)
        model.load_report = report
        if report and not quiet:
            logger.warning("%s from %s: %s", cls.__name__, checkpoint.path, report)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model.eval()

    def canonical_state(self) -> dict[str, Tensor]:
        """Returns the state dict under canonical names: without the prefix of the base model.

        Checkpoints are read and written with these names.

        Example:
            >>> list(model.canonical_state())[:2]
            ['embeddings.cls_token', 'embeddings.distillation_token']
        """
        return self._canonical(self.state_dict())

    def _canonical(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state dict under canonical names. It may have the names of other projects, too."""
        renamed = dict(state)
        missing: list[str] = []
        rename_state(self, renamed, "", {}, True, missing)
        if missing:
            raise CheckpointError(f"The state_dict has only a part of {missing[0]}", "pass all tensors of the model")
        return {canonical_name(name, self.base_model_prefix): tensor for name, tensor in renamed.items()}

    def _full_name(self, canonical: str) -> str:
        """Returns the name in the state dict of a tensor with this canonical name."""
        return full_name(canonical, "" if self.base_model is self else self.base_model_prefix)

    def _as_requested(self, output: Output, return_dict: bool | None) -> Output:
        """Returns the output; the tuple of its values if ``return_dict``, or else the configuration, is False."""
        as_mapping = self.config.return_dict if return_dict is None else return_dict
        return output if as_mapping else output.to_tuple()  # type: ignore[return-value]


def open_pretrained(
    name: str | Path | None, ema: bool, arguments: dict[str, Any], config: ViTConfig | None = None
) -> tuple[Checkpoint, dict[str, Any]]:
    """Opens a checkpoint, downloading it from the hub if necessary.

    Args:
        name: see :meth:`PreTrainedModel.from_pretrained`.
        ema: see :meth:`PreTrainedModel.from_pretrained`.
        arguments: see :meth:`PreTrainedModel.from_pretrained`.
        config: configuration known to the caller, for files of weights that do not determine all fields.

    Returns:
        The checkpoint, and the arguments that are neither arguments of the hub nor ignored.
    """
    if name is None:
        raise UserError("There is no name of a model", "pass one, or config and state_dict")
    known = {} if config is None else {field: getattr(config, field) for field in AMBIGUOUS_FIELDS}
    hub, fields = loading_arguments(arguments)
    return open_checkpoint(fetch(name, **hub), ema=ema, fields={**known, **fields}), fields


def loading_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits further arguments of ``from_pretrained`` into those of :func:`deit.hub.fetch`, and fields of the configuration.

    Raises:
        UserError: argument of transformers that is not supported.
    """
    return hub_arguments(drop_arguments(refuse_arguments(arguments, UNSUPPORTED_ARGUMENTS), IGNORED_ARGUMENTS))


def _init_tensor(name: str, tensor: Tensor, config: ViTConfig, generator: torch.Generator | None) -> None:
    """Initializes a tensor in place, according to its name; see :meth:`PreTrainedModel.init_weights`."""
    if name.endswith(".bias"):
        tensor.zero_()
    elif "layernorm" in name:
        tensor.fill_(1.0)
    elif name.endswith(".layer_scale"):
        assert config.layer_scale is not None
        tensor.fill_(config.layer_scale)
    else:
        nn.init.trunc_normal_(tensor, std=config.initializer_range, generator=generator)


def _resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype or torch.float32
    if resolved not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UserError(f"{dtype!r} is not a floating-point dtype", "use float32, bfloat16, float16 or auto")
    return resolved


def apply_device_map(model: Model, device_map: DeviceMap) -> Model:
    """Moves a model to the device that ``device_map`` names; None means torch's default device, except the meta device."""
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UserError("The device_map splits the model", "pass one device; the model fits on one")
        return apply_device_map(model, device_map[""])
    if device_map is None:
        default = torch.get_default_device()
        return model if default.type == "meta" else model.to(default)
    return model.to(choose_device(device_map if isinstance(device_map, str) else str(torch.device(device_map))))
