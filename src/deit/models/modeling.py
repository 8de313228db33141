"""The model, whole.

A vision transformer (Dosovitskiy et al., arXiv 2010.11929) as DeiT trains it (Touvron et al., arXiv 2012.12877): section 3
recalls the transformer, section 4 adds the distillation token, which stands at index 1 and learns from the teacher.

Shapes: B images, C channels, N tokens, P patches, D width, H heads, L layers, K classes.

Nothing here draws a random number after the weights are made, but for dropout where a configuration asks for it: stochastic
depth arrives as a tensor of factors, so that the same inputs always give the same outputs.
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
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError, UserError
from deit.models.cpu_attention import self_attention, trains_faster
from deit.models.losses import Distillation, as_targets, labels_loss, training_loss
from deit.models.outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
    ImageClassifierWithTeacherOutput,
    MaskedImageModelingOutput,
)
from deit.models.pretrained import AttentionName, DeviceMap, PreTrainedModel, open_named, to_device

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class PatchEmbed(nn.Module):
    """Image -> one token a patch: a linear map of its pixels, as a convolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_hw, stride=config.patch_hw)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, rows x columns, D)."""
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """Patches, the tokens before them, and where each stands."""

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
        """(B, C, height, width), hidden patches (B, P) -> (B, N, D)."""
        positions = self._positions(pixel_values, interpolate_pos_encoding)
        patches = self.patch_embeddings(pixel_values)  # (B, P, D)
        if bool_masked_pos is not None:
            patches = self._masked(patches, bool_masked_pos)
        prefix = [self.cls_token]
        if isinstance(self.config, DeiTConfig):
            prefix.append(self.distillation_token)
        tokens = [token.expand(patches.shape[0], -1, -1) for token in prefix]
        x: Tensor = self.dropout(torch.cat([*tokens, patches], dim=1) + positions)  # (B, N, D)
        return x

    def _masked(self, patches: Tensor, hidden: Tensor) -> Tensor:
        if not hasattr(self, "mask_token"):
            raise UserError("This model has no mask token", "make it with use_mask_token=True, or leave bool_masked_pos out")
        if hidden.shape != patches.shape[:2]:
            expected = " x ".join(map(str, patches.shape[:2]))
            raise UserError(f"bool_masked_pos is {tuple(hidden.shape)}", f"pass images x patches, {expected}")
        return torch.where(hidden.bool()[..., None], self.mask_token.to(patches.dtype), patches)

    def _positions(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        config = self.config
        if pixel_values.ndim != 4:
            raise UserError(f"The images are {tuple(pixel_values.shape)}", "pass images x channels x height x width")
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
    """Multi-head self-attention; one product makes queries, keys and values.

    Attributes:
        heads: the numbers of the heads that are there; all but the pruned ones.
    """

    def __init__(self, config: ViTConfig, pruned: Sequence[int] = ()) -> None:
        super().__init__()
        self.heads = [head for head in range(config.num_attention_heads) if head not in pruned]
        self.head_width = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        inner = len(self.heads) * self.head_width
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor, head_mask: Tensor | None = None, explicit: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, N, D), a factor a head (H) -> (B, N, D), and the attention weights (B, H, N, N) where ``explicit``."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, len(self.heads), self.head_width)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if not (explicit or dropout) and trains_faster(qkv):
            x = self_attention(qkv)  # (B, N, H, D / H)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D / H)
            if explicit:
                scores = q @ k.transpose(2, 3) * self.head_width**-0.5  # (B, H, N, N)
                weights = F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), dropout)
                x = weights @ v
            else:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            x = x.transpose(1, 2)
        if head_mask is not None:
            factors = head_mask.to(x.dtype)[:, None]  # (H, 1)
            x = x * factors
            weights = None if weights is None else weights * factors[..., None]
        return self.o_proj(x.reshape(batch, tokens, -1)), weights

    @torch.no_grad()
    def prune(self, gone: Collection[int]) -> None:
        """Take heads out, by their numbers in the model as it was made."""
        kept = [place for place, head in enumerate(self.heads) if head not in gone]
        rows = torch.arange(len(self.heads) * self.head_width).view(len(self.heads), self.head_width)[kept].flatten()
        rows = rows.to(self.qkv.weight.device)
        old_qkv, old_out = self.qkv, self.o_proj
        self.heads = [self.heads[place] for place in kept]
        width = old_out.out_features
        options: dict[str, Any] = {"device": old_out.weight.device, "dtype": old_out.weight.dtype}
        self.qkv = nn.Linear(width, 3 * len(rows), bias=old_qkv.bias is not None, **options)
        self.qkv.weight.copy_(old_qkv.weight.view(3, -1, width)[:, rows].flatten(0, 1))
        if old_qkv.bias is not None:
            self.qkv.bias.copy_(old_qkv.bias.view(3, -1)[:, rows].flatten())
        self.o_proj = nn.Linear(len(rows), width, **options)
        self.o_proj.weight.copy_(old_out.weight[:, rows])
        self.o_proj.bias.copy_(old_out.bias)
        for old, new in ((old_qkv, self.qkv), (old_out, self.o_proj)):
            new.requires_grad_(old.weight.requires_grad)


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and around a residual connection."""

    def __init__(self, config: ViTConfig, pruned: Sequence[int] = ()) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, pruned)
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
        explicit: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D), factors (2, B), factors (H) -> (B, N, D), and the attention weights where ``explicit``."""
        attended, weights = self.attention(self.layernorm_before(x), head_mask, explicit)
        x = x + self.scaled(self.dropout(attended), residual_scale, 0)
        mixed = self.dropout(self.mlp(self.layernorm_after(x)))
        return x + self.scaled(mixed, residual_scale, 1), weights

    def scaled(self, branch: Tensor, factors: Tensor | None, row: int) -> Tensor:
        """A residual branch, by its factor a channel (layer scale) and its factor an image (stochastic depth)."""
        if hasattr(self, "layer_scale"):
            branch = branch * self.layer_scale[row].to(branch.dtype)
        return branch if factors is None else branch * factors[row].to(branch.dtype)[:, None, None]

    @torch.no_grad()
    def fold_layer_scale(self) -> None:
        """Multiply the factors of layer scale into the weights before them."""
        for factors, last in zip(self.layer_scale, (self.attention.o_proj, self.mlp.fc2), strict=True):
            last.weight.mul_(factors[:, None])
            last.bias.mul_(factors)
        del self.layer_scale


class ViTModel(PreTrainedModel):
    """The transformer without a head.

    Args:
        config: its shape.
        add_pooling_layer: a linear map and tanh on [CLS], as transformers has it; no published checkpoint holds one.
        use_mask_token: an embedding for hidden patches, for masked image modeling.

    Example:
        >>> vit = ViTModel(ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3))
        >>> vit(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
        torch.Size([1, 5, 48])
    """

    _options = frozenset({"add_pooling_layer", "use_mask_token"})

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        width = config.hidden_size
        with torch.device("meta"):
            self.embeddings = Embeddings(config, use_mask_token)
            self.layers = nn.ModuleList(Block(config, config.pruned_heads.get(n, ())) for n in range(config.num_hidden_layers))
            self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            if add_pooling_layer:
                self.pooler = nn.ModuleDict({"dense": nn.Linear(width, config.pooler_output_size or width)})
        self.explicit_attention = False
        self.checkpointing: dict[str, Any] = {}
        self.checkpointed_layers = range(0)
        self.materialize()

    def get_input_embeddings(self) -> nn.Module:
        """The map from patches to tokens.

        Example:
            >>> model.deit.get_input_embeddings().projection.weight.shape
            torch.Size([48, 3, 16, 16])
        """
        return self.embeddings.patch_embeddings

    def forward(
        self,
        pixel_values: Tensor,
        *,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
    ) -> BaseModelOutput:
        """Run the transformer.

        Args:
            pixel_values: (B, C, height, width), normalized; of any floating type.
            bool_masked_pos: (B, P), true where a patch is hidden behind the mask token.
            head_mask: (H) or (L, H), a factor of each attention head: 0 masks it, 1 leaves it.
            output_attentions: answer each layer's attention too, computed step by step; the configuration's when None.
            output_hidden_states: answer the tokens after each layer too; the configuration's when None.
            interpolate_pos_encoding: take images of another size by resampling the position embeddings.
            return_dict: False answers a tuple of the parts; the configuration's when None.
            residual_scale: (L, 2, B), the factor of each residual branch for each image, for stochastic depth;
                all ones when None.

        Raises:
            UserError: images of another size or channel count, or a mask of another shape.

        Example:
            >>> output = model.deit(torch.zeros(1, 3, 32, 32), output_attentions=True, output_hidden_states=True)
            >>> len(output.hidden_states), output.attentions[0].shape
            (3, torch.Size([1, 3, 6, 6]))
        """
        config = self.config
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        masks = self._head_masks(head_mask)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        x = self.embeddings(pixel_values, bool(interpolate_pos_encoding), bool_masked_pos)  # (B, N, D)
        states, attentions = [], []  # only what was asked for: the rest goes as soon as the next layer has read it
        for depth, layer in enumerate(self.layers):
            scale = None if residual_scale is None else residual_scale[depth]
            if with_states:
                states.append(x)
            arguments = x, scale, masks[depth], with_attentions or self.explicit_attention
            if depth in self.checkpointed_layers and self.training:
                x, weights = checkpoint(layer, *arguments, **self.checkpointing)
            else:
                x, weights = layer(*arguments)
            del arguments
            if with_attentions:
                attentions.append(weights)
        if with_states:
            states.append(x)
        x = self.layernorm(x)
        output = BaseModelOutput(
            last_hidden_state=x,
            pooler_output=torch.tanh(self.pooler["dense"](x[:, 0])) if hasattr(self, "pooler") else None,
            hidden_states=tuple(states) if with_states else None,
            attentions=tuple(attentions) if with_attentions else None,
        )
        return self._answer(output, return_dict)

    def _head_masks(self, head_mask: Tensor | None) -> Sequence[Tensor | None]:
        layers, heads = len(self.layers), self.config.num_attention_heads
        if head_mask is None:
            return [None] * layers
        if head_mask.shape not in ((heads,), (layers, heads)):
            raise UserError(f"head_mask is {tuple(head_mask.shape)}", f"pass {heads} heads, or {layers} layers x {heads} heads")
        rows = head_mask.expand(layers, heads)
        attentions = [layer.attention for layer in self.layers if isinstance(layer, Block)]
        return [row[attention.heads] for row, attention in zip(rows, attentions, strict=True)]


class DeiTModel(ViTModel):
    """A :class:`ViTModel` with the distillation token at index 1.

    Example:
        >>> DeiTModel(config)(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape  # [CLS], distillation token, 4 patches
        torch.Size([1, 6, 48])
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"


class PreTrainedClassifier(PreTrainedModel):
    """A transformer with one head on [CLS]."""

    classifier: nn.Linear

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        trunk = DeiTModel if self.base_model_prefix == "deit" else ViTModel
        with torch.device("meta"):
            setattr(self, self.base_model_prefix, trunk(config, add_pooling_layer=False))
            self.classifier = _head(config)
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classify.

        Args:
            pixel_values: (B, C, height, width), as all others in :meth:`ViTModel.forward`.
            labels: for a loss, as :func:`deit.models.losses.labels_loss` takes them with the configuration's
                ``problem_type``.

        Example:
            >>> plain = DeiTForImageClassification(config)
            >>> output = plain(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 4]))
            >>> output.logits.shape, output.loss.ndim
            (torch.Size([2, 5]), 0)
        """
        hidden = self.base_model(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            residual_scale=residual_scale,
        )
        logits = self.classifier(hidden.last_hidden_state[:, 0])  # (B, K)
        output = ImageClassifierOutput(
            loss=None if labels is None else labels_loss(logits, labels, self.config.problem_type),
            logits=logits,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        return self._answer(output, return_dict)


class ViTForImageClassification(PreTrainedClassifier):
    """A vision transformer with one head on [CLS]: the four published models that had no distillation.

    Example:
        >>> vit = ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
        >>> ViTForImageClassification(vit)(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    vit: ViTModel


class DeiTForImageClassification(PreTrainedClassifier):
    """A DeiT with one head, on the class token alone.

    Example:
        >>> DeiTForImageClassification(config)(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"
    deit: DeiTModel


class DeiTForImageClassificationWithTeacher(PreTrainedModel):
    """DeiT as it is distilled: a head on the class token, another on the distillation token (section 4).

    Example:
        >>> output = DeiTForImageClassificationWithTeacher(config)(torch.zeros(2, 3, 32, 32))
        >>> output.logits.shape, output.distillation_logits.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"
    config: DeiTConfig

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.deit = DeiTModel(config, add_pooling_layer=False)
            self.cls_classifier = _head(config)
            self.distillation_classifier = _head(config)
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        residual_scale: Tensor | None = None,
    ) -> ImageClassifierWithTeacherOutput:
        """Classify.

        Args:
            pixel_values: (B, C, height, width), as all others in :meth:`ViTModel.forward`.
            labels: with ``teacher_logits``, (B) class numbers or (B, K) soft targets, and the loss is the paper's, hard or soft
                as the configuration's ``distillation_type`` says. Without, each head learns the labels, which are as in
                :meth:`DeiTForImageClassification.forward`.
            teacher_logits: (B, K), what a teacher says of the same images.

        Raises:
            UserError: labels or teacher's logits of another shape, or these without those.

        Example:
            >>> images, labels = torch.zeros(2, 3, 32, 32), torch.tensor([0, 4])
            >>> output = model(images, labels=labels, teacher_logits=torch.eye(5)[:2])
            >>> output.loss.ndim, list(output)
            (0, ['loss', 'logits', 'cls_logits', 'distillation_logits'])
        """
        if teacher_logits is not None and labels is None:
            raise UserError("There are teacher_logits and no labels", "pass both for a loss")
        hidden = self.deit(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            residual_scale=residual_scale,
        )
        x = hidden.last_hidden_state  # (B, N, D)
        class_logits, distillation_logits = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])
        output = ImageClassifierWithTeacherOutput(
            loss=None if labels is None else self._loss(class_logits, distillation_logits, labels, teacher_logits),
            logits=(class_logits + distillation_logits) / 2,
            cls_logits=class_logits,
            distillation_logits=distillation_logits,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        return self._answer(output, return_dict)

    def _loss(self, class_logits: Tensor, distillation_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        if teacher_logits is None:
            losses = [labels_loss(logits, labels, self.config.problem_type) for logits in (class_logits, distillation_logits)]
            return (losses[0] + losses[1]) / 2
        settings = Distillation(mode=self.config.distillation_type)
        targets = as_targets(labels.to(class_logits.device), self.num_labels)
        for what, given in (("labels", targets), ("teacher_logits", teacher_logits)):
            if given.shape != class_logits.shape:
                raise UserError(f"{what} are {tuple(given.shape)}", f"images x classes is {tuple(class_logits.shape)}")
        return training_loss(settings, class_logits, targets, distillation_logits, teacher_logits)


class DeiTForMaskedImageModeling(PreTrainedModel):
    """A DeiT that fills in hidden patches: each token becomes the pixels of its patch (SimMIM, arXiv 2111.09886).

    Raises:
        UserError: ``encoder_stride`` differs from the patch size, so that the pixels would not fill the image.

    Example:
        >>> hidden = torch.tensor([[True, False, False, True]])
        >>> output = DeiTForMaskedImageModeling(config)(torch.zeros(1, 3, 32, 32), bool_masked_pos=hidden)
        >>> output.reconstruction.shape, output.loss.ndim
        (torch.Size([1, 3, 32, 32]), 0)
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        stride = config.encoder_stride
        if config.patch_hw != (stride, stride):
            raise UserError(f"encoder_stride is {stride} and a patch {config.patch_hw}", "make them equal")
        with torch.device("meta"):
            self.deit = DeiTModel(config, add_pooling_layer=False, use_mask_token=True)
            pixels = nn.Conv2d(config.hidden_size, stride**2 * config.num_channels, kernel_size=1)
            self.decoder = nn.Sequential(pixels, nn.PixelShuffle(stride))
        self.materialize()

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedImageModelingOutput:
        """Fill in.

        Args:
            pixel_values: (B, C, height, width), as all others in :meth:`ViTModel.forward`.
            bool_masked_pos: (B, P), true where a patch is hidden; with it there is a loss.

        Example:
            >>> DeiTForMaskedImageModeling(config)(torch.zeros(1, 3, 32, 32)).loss is None
            True
        """
        stride = self.config.encoder_stride
        if pixel_values.shape[2] % stride or pixel_values.shape[3] % stride:
            height, width = pixel_values.shape[2:]
            raise UserError(f"The images are {height} x {width}", f"both must divide by {stride}, or pixels would be left over")
        hidden = self.deit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
        )
        grid = pixel_values.shape[2] // stride, pixel_values.shape[3] // stride  # rows, columns
        patches = hidden.last_hidden_state[:, DeiTConfig.PREFIX_TOKENS :].transpose(1, 2).unflatten(2, grid)
        reconstruction = self.decoder(patches)  # (B, C, height, width)
        loss = None
        if bool_masked_pos is not None:
            mask = bool_masked_pos.view(-1, 1, *grid).repeat_interleave(stride, 2).repeat_interleave(stride, 3)
            difference = F.l1_loss(pixel_values.to(reconstruction.dtype), reconstruction, reduction="none") * mask
            loss = difference.sum() / (mask.sum() + 1e-5) / self.config.num_channels
        output = MaskedImageModelingOutput(
            loss=loss, reconstruction=reconstruction, hidden_states=hidden.hidden_states, attentions=hidden.attentions
        )
        return self._answer(output, return_dict)


def _head(config: ViTConfig) -> nn.Linear:
    """Token -> logits; a configuration without classes leaves the token as it is."""
    if not config.num_labels:
        return nn.Identity()  # type: ignore[return-value]
    return nn.Linear(config.hidden_size, config.num_labels)


TransformerClassifier = ViTForImageClassification | DeiTForImageClassification | DeiTForImageClassificationWithTeacher

_CLASSIFIERS: dict[str, type[TransformerClassifier]] = {
    kind.__name__: kind
    for kind in (ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher)
}


def new_classifier(config: ViTConfig, generator: torch.Generator | None = None) -> TransformerClassifier:
    """A classifier with fresh weights: two heads where there is a distillation token, else one."""
    model: TransformerClassifier
    if isinstance(config, DeiTConfig):
        model = DeiTForImageClassificationWithTeacher(config)
    else:
        model = ViTForImageClassification(config)
    if generator is not None:
        model.init_weights(generator)
    return model


def load_model(
    name: str | Path,
    *,
    config: ViTConfig | None = None,
    ema: bool = False,
    distillation: DistillationChange | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: AttentionName = "sdpa",
    ignore_mismatched_sizes: bool = True,
    device_map: DeviceMap = None,
    **arguments: Any,
) -> TransformerClassifier:
    """A classifier with saved weights, in evaluation mode, of the class that the checkpoint is of.

    Args:
        name: a directory, a file, a name on the hub, or a variant's name, in any format that
            :meth:`PreTrainedModel.from_pretrained` reads; the other arguments are also its.
        distillation: ``drop`` makes a plain model of a distilled checkpoint, ``new`` a distilled one of a plain.

    Raises:
        CheckpointError: there is no such checkpoint, or it holds no head and no ``num_labels`` asks for new ones.

    Example:
        >>> model.save_pretrained(folder)
        >>> type(load_model(folder)).__name__
        'DeiTForImageClassificationWithTeacher'
    """
    checkpoint, fields = open_named(name, ema, arguments, config)
    model = classifier_from_checkpoint(
        checkpoint,
        fields,
        config=config,
        distillation=distillation,
        dtype=dtype or torch_dtype,
        attn_implementation=attn_implementation,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    return to_device(model, device_map)


def classifier_from_checkpoint(
    checkpoint: Checkpoint, fields: Mapping[str, Any], *, distillation: DistillationChange | None = None, **choices: Any
) -> TransformerClassifier:
    """As :func:`load_model`, of a checkpoint that is open.

    Example:
        >>> from deit.checkpoints.reading import open_checkpoint
        >>> model.save_pretrained(folder)
        >>> classifier_from_checkpoint(open_checkpoint(folder), {"num_labels": 2}).num_labels
        2
    """
    kind = _CLASSIFIERS.get(checkpoint.architecture)
    if distillation is not None:
        kind = ViTForImageClassification if distillation == "drop" else DeiTForImageClassificationWithTeacher
    elif kind is None and {"num_labels", "id2label", "label2id"} & fields.keys():
        distilled = isinstance(checkpoint.config, DeiTConfig)
        kind = DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification
    if kind is None:
        raise CheckpointError(
            f"{checkpoint.path} holds a {checkpoint.architecture}, which tells no classes",
            "`deit train --init` gives it heads; in Python, num_labels does",
        )
    return kind.from_checkpoint(checkpoint, fields, distillation=distillation, **choices)
