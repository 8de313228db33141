"""A classifier as it answers in earnest: pixels as a decoder leaves them -> the logits of each head."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.distillation.classifiers import LoadedClassifier
from deit.image_processor import DeiTImageProcessor
from deit.inference.bundle import PixelType
from deit.modeling import Attention, Block, DeiTForImageClassificationWithTeacher, PatchEmbed, TransformerClassifier

ONE_HEAD = ("class",)
TWO_HEADS = ("class", "distillation", "both")


class Graph(nn.Module):
    """What is exported, and what the torch runtime runs.

    Rescaling and normalising map each channel's values x to a x + b. A transformer's patch embedding is linear in the pixels
    and has no padding, so it takes the map into its weights, which changes nothing but the rounding. Other networks pad with
    zeros, so the map stays in front of them. Where the image processor pads, it pads with what is zero *after* the map, and no
    uint8 pixel is: then the map stays with the processor, and float32 goes in.

    The heads of our models read the tokens before the patches alone, so that the last block answers for no others.

    The weights are the classifier's own, not copies, but for the patch embedding's.

    Attributes:
        heads: the names of what comes out, in order; as the model's answer names them.
        pixels: the type of what goes in.
        shape: (C, height, width) of it.
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
        self.pixels: PixelType = "float32" if processor.do_pad else "uint8"
        self.shape: tuple[int, int, int] = (channels, *processor.input_hw)
        scale, shift = np.ones(channels), np.zeros(channels)
        if self.pixels == "uint8":
            scale, shift = channel_map(processor, channels)
        shared = {id(value): value for value in (*model.parameters(), *model.buffers())}
        self.model: nn.Module = copy.deepcopy(model, shared).eval()  # its structure; what stands in the memo is not copied
        self.mapped = self.pixels == "uint8" and not isinstance(model, TransformerClassifier)
        if isinstance(self.model, TransformerClassifier):
            trunk = self.model.base_model
            _fold(trunk.embeddings.patch_embeddings, scale, shift)
            for layer in trunk.layers[:-1]:
                layer.attention = SplitAttention(layer.attention)
            trunk.layers[-1] = LastBlock(trunk.layers[-1], self.model.config.PREFIX_TOKENS)
        self.register_buffer("scale", torch.from_numpy(scale).float()[:, None, None])
        self.register_buffer("shift", torch.from_numpy(shift).float()[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, C, height, width) -> logits (B, K), one for each of ``heads``."""
        values = pixels.to(self.scale.dtype)
        if self.mapped:
            values = values * self.scale + self.shift
        return tuple(self.model(values).heads.values())


class Parts(nn.Module):
    """A linear map whose outputs go different ways: torch makes all in one product, an exported graph each in its own.

    Runtimes put what follows a product, as bringing it to int8, into the product, but not beyond where it is split.

    Args:
        linear: the whole map.
        count: how many equal parts its outputs have.
    """

    def __init__(self, linear: nn.Linear, count: int) -> None:
        super().__init__()
        width = linear.out_features // count
        self.whole = linear
        self.parts = nn.ModuleList(_rows(linear, place * width, (place + 1) * width) for place in range(count))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, D) -> (B, N, width) of each part."""
        if torch.compiler.is_exporting():
            return tuple(part(x) for part in self.parts)
        outputs: Tensor = self.whole(x)
        return outputs.chunk(len(self.parts), dim=-1)


class SplitAttention(nn.Module):
    """A block's attention, in which queries, keys and values are told apart before their heads are.

    The same numbers in an order that runtimes quantise and move about with fewer steps.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.o_proj, self.head_width = Parts(attention.qkv, 3), attention.o_proj, attention.head_width

    def forward(self, x: Tensor, *_: object) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, N, D), and None where an attention has its weights."""
        q, k, v = self.qkv(x)
        return self.o_proj(attended(q, k, v, self.head_width)), None


class LastBlock(nn.Module):
    """A transformer's last block for its first tokens alone: the heads read no others, and the others cost the same.

    All tokens are still looked at: keys and values are made of every one.

    Args:
        block: whose weights it has; it is taken apart.
        answered: how many tokens come out.
    """

    def __init__(self, block: Block, answered: int) -> None:
        super().__init__()
        attention = block.attention
        inner = attention.qkv.out_features // 3
        self.answered, self.head_width = answered, attention.head_width
        self.q, self.kv = _rows(attention.qkv, 0, inner), Parts(_rows(attention.qkv, inner, 3 * inner), 2)
        self.o_proj = attention.o_proj
        self.block = block
        del block.attention

    def forward(self, x: Tensor, *_: None) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, ``answered``, D), and None where a block has its attention."""
        normed = self.block.layernorm_before(x)
        x = x[:, : self.answered]
        q, (k, v) = self.q(normed[:, : self.answered]), self.kv(normed)
        x = x + self.block.scaled(self.o_proj(attended(q, k, v, self.head_width)), None, 0)
        return x + self.block.scaled(self.block.mlp(self.block.layernorm_after(x)), None, 1), None


def attended(q: Tensor, k: Tensor, v: Tensor, head_width: int) -> Tensor:
    """Queries (B, M, D), keys and values (B, N, D) -> what each query's heads gather, (B, M, D)."""
    q, k, v = (part.reshape(*part.shape[:2], -1, head_width).transpose(1, 2) for part in (q, k, v))
    if torch.compiler.is_exporting():
        # ONNX's form of the fused function scales queries and keys one by one, and int8 runtimes then move both as floats.
        scores: Tensor = q @ k.transpose(2, 3) * head_width**-0.5  # (B, H, M, N)
        mixed: Tensor = scores.softmax(dim=-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)


def _rows(linear: nn.Linear, first: int, last: int) -> nn.Linear:
    """Some of a linear map's outputs, with the same weights, not copies of them."""
    part = nn.Linear(linear.in_features, last - first, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[first:last], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[first:last], requires_grad=False)
    return part


def channel_map(processor: DeiTImageProcessor, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What rescaling and normalising do to each channel: x -> scale x + shift, float64, (C) each."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    statistics = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (np.broadcast_to(np.asarray(values, np.float64), channels) for values in statistics)
    return factor / std, -mean / std


def _fold(embedding: PatchEmbed, scale: np.ndarray, shift: np.ndarray) -> None:
    """Multiply a map of the channels into the convolution that follows it: new weights, and the old stay as they are."""
    old = embedding.projection
    weight = old.weight.detach().double().cpu()  # (D, C, rows, columns)
    assert old.bias is not None
    bias = old.bias.detach().double().cpu() + (weight * torch.from_numpy(shift)[:, None, None]).sum((1, 2, 3))
    new = copy.copy(old)
    new._parameters = dict(old._parameters)
    like = old.weight
    new.weight = nn.Parameter((weight * torch.from_numpy(scale)[:, None, None]).to(like), requires_grad=False)
    new.bias = nn.Parameter(bias.to(like), requires_grad=False)
    embedding.projection = new
