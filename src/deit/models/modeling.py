"""The whole model.

A vision transformer (Dosovitskiy et al., arXiv 2010.11929) as DeiT trains it (Touvron et al., arXiv 2012.12877). Section 3 of
the DeiT paper recalls the transformer. Section 4 adds the distillation token, which is at index 1 and learns from the teacher.

Shapes: B images, C channels, N tokens, P patches, D width, H heads of a layer, E width of a head, L layers, K classes. The
first tokens are [CLS] and, in distilled models, the distillation token; the P patches follow, row by row.

After initialization the model draws no random numbers, except for dropout if the configuration sets it. Stochastic depth is
passed in as a tensor of factors, so that equal inputs have equal outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deit.checkpoints.adapting import DistillationChange
from deit.checkpoints.position_embeddings import resample_position_embeddings
from deit.checkpoints.reading import Checkpoint
from deit.config import DeiTConfig, ViTConfig, as_config
from deit.errors import CheckpointError, UserError
from deit.models.cpu_attention import matmul_attention, prefers_matmul_attention
from deit.models.losses import Distillation, as_targets, labels_loss, training_loss
from deit.models.outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
    ImageClassifierWithTeacherOutput,
    MaskedImageModelingOutput,
)
from deit.models.pretrained import AttentionName, DeviceMap, PreTrainedModel, apply_device_map, open_pretrained

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class PatchEmbed(nn.Module):
    """Patch embedding: a linear map of the pixels of each patch, computed as a convolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_hw, stride=config.patch_hw)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps images (B, C, height, width) to tokens (B, P, D)."""
        x: Tensor = self.projection(pixel_values)  # (B, D, rows, columns)
        return x.flatten(2).transpose(1, 2)  # (B, P, D)


class Embeddings(nn.Module):
    """Patch embedding, prefix tokens and position embeddings (paper, sections 3 and 4)."""

    def __init__(self, config: ViTConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if isinstance(config, DeiTConfig):
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = PatchEmbed(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, bool_masked_pos: Tensor | None = None
    ) -> Tensor:
        """Maps images (B, C, height, width) and the mask of patches (B, P) to tokens (B, N, D)."""
        positions = self._position_embeddings(pixel_values, interpolate_pos_encoding)  # (1, N, D)
        patches = self.patch_embeddings(pixel_values)  # (B, P, D)
        if bool_masked_pos is not None:
            patches = self._mask(patches, bool_masked_pos)
        prefix = [self.cls_token]
        if isinstance(self.config, DeiTConfig):
            prefix.append(self.distillation_token)
        tokens = [token.expand(patches.shape[0], -1, -1) for token in prefix]  # (B, 1, D) each
        x: Tensor = self.dropout(torch.cat([*tokens, patches], dim=1) + positions)  # (B, N, D)
        return x

    def _mask(self, patches: Tensor, mask: Tensor) -> Tensor:
        """Replaces the patches where ``mask`` (B, P) is true by the mask token."""
        if not hasattr(self, "mask_token"):
            raise UserError("This model has no mask token", "create it with use_mask_token=True, or omit bool_masked_pos")
        if mask.shape != patches.shape[:2]:
            expected = " x ".join(map(str, patches.shape[:2]))
            raise UserError(f"bool_masked_pos has shape {tuple(mask.shape)}", f"pass images x patches, {expected}")
        return torch.where(mask.bool()[..., None], self.mask_token.to(patches.dtype), patches)

    def _position_embeddings(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        """Returns the position embeddings (1, N, D) for the size of the images, after checking it."""
        config = self.config
        if pixel_values.ndim != 4:
            raise UserError(f"The images have shape {tuple(pixel_values.shape)}", "pass images x channels x height x width")
        channels, height, width = pixel_values.shape[1:]
        if channels != config.num_channels:
            raise UserError(f"The images have {channels} channels", f"this model takes {config.num_channels}")
        if (height, width) == config.image_hw:
            return self.position_embeddings
        if not interpolate:
            expected = "{} x {}".format(*config.image_hw)
            raise UserError(
                f"The images are {height} x {width}, this model takes {expected}",
                "resize them, or pass interpolate_pos_encoding=True",
            )
        grid = height // config.patch_hw[0], width // config.patch_hw[1]
        if not all(grid):
            raise UserError(f"The images are {height} x {width}, smaller than one patch", "enlarge them")
        return resample_position_embeddings(self.position_embeddings, config.PREFIX_TOKENS, config.grid, grid)


class Attention(nn.Module):
    """Multi-head self-attention (paper, section 3), with queries, keys and values computed by one linear layer.

    Attributes:
        heads: indices of the heads that are not pruned.
        head_dim: width E of a head.
    """

    def __init__(self, config: ViTConfig, pruned_heads: Sequence[int] = ()) -> None:
        super().__init__()
        self.heads = [head for head in range(config.num_attention_heads) if head not in pruned_heads]
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        inner = len(self.heads) * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor, head_mask: Tensor | None = None, eager: bool = False) -> tuple[Tensor, Tensor | None]:
        """Applies attention.

        Args:
            x: tokens (B, N, D).
            head_mask: factor of each head (H).
            eager: compute the attention weights explicitly and return them.

        Returns:
            Tokens (B, N, D), and the attention weights (B, H, N, N) if ``eager``, else None.
        """
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, len(self.heads), self.head_dim)  # (B, N, 3, H, E)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if not (eager or dropout) and prefers_matmul_attention(qkv):
            x = matmul_attention(qkv)  # (B, N, H, E)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, E) each
            if eager:
                scores = q @ k.transpose(2, 3) * self.head_dim**-0.5  # (B, H, N, N)
                weights = F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), dropout)
                x = weights @ v  # (B, H, N, E)
            else:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, H, N, E)
            x = x.transpose(1, 2)  # (B, N, H, E)
        if head_mask is not None:
            factors = head_mask.to(x.dtype)[:, None]  # (H, 1)
            x = x * factors
            weights = None if weights is None else weights * factors[..., None]
        return self.o_proj(x.reshape(batch, tokens, -1)), weights  # (B, N, D)

    @torch.no_grad()
    def prune(self, heads: Collection[int]) -> None:
        """Removes heads, given by their index in the unpruned layer."""
        kept = [position for position, head in enumerate(self.heads) if head not in heads]
        rows = torch.arange(len(self.heads) * self.head_dim).view(len(self.heads), self.head_dim)[kept].flatten()
        rows = rows.to(self.qkv.weight.device)
        old_qkv, old_o_proj = self.qkv, self.o_proj
        self.heads = [self.heads[position] for position in kept]
        width = old_o_proj.out_features
        options: dict[str, Any] = {"device": old_o_proj.weight.device, "dtype": old_o_proj.weight.dtype}
        self.qkv = nn.Linear(width, 3 * len(rows), bias=old_qkv.bias is not None, **options)
        self.qkv.weight.copy_(old_qkv.weight.view(3, -1, width)[:, rows].flatten(0, 1))  # (3 H E, D)
        if old_qkv.bias is not None:
            self.qkv.bias.copy_(old_qkv.bias.view(3, -1)[:, rows].flatten())  # (3 H E)
        self.o_proj = nn.Linear(len(rows), width, **options)
        self.o_proj.weight.copy_(old_o_proj.weight[:, rows])  # (D, H E)
        self.o_proj.bias.copy_(old_o_proj.bias)
        for old, new in ((old_qkv, self.qkv), (old_o_proj, self.o_proj)):
            new.requires_grad_(old.weight.requires_grad)


class Mlp(nn.Module):
    """Feed-forward network (paper, section 3): two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (..., D) to tokens (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Transformer layer: attention and MLP, each with a layer norm before it and a residual connection (pre-norm)."""

    def __init__(self, config: ViTConfig, pruned_heads: Sequence[int] = ()) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, pruned_heads)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        if config.layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.full((2, config.hidden_size), config.layer_scale))

    def forward(
        self,
        x: Tensor,
        residual_scale: Tensor | None = None,
        head_mask: Tensor | None = None,
        eager: bool = False,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """Applies the layer to tokens (B, N, D) and returns tokens (B, N, D), so that forward hooks see a tensor.

        Args:
            x: tokens (B, N, D).
            residual_scale: factor of each residual branch for each image (2, B).
            head_mask: see :meth:`Attention.forward`.
            eager: compute the attention weights explicitly.
            attentions: list to which the attention weights (B, H, N, N) are appended if they are computed explicitly.
        """
        attended, weights = self.attention(self.layernorm_before(x), head_mask, eager)
        if attentions is not None and weights is not None:
            attentions.append(weights)
        x = x + self.scale_residual(self.dropout(attended), residual_scale, 0)
        expanded = self.dropout(self.mlp(self.layernorm_after(x)))
        return x + self.scale_residual(expanded, residual_scale, 1)

    def scale_residual(self, branch: Tensor, residual_scale: Tensor | None, index: int) -> Tensor:
        """Scales residual branch ``index`` (B, N, D) per channel (layer scale) and per image (stochastic depth)."""
        if hasattr(self, "layer_scale"):
            branch = branch * self.layer_scale[index].to(branch.dtype)  # (D) broadcasts over B, N
        return branch if residual_scale is None else branch * residual_scale[index].to(branch.dtype)[:, None, None]

    @torch.no_grad()
    def fold_layer_scale(self) -> None:
        """Multiplies the factors of layer scale into the linear layers before them."""
        for factors, linear in zip(self.layer_scale, (self.attention.o_proj, self.mlp.fc2), strict=True):
            linear.weight.mul_(factors[:, None])
            linear.bias.mul_(factors)
        del self.layer_scale


def select_patches(patches: Tensor, kept: Tensor) -> Tensor:
    """Returns the patches (B, P', D) of (B, P, D) at the positions ``kept`` (B, P')."""
    return patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))


class ViTPreTrainedModel(PreTrainedModel):
    """Base class of the models with a :class:`ViTConfig`.

    Example:
        >>> issubclass(ViTForImageClassification, ViTPreTrainedModel)
        True
    """


class DeiTPreTrainedModel(PreTrainedModel):
    """Base class of the models with a :class:`DeiTConfig`.

    Example:
        >>> issubclass(DeiTForImageClassification, DeiTPreTrainedModel)
        True
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"


class ViTModel(ViTPreTrainedModel):
    """Vision transformer without a head (paper, section 3).

    Args:
        config: its configuration.
        add_pooling_layer: add a linear layer and tanh on [CLS], as in transformers; no published checkpoint has them.
        use_mask_token: add an embedding for masked patches, for masked image modeling.

    Example:
        >>> vit = ViTModel(ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3))
        >>> vit(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
        torch.Size([1, 5, 48])
    """

    _init_arguments = frozenset({"add_pooling_layer", "use_mask_token"})

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        config = self.config  # converted, if it is one of transformers
        width = config.hidden_size
        with torch.device("meta"):
            self.embeddings = Embeddings(config, use_mask_token)
            self.layers = nn.ModuleList(
                Block(config, config.pruned_heads.get(index, ())) for index in range(config.num_hidden_layers)
            )
            self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            if add_pooling_layer:
                self.pooler = nn.ModuleDict({"dense": nn.Linear(width, config.pooler_output_size or width)})
        self.checkpoint_arguments: dict[str, Any] = {"use_reentrant": False}
        self.checkpointed_layers = range(config.num_hidden_layers if config.gradient_checkpointing else 0)
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
        kept_patches: Tensor | None = None,
    ) -> BaseModelOutput:
        """Computes the tokens after the last layer.

        Args:
            pixel_values: (B, C, height, width), normalized, of any floating-point dtype.
            bool_masked_pos: (B, P), true for patches to replace by the mask token.
            head_mask: (H) or (L, H), factor of each attention head: 0 masks it, 1 leaves it unchanged.
            output_attentions: return the attention weights of each layer, computed explicitly. None uses the configuration's
                value.
            output_hidden_states: return the tokens before the first and after each layer. None uses the configuration's value.
            interpolate_pos_encoding: accept images of another size, and resample the position embeddings to it.
            residual_scale: (L, 2, B), factor of each residual branch (attention, MLP) for each image, for stochastic depth.
                None means all ones.
            kept_patches: (B, P') int64, the patches of each image that are processed, for patch dropout. None means all.
            return_dict: False returns a tuple of the values. None uses the configuration's value.

        Raises:
            UserError: images of another size or number of channels, or a mask of another shape.

        Example:
            >>> output = model.deit(torch.zeros(1, 3, 32, 32), output_attentions=True, output_hidden_states=True)
            >>> len(output.hidden_states), output.attentions[0].shape
            (3, torch.Size([1, 3, 6, 6]))
        """
        config = self.config
        return_attentions = config.output_attentions if output_attentions is None else output_attentions
        return_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        eager = return_attentions or config.attn_implementation == "eager"
        masks = self._layer_head_masks(head_mask)
        if isinstance(interpolate_pos_encoding, Tensor) and interpolate_pos_encoding.numel() != 1:
            raise UserError("interpolate_pos_encoding is a tensor, not True or False", "pass labels by keyword")
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        x = self.embeddings(pixel_values, bool(interpolate_pos_encoding), bool_masked_pos)  # (B, N, D)
        if kept_patches is not None:
            prefix, patches = x.split([config.PREFIX_TOKENS, x.shape[1] - config.PREFIX_TOKENS], dim=1)
            x = torch.cat([prefix, select_patches(patches, kept_patches)], dim=1)  # (B, N, D)
        # Only requested outputs are kept: the others are freed as soon as the next layer has read them.
        hidden_states: list[Tensor] = []
        attentions: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if return_states:
                hidden_states.append(x)
            inputs = x, None if residual_scale is None else residual_scale[index], masks[index], eager
            if return_attentions:  # not recomputed: the weights are kept anyway
                x = layer(*inputs, attentions)  # (B, N, D)
            elif index in self.checkpointed_layers and self.training:
                x = checkpoint(layer, *inputs, **self.checkpoint_arguments)  # (B, N, D)
            else:
                x = layer(*inputs)  # (B, N, D)
            del inputs
        if return_states:
            hidden_states.append(x)
        x = self.layernorm(x)
        output = BaseModelOutput(
            last_hidden_state=x,
            pooler_output=torch.tanh(self.pooler["dense"](x[:, 0])) if hasattr(self, "pooler") else None,
            hidden_states=tuple(hidden_states) if return_states else None,
            attentions=tuple(attentions) if return_attentions else None,
        )
        return self._as_requested(output, return_dict)

    def _layer_head_masks(self, head_mask: Tensor | None) -> Sequence[Tensor | None]:
        """Returns the head mask of each layer, (H) each, without pruned heads."""
        layers, heads = len(self.layers), self.config.num_attention_heads
        if head_mask is None:
            return [None] * layers
        if head_mask.shape not in ((heads,), (layers, heads)):
            raise UserError(
                f"head_mask has shape {tuple(head_mask.shape)}", f"pass {heads} heads, or {layers} layers x {heads} heads"
            )
        attentions = [layer.attention for layer in self.layers if isinstance(layer, Block)]
        rows = head_mask.expand(layers, heads)  # (L, H)
        return [row[attention.heads] for row, attention in zip(rows, attentions, strict=True)]


