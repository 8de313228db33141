"""Inference wrapper: normalization folded into the patch embedding; pixels in, the logits of each head out.

Shapes: B images, C channels, N tokens, D width, H heads, K classes.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import InputDtype
from deit.models.auto import LoadedClassifier
from deit.models.cpu_attention import MAX_TOKENS, matmul_attention
from deit.models.modeling import Attention, Block, DeiTForImageClassificationWithTeacher, PatchEmbed, TransformerClassifier

Module = TypeVar("Module", bound=nn.Module)

ONE_HEAD = ("class",)
TWO_HEADS = ("class", "distillation", "both")


class InferenceModel(nn.Module):
    """The module that is exported, and that the torch runtime runs.

    Rescaling and normalizing map the values x of each channel to a x + b. The patch embedding of a transformer is linear in the
    pixels and has no padding, so the map is folded into its weights, which changes only the rounding. Other networks pad with
    zeros, so the map stays in front of them. An image processor that pads does so with zeros *after* the map, and no uint8
    value maps to zero: then the processor normalizes, and the input is float32.

    The heads of DeiT and ViT read only the tokens before the patches, so the last block computes only these.

    The weights are shared with the classifier, except those of the patch embedding.

    Attributes:
        heads: names of the outputs, in order, as in the output of the classifier.
        input_dtype: type of the input.
        input_shape: shape (C, height, width) of one input image.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: LoadedClassifier) -> None:
        super().__init__()
        processor, model = classifier.processor, classifier.model
        channels = model.config.num_channels if isinstance(model, TransformerClassifier) else 3
        self.heads: tuple[str, ...] = ONE_HEAD
        if isinstance(model, DeiTForImageClassificationWithTeacher):
            self.heads = TWO_HEADS
        self.input_dtype: InputDtype = "float32" if processor.do_pad else "uint8"
        self.input_shape: tuple[int, int, int] = (channels, *processor.input_hw)
        scale, shift = np.ones(channels), np.zeros(channels)
        if self.input_dtype == "uint8":
            scale, shift = normalization_map(processor, channels)
        self.model: nn.Module = _copy_sharing_weights(model).eval()
        self.normalizes_in_front = self.input_dtype == "uint8" and not isinstance(model, TransformerClassifier)
        if isinstance(self.model, TransformerClassifier):
            trunk = self.model.base_model
            _fold_into(trunk.embeddings.patch_embeddings, scale, shift)
            trunk.layers[-1] = PrefixOnlyBlock(trunk.layers[-1], self.model.config.PREFIX_TOKENS)
        self.register_buffer("scale", torch.from_numpy(scale).float()[:, None, None])
        self.register_buffer("shift", torch.from_numpy(shift).float()[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, C, height, width) -> logits (B, K) of each of ``heads``."""
        values = pixels.to(self.scale.dtype)
        if self.normalizes_in_front:
            values = values * self.scale + self.shift
        return tuple(self.model(values).heads.values())

    def example_input(self, images: int = 1) -> Tensor:
        """Returns zeros (images, C, height, width) of the input type."""
        return torch.zeros((images, *self.input_shape), dtype=getattr(torch, self.input_dtype))


def count_flops(model: InferenceModel) -> int:
    """Counts the floating-point operations of matrix products and convolutions per image. A multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(model.example_input())
    return int(counter.get_total_flops())


def unfuse_attention(model: InferenceModel) -> InferenceModel:
    """Returns a copy whose attention is unfused, as runtimes other than torch run it best. The weights are shared."""
    unfused = _copy_sharing_weights(model)
    if isinstance(unfused.model, TransformerClassifier):
        for layer in unfused.model.base_model.layers[:-1]:
            layer.attention = UnfusedAttention(layer.attention)
    return unfused


def use_matmul_attention(model: InferenceModel) -> InferenceModel:
    """Returns a copy whose attention is computed as in training (:mod:`deit.models.cpu_attention`), for a CPU in bf16.

    There, a tiny model takes a seventh more time with torch's fused attention (docs/log.md). The weights are shared.
    """
    changed = _copy_sharing_weights(model)
    if isinstance(changed.model, TransformerClassifier) and changed.model.config.tokens <= MAX_TOKENS:
        for layer in changed.model.base_model.layers[:-1]:
            layer.attention = MatmulAttention(layer.attention)
    return changed


class MatmulAttention(nn.Module):
    """Attention in batched matrix products, with one projection of queries, keys and values.

    Args:
        attention: the attention whose weights are shared.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.o_proj, self.head_dim = attention.qkv, attention.o_proj, attention.head_dim

    def forward(self, x: Tensor, *_: object) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, N, D), and None in place of the attention weights."""
        qkv = self.qkv(x).unflatten(2, (3, -1, self.head_dim))  # (B, N, 3, H, E)
        return self.o_proj(matmul_attention(qkv).flatten(2)), None


class UnfusedAttention(nn.Module):
    """Attention in plain matrix products, with separate projections of queries, keys and values.

    The result equals that of torch's fused operators. Runtimes fuse the operator after a matrix product into it, such as the
    quantization to int8, but not across a split of its output. The fused attention operator of ONNX scales queries and keys
    separately, which moves both as floats.

    Args:
        attention: the attention whose weights are shared.
        num_queries: number of tokens, from the first, to compute; None computes all.
    """

    def __init__(self, attention: Attention, num_queries: int | None = None) -> None:
        super().__init__()
        width = attention.qkv.out_features // 3
        self.q, self.k, self.v = (_slice_outputs(attention.qkv, index * width, (index + 1) * width) for index in range(3))
        self.o_proj, self.head_dim, self.num_queries = attention.o_proj, attention.head_dim, num_queries

    def forward(self, x: Tensor, *_: object) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, num_queries, D), and None in place of the attention weights."""
        q, k, v = (
            projected.reshape(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H, tokens, head_dim)
            for projected in (self.q(x[:, : self.num_queries]), self.k(x), self.v(x))
        )
        scores = q @ k.transpose(2, 3) * self.head_dim**-0.5  # (B, H, num_queries, N)
        mixed = scores.softmax(dim=-1) @ v  # (B, H, num_queries, head_dim)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


class PrefixOnlyBlock(nn.Module):
    """The last block of a transformer, computed only for the tokens that the heads read.

    These tokens still attend to all tokens: keys and values are computed for every token.

    Args:
        block: the block whose weights are shared; its attention is removed.
        num_tokens: number of tokens to compute.
    """

    def __init__(self, block: Block, num_tokens: int) -> None:
        super().__init__()
        self.attention = UnfusedAttention(block.attention, num_tokens)
        self.num_tokens, self.block = num_tokens, block
        del block.attention

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """(B, N, D) -> (B, num_tokens, D)."""
        attended, _ = self.attention(self.block.layernorm_before(x))
        x = x[:, : self.num_tokens] + self.block.scale_residual(attended, None, 0)
        return x + self.block.scale_residual(self.block.mlp(self.block.layernorm_after(x)), None, 1)


def normalization_map(processor: DeiTImageProcessor, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift, float64 (C,) each, such that x * scale + shift rescales and normalizes each channel."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    statistics = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (np.broadcast_to(np.asarray(values, np.float64), channels) for values in statistics)
    return factor / std, -mean / std


def _copy_sharing_weights(module: Module) -> Module:
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)  # deepcopy does not copy objects that are in its memo


def _slice_outputs(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Returns a linear layer with a range of another layer's outputs. The weights are shared."""
    sliced = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    sliced.weight = nn.Parameter(linear.weight.detach()[start:stop], requires_grad=False)
    if linear.bias is not None:
        sliced.bias = nn.Parameter(linear.bias.detach()[start:stop], requires_grad=False)
    return sliced


def _fold_into(embedding: PatchEmbed, scale: np.ndarray, shift: np.ndarray) -> None:
    """Folds a scale and shift per channel into the patch embedding, in new weights: the old ones are shared."""
    old = embedding.projection
    weight = old.weight.detach().double().cpu()  # (D, C, rows, columns)
    assert old.bias is not None
    bias = old.bias.detach().double().cpu() + (weight * torch.from_numpy(shift)[:, None, None]).sum((1, 2, 3))
    new = copy.copy(old)
    new._parameters = dict(old._parameters)
    new.weight = nn.Parameter((weight * torch.from_numpy(scale)[:, None, None]).to(old.weight), requires_grad=False)
    new.bias = nn.Parameter(bias.to(old.weight), requires_grad=False)
    embedding.projection = new
