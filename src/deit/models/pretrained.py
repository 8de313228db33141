"""What all public models share: their configuration, fresh weights, and the way from and to disk and hub.

In the examples here and in ``modeling``, ``config`` is a small :class:`deit.DeiTConfig` with five classes, ``model`` a
:class:`deit.DeiTForImageClassificationWithTeacher` of it, and ``folder`` an empty directory.
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
from deit.config import ViTConfig
from deit.errors import UserError
from deit.hub import fetch, hub_arguments
from deit.models.outputs import ModelOutput
from deit.system.devices import choose_device

logger = logging.getLogger("deit")

# Arguments of transformers that ask for what is always so here, or that only its own classes can do.
NOTHING_TO_DO = frozenset({"low_cpu_mem_usage", "use_safetensors", "trust_remote_code"})
# What a file of weights alone may leave open.
HINTS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "num_labels")
NOTHING_TO_SAVE = frozenset({"max_shard_size", "save_function"})
AttentionName = Literal["sdpa", "eager"]
DeviceMap = str | int | torch.device | Mapping[str, Any] | None
Output = TypeVar("Output", bound=ModelOutput)
Model = TypeVar("Model", bound=nn.Module)


class Saves(Protocol):
    """What writes itself into a directory, as image processors do."""

    def save_pretrained(self, directory: str) -> object:
        """Write it."""


class PreTrainedModel(nn.Module):
    """Base of the public models.

    Example:
        >>> model.device, model.dtype, model.base_model is model.deit
        (device(type='cpu'), torch.float32, True)
    """

    config_class: ClassVar[type[ViTConfig]] = ViTConfig
    base_model_prefix: ClassVar[str] = "vit"
    main_input_name: ClassVar[str] = "pixel_values"
    supports_gradient_checkpointing: ClassVar[bool] = True
    # The modules that FSDP and Accelerate wrap whole.
    _no_split_modules: ClassVar[list[str]] = ["Embeddings", "Block"]
    # The constructor's arguments besides the configuration.
    _options: ClassVar[frozenset[str]] = frozenset()

    config: ViTConfig
    load_report: LoadReport
    num_labels: int

    def __init__(self, config: ViTConfig) -> None:
        if type(config) is not self.config_class:
            raise UserError(f"{type(self).__name__} takes a {self.config_class.__name__}", f"not a {type(config).__name__}")
        super().__init__()
        self.config = config
        self.load_report = LoadReport()
        self.num_labels = config.num_labels

    @property
    def base_model(self) -> Any:
        """The transformer without a head: a part of this model, or itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:  # noqa: ARG002
        """How many values the weights have.

        Args:
            only_trainable: leave out what is frozen.
            exclude_embeddings: leave out tables of embeddings, of which a vision transformer has none; transformers' trainer
                asks so.

        Example:
            >>> from deit.config import variant_config
            >>> with torch.device("meta"):
            ...     deit.ViTForImageClassification(variant_config("deit-tiny-patch16-224")).num_parameters()
            5717416
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def materialize(self) -> None:
        """Give weights that were made on the meta device their memory, on the default device, and their first values.

        Every model makes its parts on the meta device, so that only the outermost one draws weights, and each once.

        Example:
            >>> with torch.device("meta"):
            ...     model = deit.DeiTForImageClassification(config)
            >>> model.materialize()
            >>> model.device
            device(type='cpu')
        """
        self.to_empty(device=torch.get_default_device())
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None, names: Collection[str] | None = None) -> None:
        """Fresh weights: truncated normal for weights, tokens and positions, zero biases, unit norms (section 3).

        Args:
            generator: where the draws come from; torch's default one when None.
            names: canonical names of the tensors to make anew; all when None.

        Example:
            >>> model.init_weights(torch.Generator().manual_seed(0))
            >>> model.cls_classifier.bias.tolist()
            [0.0, 0.0, 0.0, 0.0, 0.0]
        """
        for name, parameter in self.named_parameters():
            if names is None or name.removeprefix(f"{self.base_model_prefix}.") in names:
                _init(name, parameter, self.config, generator)

    def without_layer_scale(self) -> Self:
        """The same model with the factors of layer scale multiplied into its weights, so that every program can open it.

        Returns:
            A copy; the model itself where it has no such factors.

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
        """Recompute blocks in the backward pass in place of keeping their activations: less memory, up to a third more work.

        Args:
            activation_checkpointing_kwargs: of ``torch.utils.checkpoint.checkpoint``; ``use_reentrant`` is False by default.
            every_n_layers: of how many blocks one is recomputed.
            offload: keep what is left in the host's memory; not offered here.

        Raises:
            UserError: ``offload``, or no whole number of layers.

        Example:
            >>> model.activation_checkpointing_enable(every_n_layers=2)
            >>> model.is_gradient_checkpointing
            True
        """
        if offload or every_n_layers < 1:
            raise UserError("Blocks are recomputed every 1 or more layers, without offloading", "leave offload out")
        self.base_model.checkpointing = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        self.base_model.checkpointed_layers = range(0, self.config.num_hidden_layers, every_n_layers)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """The older name of :meth:`activation_checkpointing_enable`.

        Example:
            >>> model.gradient_checkpointing_enable()
            >>> model.is_gradient_checkpointing
            True
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again.

        Example:
            >>> model.gradient_checkpointing_disable()
            >>> model.is_gradient_checkpointing
            False
        """
        self.base_model.checkpointed_layers = range(0)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return len(self.base_model.checkpointed_layers) > 0

    def set_attn_implementation(self, name: AttentionName) -> None:
        """Choose how attention is computed. A call that asks for attentions takes ``eager`` by itself.

        Args:
            name: ``sdpa`` fused, ``eager`` step by step.

        Raises:
            UserError: no such attention.

        Example:
            >>> model.set_attn_implementation("eager")
        """
        if name not in ("sdpa", "eager"):
            raise UserError(f"There is no attention called {name!r}", "take sdpa (fused) or eager (explicit)")
        self.base_model.explicit_attention = name == "eager"

    def prune_heads(self, heads: Mapping[int, list[int]]) -> None:
        """Take attention heads out for good; the configuration keeps the record.

        Args:
            heads: layer -> numbers of heads, both from 0, as the model was made.

        Raises:
            ConfigError: no such layer or head, or none would be left.

        Example:
            >>> model.prune_heads({0: [1]})
            >>> [layer.attention.heads for layer in model.deit.layers]
            [[0, 2], [0, 1, 2]]
        """
        gone = {int(layer): {int(head) for head in some} for layer, some in heads.items()}
        known = self.config.pruned_heads
        self.config.pruned_heads = {
            layer: sorted({*known.get(layer, ()), *gone.get(layer, ())}) for layer in sorted(known.keys() | gone.keys())
        }
        for layer, some in gone.items():
            self.base_model.layers[layer].attention.prune(some)

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **hub: Any,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors`` as transformers reads them.

        Args:
            directory: made where it is missing.
            is_main_process: False writes nothing; for the other processes of distributed training.
            state_dict: to write in place of the model's own, under the model's own names.
            push_to_hub: send it too; ``hub`` holds the arguments of :meth:`push_to_hub`, first of all ``repo_id``.
            safe_serialization: always so here. ``save_function`` and ``max_shard_size`` of transformers are taken too, and have
                nothing to do: the file is one.

        Raises:
            UserError: an argument of an unknown name, or a push without ``repo_id``.

        Example:
            >>> model.save_pretrained(folder)
            >>> type(model).from_pretrained(folder).num_parameters() == model.num_parameters()
            True
        """
        hub = {name: value for name, value in hub.items() if name not in NOTHING_TO_SAVE}
        if not safe_serialization:
            raise UserError("Weights are saved as safetensors alone", "deit convert writes .pth")
        if push_to_hub and "repo_id" not in hub:
            raise UserError("There is no repo_id to push to", "pass repo_id='owner/name'")
        if hub and not push_to_hub:
            raise UserError(
                f"save_pretrained has no argument {min(hub)!r}", "remove it; those of push_to_hub go with push_to_hub=True"
            )
        if is_main_process:
            saved, state = self, self.state_dict() if state_dict is None else state_dict
            if self.config.layer_scale is not None:  # which no other program knows
                saved = copy.deepcopy(self)
                saved.load_state_dict(state)
                saved = saved.without_layer_scale()
                state = saved.state_dict()
            write_transformers(Path(directory), saved.config, self._canonical(state), type(self).__name__)
        if is_main_process and push_to_hub:
            publishing.push_to_hub(Path(directory), **hub)

    def push_to_hub(self, repo_id: str, processor: Saves | None = None, **arguments: Any) -> str:
        """Send the model with a model card to the hub.

        The card of a trained model, which tells of data, recipe and metrics, lies in its run: ``deit model push RUN REPO``.

        Args:
            repo_id: ``owner/name``.
            processor: to be sent with it.
            arguments: as in :func:`deit.checkpoints.publishing.push_to_hub`.

        Returns:
            The address of what was made.

        Example (with a hub that takes everything):
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
    def from_pretrained(cls, name: str | Path, *, output_loading_info: Literal[False] = False, **arguments: Any) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, output_loading_info: Literal[True], **arguments: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: ViTConfig | None = None,
        ema: bool = False,
        distillation: DistillationChange | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: AttentionName = "sdpa",
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = True,
        device_map: DeviceMap = None,
        **arguments: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """A model with saved weights, in evaluation mode.

        Reads what transformers, timm, the authors' code and this package write, and finds out which of them it is.

        What the file cannot give is made anew, and said: heads for another number of classes, a pooler. Position embeddings
        are resampled where ``image_size`` asks for another grid. A tensor of the transformer itself that is missing or left
        over is an error.

        Args:
            name: a directory, a file, a name on the hub, or a variant's name.
            config: the shape to build in place of the stored one.
            ema: take the moving average of the weights, where a training checkpoint holds both.
            distillation: ``drop`` takes a distilled checkpoint into a plain class, with its class head; ``new`` takes a plain
                one into a distilled class, with a fresh token and head. Either is an error unless it is asked for; only
                ``DeiTForImageClassification`` opens a distilled checkpoint without, with a new head, as transformers does.
            dtype: of the weights: a torch dtype, its name, or ``auto`` for the file's own; float32 when None.
            torch_dtype: the older name of ``dtype``.
            attn_implementation: see :meth:`set_attn_implementation`.
            output_loading_info: answer ``(model, info)``, where ``info`` is ``model.load_report`` in the words of transformers.
            ignore_mismatched_sizes: False makes heads of another size an error.
            device_map: where the whole model goes: a device, ``auto``, or ``{"": device}``; it is never split.
            arguments: those of the constructor; fields of the configuration (``num_labels``, ``id2label``, ``image_size``);
                and where on the hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``. Those of transformers that
                have nothing to do here are taken too: ``low_cpu_mem_usage``, ``use_safetensors``, ``trust_remote_code``.

        Raises:
            CheckpointError: a file is missing or damaged, or tensors do not fit.
            ConfigError: the configuration cannot be built.
            UserError: heads of another size with ``ignore_mismatched_sizes=False``, or no such type, attention or device.

        Example:
            >>> model.save_pretrained(folder)
            >>> larger = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder, num_labels=2, image_size=(64, 32))
            >>> list(larger.load_report.resized), larger.load_report.new[0]
            (['embeddings.position_embeddings'], 'cls_classifier.weight')
        """
        checkpoint, fields = open_named(name, ema, arguments, config)
        model = cls.from_checkpoint(
            checkpoint,
            fields,
            config=config,
            distillation=distillation,
            dtype=dtype or torch_dtype,
            attn_implementation=attn_implementation,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        to_device(model, device_map)
        return (model, model.load_report.to_dict()) if output_loading_info else model

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        fields: Mapping[str, Any],
        *,
        config: ViTConfig | None = None,
        distillation: DistillationChange | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: AttentionName = "sdpa",
        ignore_mismatched_sizes: bool = True,
        quiet: bool = False,
    ) -> Self:
        """As :meth:`from_pretrained`, of a checkpoint that is open. No memory is taken before all shapes are known to fit.

        Args:
            quiet: do not log the report, which ``load_report`` holds all the same.

        Example:
            >>> from deit.checkpoints.reading import open_checkpoint
            >>> model.save_pretrained(folder)
            >>> checkpoint = open_checkpoint(Path(folder))
            >>> deit.DeiTForImageClassification.from_checkpoint(checkpoint, {}, distillation="drop").load_report.ignored
            ('distillation_classifier.bias', 'distillation_classifier.weight')
        """
        kept = _dtype(dtype, checkpoint)
        options = {name: value for name, value in fields.items() if name in cls._options}
        fields = {name: value for name, value in fields.items() if name not in cls._options}
        target = (config or checkpoint.config).override(fields).as_class(cls.config_class)
        with torch.device("meta"):
            model = cls(target, **options)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.canonical_state().items()}
        plan = adapt_checkpoint(checkpoint, target, wanted, distillation)
        if not ignore_mismatched_sizes and plan.report.mismatched:
            raise UserError(f"Heads of another size: {plan.report}", "pass ignore_mismatched_sizes=True for new ones")
        tensors = plan.tensors(kept)
        for name in plan.report.new:
            tensors[name] = torch.empty(wanted[name], dtype=kept)
            _init(name, tensors[name], target, None)
        model.load_state_dict({model._own_name(name): tensor for name, tensor in tensors.items()}, assign=True)
        model.load_report = plan.report
        if plan.report and not quiet:
            logger.warning("%s from %s: %s", cls.__name__, checkpoint.path, plan.report)
        model.set_attn_implementation(attn_implementation)
        return model.eval()

    def canonical_state(self) -> dict[str, Tensor]:
        """The tensors without the trunk's prefix, by the names that checkpoints are read and written with.

        Example:
            >>> list(model.canonical_state())[:2]
            ['embeddings.cls_token', 'embeddings.distillation_token']
        """
        return self._canonical(self.state_dict())

    def _canonical(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names -> those without the trunk's prefix, by which checkpoints are read and written."""
        return {name.removeprefix(f"{self.base_model_prefix}."): tensor for name, tensor in state.items()}

    def _own_name(self, canonical: str) -> str:
        trunk = canonical.startswith(("embeddings.", "layers.", "layernorm.", "pooler."))
        return f"{self.base_model_prefix}.{canonical}" if trunk and self.base_model is not self else canonical

    def _answer(self, output: Output, return_dict: bool | None) -> Output:
        """The output, or the tuple of its parts for those who ask for that."""
        as_mapping = self.config.return_dict if return_dict is None else return_dict
        return output if as_mapping else output.to_tuple()  # type: ignore[return-value]


def open_named(
    name: str | Path, ema: bool, arguments: dict[str, Any], config: ViTConfig | None = None
) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint by path or name, and those of the arguments that are the configuration's.

    Args:
        config: what the caller knows of the shape, where that is no part of the arguments.
    """
    known = {} if config is None else {field: getattr(config, field) for field in HINTS}
    options, fields = hub_arguments({name: value for name, value in arguments.items() if name not in NOTHING_TO_DO})
    return open_checkpoint(fetch(name, **options), ema=ema, fields={**known, **fields}), fields


def _init(name: str, tensor: Tensor, config: ViTConfig, generator: torch.Generator | None) -> None:
    if name.endswith(".bias"):
        tensor.zero_()
    elif "layernorm" in name:
        tensor.fill_(1.0)
    elif name.endswith(".layer_scale"):
        assert config.layer_scale is not None
        tensor.fill_(config.layer_scale)
    else:
        nn.init.trunc_normal_(tensor, std=config.initializer_range, generator=generator)


def _dtype(asked: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    if asked == "auto":
        return checkpoint.dtype
    found = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked or torch.float32
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UserError(f"{asked!r} is no type of floating-point numbers", "take float32, bfloat16, float16 or auto")
    return found


def to_device(model: Model, device_map: DeviceMap) -> Model:
    """The model, moved where ``device_map`` says; None leaves it."""
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UserError("The device_map splits the model", "pass one device; a DeiT fits on one")
        return to_device(model, device_map[""])
    if device_map is None:
        return model
    return model.to(choose_device(device_map if isinstance(device_map, str) else str(torch.device(device_map))))