class DeiTModel(DeiTPreTrainedModel, ViTModel):
    """:class:`ViTModel` with a distillation token at index 1 (paper, section 4).

    Example:
        >>> DeiTModel(config)(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape  # [CLS], distillation token, 4 patches
        torch.Size([1, 6, 48])
    """


class PreTrainedClassifier(PreTrainedModel):
    """Base class of the classifiers with one head, on [CLS]."""

    classifier: nn.Linear

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        config = self.config  # converted, if it is one of transformers
        base_class = DeiTModel if self.base_model_prefix == "deit" else ViTModel
        with torch.device("meta"):
            setattr(self, self.base_model_prefix, base_class(config, add_pooling_layer=False))
            self.classifier = _head(config)
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
        kept_patches: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, C, height, width), normalized, of any floating-point dtype.
            labels: if given, the output has a loss; see :func:`deit.models.losses.labels_loss`, which also receives the
                configuration's ``problem_type``.
            interpolate_pos_encoding, head_mask, output_attentions, output_hidden_states, return_dict, residual_scale: see
                :meth:`ViTModel.forward`.
            kept_patches: see :meth:`ViTModel.forward`.

        Example:
            >>> plain = DeiTForImageClassification(config)
            >>> output = plain(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 4]))
            >>> output.logits.shape, output.loss.ndim
            (torch.Size([2, 5]), 0)
        """
        base = self.base_model(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            residual_scale=residual_scale,
            kept_patches=kept_patches,
        )
        logits = self.classifier(base.last_hidden_state[:, 0])  # (B, K)
        output = ImageClassifierOutput(
            loss=None if labels is None else labels_loss(logits, labels, self.config.problem_type),
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return self._as_requested(output, return_dict)


class ViTForImageClassification(PreTrainedClassifier, ViTPreTrainedModel):
    """Vision transformer with one head, on [CLS]: the four published models without distillation.

    Example:
        >>> vit = ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
        >>> ViTForImageClassification(vit)(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    vit: ViTModel


class DeiTForImageClassification(DeiTPreTrainedModel, PreTrainedClassifier):
    """DeiT with one head, on [CLS]; the distillation token has none.

    Example:
        >>> DeiTForImageClassification(config)(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    deit: DeiTModel


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel):
    """DeiT with two heads, on [CLS] and on the distillation token (paper, section 4).

    The prediction is the mean of both heads' logits, as for the released checkpoints; the paper adds the softmax outputs.

    Example:
        >>> output = DeiTForImageClassificationWithTeacher(config)(torch.zeros(2, 3, 32, 32))
        >>> output.logits.shape, output.distillation_logits.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    config: DeiTConfig

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        config = self.config  # converted, if it is one of transformers
        with torch.device("meta"):
            self.deit = DeiTModel(config, add_pooling_layer=False)
            self.cls_classifier = _head(config)
            self.distillation_classifier = _head(config)
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        labels: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
        kept_patches: Tensor | None = None,
    ) -> ImageClassifierWithTeacherOutput:
        """Classifies images.

        Args:
            pixel_values: (B, C, height, width), normalized, of any floating-point dtype.
            labels: if given, the output has a loss. With ``teacher_logits``: class indices (B) or soft targets (B, K), and
                the loss is the paper's (equations 2 and 3), hard or soft according to the configuration's
                ``distillation_type``. Without: the mean of both heads' losses, with labels as in
                :meth:`DeiTForImageClassification.forward`.
            teacher_logits: (B, K), the teacher's logits for the same images.
            interpolate_pos_encoding, head_mask, output_attentions, output_hidden_states, return_dict, residual_scale: see
                :meth:`ViTModel.forward`.
            kept_patches: see :meth:`ViTModel.forward`.

        Raises:
            UserError: labels or teacher logits of another shape, or teacher logits without labels.

        Example:
            >>> images, labels = torch.zeros(2, 3, 32, 32), torch.tensor([0, 4])
            >>> output = model(images, labels=labels, teacher_logits=torch.eye(5)[:2])
            >>> output.loss.ndim, list(output)
            (0, ['loss', 'logits', 'cls_logits', 'distillation_logits'])
        """
        if teacher_logits is not None and labels is None:
            raise UserError("There are teacher_logits but no labels", "pass both for a loss")
        base = self.deit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            residual_scale=residual_scale,
            kept_patches=kept_patches,
        )
        x = base.last_hidden_state  # (B, N, D)
        class_logits, distillation_logits = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])  # (B, K)
        output = ImageClassifierWithTeacherOutput(
            loss=None if labels is None else self._loss(class_logits, distillation_logits, labels, teacher_logits),
            logits=(class_logits + distillation_logits) / 2,
            cls_logits=class_logits,
            distillation_logits=distillation_logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return self._as_requested(output, return_dict)

    def _loss(self, class_logits: Tensor, distillation_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        if teacher_logits is None:
            losses = [labels_loss(logits, labels, self.config.problem_type) for logits in (class_logits, distillation_logits)]
            return (losses[0] + losses[1]) / 2
        settings = Distillation(mode=self.config.distillation_type)
        targets = as_targets(labels.to(class_logits.device), self.num_labels)  # (B, K)
        for name, tensor in (("labels", targets), ("teacher_logits", teacher_logits)):
            if tensor.shape != class_logits.shape:
                expected = tuple(class_logits.shape)
                raise UserError(f"{name} has shape {tuple(tensor.shape)}", f"pass images x classes, {expected}")
        return training_loss(settings, class_logits, targets, distillation_logits, teacher_logits)


class PreTrainedMaskedImageModel(PreTrainedModel):
    """Base class of the models that reconstruct masked patches: a linear decoder maps each token to the pixels of its patch.

    The method is SimMIM (arXiv 2111.09886).

    Raises:
        UserError: ``encoder_stride`` differs from the patch size, so that the decoded pixels would not fill the image.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        config = self.config  # converted, if it is one of transformers
        stride = config.encoder_stride
        if config.patch_hw != (stride, stride):
            raise UserError(f"encoder_stride is {stride}, but the patch size is {config.patch_hw}", "make them equal")
        base_class = DeiTModel if self.base_model_prefix == "deit" else ViTModel
        with torch.device("meta"):
            setattr(self, self.base_model_prefix, base_class(config, add_pooling_layer=False, use_mask_token=True))
            pixels = nn.Conv2d(config.hidden_size, stride**2 * config.num_channels, kernel_size=1)
            self.decoder = nn.Sequential(pixels, nn.PixelShuffle(stride))
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
    ) -> MaskedImageModelingOutput:
        """Reconstructs images.

        Args:
            pixel_values: (B, C, height, width), normalized, of any floating-point dtype.
            bool_masked_pos: (B, P), true for masked patches; if given, the output has a loss.
            interpolate_pos_encoding, head_mask, output_attentions, output_hidden_states, return_dict, residual_scale: see
                :meth:`ViTModel.forward`.

        Raises:
            UserError: images of another size or number of channels, or a mask of another shape.

        Example:
            >>> DeiTForMaskedImageModeling(config)(torch.zeros(1, 3, 32, 32)).loss is None
            True
        """
        stride = self.config.encoder_stride
        if pixel_values.shape[2] % stride or pixel_values.shape[3] % stride:
            height, width = pixel_values.shape[2:]
            raise UserError(f"The images are {height} x {width}", f"both sides must be divisible by {stride}")
        base = self.base_model(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            residual_scale=residual_scale,
        )
        grid = pixel_values.shape[2] // stride, pixel_values.shape[3] // stride  # rows, columns
        patches = base.last_hidden_state[:, self.config.PREFIX_TOKENS :]  # (B, P, D)
        reconstruction = self.decoder(patches.transpose(1, 2).unflatten(2, grid))  # (B, C, height, width)
        loss = None
        if bool_masked_pos is not None:
            mask = bool_masked_pos.view(-1, 1, *grid)  # (B, 1, rows, columns)
            mask = mask.repeat_interleave(stride, 2).repeat_interleave(stride, 3)  # (B, 1, height, width)
            difference = F.l1_loss(pixel_values.to(reconstruction.dtype), reconstruction, reduction="none") * mask
            loss = difference.sum() / (mask.sum() + 1e-5) / self.config.num_channels
        output = MaskedImageModelingOutput(
            loss=loss, reconstruction=reconstruction, hidden_states=base.hidden_states, attentions=base.attentions
        )
        return self._as_requested(output, return_dict)


class ViTForMaskedImageModeling(PreTrainedMaskedImageModel, ViTPreTrainedModel):
    """Vision transformer without a distillation token that reconstructs masked patches.

    Example:
        >>> vit = ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
        >>> ViTForMaskedImageModeling(vit)(torch.zeros(1, 3, 32, 32)).reconstruction.shape
        torch.Size([1, 3, 32, 32])
    """

    vit: ViTModel


class DeiTForMaskedImageModeling(DeiTPreTrainedModel, PreTrainedMaskedImageModel):
    """DeiT that reconstructs masked patches: a linear decoder maps each token to the pixels of its patch.

    The method is SimMIM (arXiv 2111.09886).

    Raises:
        UserError: ``encoder_stride`` differs from the patch size, so that the decoded pixels would not fill the image.

    Example:
        >>> mask = torch.tensor([[True, False, False, True]])
        >>> output = DeiTForMaskedImageModeling(config)(torch.zeros(1, 3, 32, 32), bool_masked_pos=mask)
        >>> output.reconstruction.shape, output.loss.ndim
        (torch.Size([1, 3, 32, 32]), 0)
    """

    deit: DeiTModel


def _head(config: ViTConfig) -> nn.Linear:
    """Returns a linear classifier; the identity if the configuration has no classes."""
    if not config.num_labels:
        return nn.Identity()  # type: ignore[return-value]
    return nn.Linear(config.hidden_size, config.num_labels)


TransformerClassifier = ViTForImageClassification | DeiTForImageClassification | DeiTForImageClassificationWithTeacher

_CLASSIFIERS: dict[str, type[TransformerClassifier]] = {
    model_class.__name__: model_class
    for model_class in (ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher)
}


def new_classifier(config: ViTConfig, generator: torch.Generator | None = None) -> TransformerClassifier:
    """Builds a newly initialized classifier: with two heads if it has a distillation token, otherwise with one.

    Args:
        config: its configuration.
        generator: source of the random weights; torch's default generator if None.
    """
    model: TransformerClassifier
    if isinstance(config, DeiTConfig):
        model = DeiTForImageClassificationWithTeacher(config)
    else:
        model = ViTForImageClassification(config)
    if generator is not None:
        model.init_weights(generator)
    return model


def load_model(
    pretrained_model_name_or_path: str | Path,
    *,
    config: Any = None,
    ema: bool = False,
    distillation: DistillationChange | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: AttentionName | None = None,
    ignore_mismatched_sizes: bool = True,
    device_map: DeviceMap = None,
    device: str | torch.device | None = None,
    **arguments: Any,
) -> TransformerClassifier:
    """Loads a classifier as the class that it was saved from, in evaluation mode.

    The arguments are those of :meth:`PreTrainedModel.from_pretrained`.

    Args:
        pretrained_model_name_or_path: file, directory, name on the hub, or name of a variant.
        distillation: ``drop`` loads a distilled checkpoint as a plain model, ``new`` a plain checkpoint as a distilled model.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no head and ``num_labels`` does not request a new one.

    Example:
        >>> model.save_pretrained(folder)
        >>> type(load_model(folder)).__name__
        'DeiTForImageClassificationWithTeacher'
    """
    target = None if config is None else as_config(config)
    opened, fields = open_pretrained(pretrained_model_name_or_path, ema, arguments, target)
    model = classifier_from_checkpoint(
        opened,
        fields,
        config=target,
        distillation=distillation,
        dtype=dtype or torch_dtype,
        attn_implementation=attn_implementation,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    model.set_name(pretrained_model_name_or_path)
    return apply_device_map(model, device if device_map is None else device_map)


def classifier_from_checkpoint(
    checkpoint: Checkpoint, fields: Mapping[str, Any], *, distillation: DistillationChange | None = None, **options: Any
) -> TransformerClassifier:
    """Loads a classifier from an opened checkpoint, as :func:`load_model`.

    Args:
        checkpoint: opened checkpoint.
        fields: configuration fields that override those of the checkpoint.
        distillation: see :func:`load_model`.
        options: see :meth:`PreTrainedModel.from_checkpoint`.

    Raises:
        CheckpointError: the checkpoint has no head, and ``fields`` do not request a new one.

    Example:
        >>> from deit.checkpoints.reading import open_checkpoint
        >>> model.save_pretrained(folder)
        >>> classifier_from_checkpoint(open_checkpoint(folder), {"num_labels": 2}).num_labels
        2
    """
    model_class = _CLASSIFIERS.get(checkpoint.architecture)
    if distillation is not None:
        model_class = ViTForImageClassification if distillation == "drop" else DeiTForImageClassificationWithTeacher
    elif model_class is None and {"num_labels", "id2label", "label2id"} & fields.keys():
        distilled = isinstance(checkpoint.config, DeiTConfig)
        model_class = DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification
    if model_class is None:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture}, which has no classification head",
            "train one with `deit train --init`, or pass num_labels in Python for a new one",
        )
    return model_class.from_checkpoint(checkpoint, fields, distillation=distillation, **options)
