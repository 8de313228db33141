"""What programs for transformers, PEFT, Accelerate and timm call on a model, beyond what this package itself uses.

In the examples, ``config`` is a small :class:`deit.DeiTConfig` with five classes and ``model`` is a
:class:`deit.DeiTForImageClassificationWithTeacher` with this configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deit.config import ViTConfig
from deit.errors import UserError


class CompatibilityMixin(nn.Module):
    """Names that other libraries expect of a model.

    Example:
        >>> model.can_generate(), model.get_output_embeddings(), model.is_quantized
        (False, None, False)
    """

    config: ViTConfig
    name_or_path: str
    base_model_prefix: ClassVar[str]

    supports_gradient_checkpointing: ClassVar[bool] = True
    # Modules that FSDP and Accelerate do not split.
    _no_split_modules: ClassVar[list[str]] = ["Embeddings", "Block"]
    is_parallelizable: ClassVar[bool] = False
    is_quantized: ClassVar[bool] = False
    _supports_sdpa: ClassVar[bool] = True
    _supports_flash_attn: ClassVar[bool] = False
    _supports_flex_attn: ClassVar[bool] = False
    _is_stateful: ClassVar[bool] = False
    _keep_in_fp32_modules: ClassVar[frozenset[str]] = frozenset()
    _keep_in_fp32_modules_strict: ClassVar[frozenset[str]] = frozenset()
    _keys_to_ignore_on_save: ClassVar[None] = None
    _keys_to_ignore_on_load_missing: ClassVar[None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[None] = None
    _skip_keys_device_placement: ClassVar[None] = None
    _tied_weights_keys: ClassVar[None] = None
    all_tied_weights_keys: ClassVar[dict[str, str]] = {}
    tp_plan: ClassVar[dict[str, str]] = {}
    pp_plan: ClassVar[dict[str, str]] = {}

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether ``forward`` takes ``num_items_in_batch``. transformers' Trainer reads this when it is created."""
        connect_trainer()
        return False

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Input of the right shape: one black image."""
        device = next(self.parameters()).device
        return {"pixel_values": Tensor(1, self.config.num_channels, *self.config.image_hw).to(device).zero_()}

    @classmethod
    def can_generate(cls) -> bool:
        """Returns False: the model generates no text.

        Example:
            >>> deit.DeiTModel.can_generate()
            False
        """
        return False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Returns the patch embedding.

        Example:
            >>> model.get_input_embeddings().projection.weight.shape
            torch.Size([48, 3, 16, 16])
        """
        module: nn.Module = self._embeddings.patch_embeddings
        return module

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the patch embedding.

        Example:
            >>> model.set_input_embeddings(model.get_input_embeddings())
        """
        self._embeddings.patch_embeddings = value

    def get_output_embeddings(self) -> None:
        """Returns None: the model predicts no tokens.

        Example:
            >>> model.get_output_embeddings() is None
            True
        """

    def enable_input_require_grads(self) -> None:
        """Makes the output of the patch embedding require gradients.

        Reentrant checkpointing of the layers needs this if the patch embedding is frozen, as with adapters.

        Example:
            >>> model.enable_input_require_grads()
            >>> model.disable_input_require_grads()
        """
        self.disable_input_require_grads()
        embeddings = self.get_input_embeddings()
        self._require_grads_hook: RemovableHandle | None = embeddings.register_forward_hook(_require_grads)

    def disable_input_require_grads(self) -> None:
        """Reverts :meth:`enable_input_require_grads`.

        Example:
            >>> model.disable_input_require_grads()
        """
        if (hook := getattr(self, "_require_grads_hook", None)) is not None:
            hook.remove()
        self._require_grads_hook = None

    def tie_weights(self, *_: object, **__: object) -> None:
        """Does nothing: no weights are tied.

        Example:
            >>> model.tie_weights()
        """

    def post_init(self) -> None:
        """Does nothing: weights are initialized when the model is created.

        Example:
            >>> model.post_init()
        """

    def get_parameter_or_buffer(self, target: str) -> Tensor:
        """Returns the parameter or buffer with a name.

        Example:
            >>> model.get_parameter_or_buffer("cls_classifier.bias").shape
            torch.Size([5])
        """
        module, _, name = target.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(module), name)
        return tensor

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Returns the size of the weights in bytes.

        Args:
            return_buffers: also count buffers.

        Example:
            >>> model.get_memory_footprint() == 4 * model.num_parameters()
            True
        """
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that need no weight decay, for the optimizers of timm and of the authors' code.

        Example:
            >>> sorted(model.no_weight_decay())[0]
            'deit.embeddings.cls_token'
        """
        tokens = ("cls_token", "distillation_token", "mask_token", "position_embeddings")
        return {name for name, _ in self.named_parameters() if name.endswith(tokens)}

    @property
    def _embeddings(self) -> Any:
        return getattr(self, self.base_model_prefix, self).embeddings


def _require_grads(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Hook of :meth:`CompatibilityMixin.enable_input_require_grads`; a function of the module, so that models are pickled."""
    return output.requires_grad_(True)


def refuse_arguments(arguments: dict[str, Any], unsupported: dict[str, str]) -> dict[str, Any]:
    """Returns the arguments without those that are not supported, which may only be None, False or empty.

    Args:
        arguments: keyword arguments of a caller.
        unsupported: name -> remedy.

    Raises:
        UserError: an unsupported argument has a value.
    """
    for name in arguments.keys() & unsupported.keys():
        if arguments[name]:
            raise UserError(f"{name} is not supported", unsupported[name])
    return {name: value for name, value in arguments.items() if name not in unsupported}


def drop_arguments(arguments: dict[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    """Returns the arguments without those that have no effect."""
    return {name: value for name, value in arguments.items() if name not in ignored}


def connect_trainer() -> None:
    """Makes transformers' Trainer save models of this package by ``save_pretrained``, as it saves its own.

    Trainer calls ``save_pretrained`` only of subclasses of its own base class. Of all other models it saves the state dict, and
    neither configuration nor class names. Nothing happens if Trainer has not been imported.
    """
    trainer_class = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    save = getattr(trainer_class, "_save", None)
    if trainer_class is None or save is None or hasattr(save, "saves_deit"):
        return

    def _save(trainer: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if not isinstance(model, CompatibilityMixin):
            save(trainer, output_dir, state_dict)
            return
        save(trainer, output_dir, {})  # all other files, and an empty file of weights
        if trainer.args.should_save:
            directory = Path(trainer.args.output_dir if output_dir is None else output_dir)
            model.save_pretrained(  # type: ignore[operator]
                directory,
                state_dict=state_dict,
                safe_serialization=getattr(trainer.args, "save_safetensors", True),
            )

    _save.saves_deit = True  # type: ignore[attr-defined]
    trainer_class._save = _save
