"""A classifier as it answers in earnest: pixels as a decoder leaves them -> the logits of each head."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import PixelType
from deit.models.auto import LoadedClassifier
from deit.models.modeling import Attention, Block, DeiTForImageClassificationWithTeacher, PatchEmbed, TransformerClassifier

Network = TypeVar("Network", bound=nn.Module)

ONE_HEAD = ("class",)
TWO_HEADS = ("class", "distillation", "both")


class Graph(nn.Module):
    """What is exported, and what the torch runtime runs.

    Rescaling and normalizing map each channel's values x to a x + b. A transformer's patch embedding is linear in the pixels
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
        self.model: nn.Module = _shared_copy(model).eval()
        self.mapped = self.pixels == "uint8" and not isinstance(model, TransformerClassifier)
        if isinstance(self.model, TransformerClassifier):
            trunk = self.model.base_model
            _fold(trunk.embeddings.patch_embeddings, scale, shift)
            trunk.layers[-1] = LastBlock(trunk.layers[-1], self.model.config.PREFIX_TOKENS)
        self.register_buffer("scale", torch.from_numpy(scale).float()[:, None, None])
        self.register_buffer("shift", torch.from_numpy(shift).float()[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, C, height, width) -> logits (B, K), one for each of ``heads``."""
        values = pixels.to(self.scale.dtype)
        if self.mapped:
            values = values * self.scale + self.shift
        return tuple(self.model(values).heads.values())


def operations(graph: Graph) -> int:
    """Floating-point operations of one image's matrix products and convolutions, a multiply-add being two."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        graph(one_image(graph))
    return int(counter.get_total_flops())


def one_image(graph: Graph) -> Tensor:
    """(1, C, height, width) of zeros, of the type that the graph takes."""
    return torch.zeros((1, *graph.shape), dtype=getattr(torch, graph.pixels))


def separated(graph: Graph) -> Graph:
    """A graph as runtimes other than torch run it best, with the same weights, not copies of them."""
    model = _shared_copy(graph)
    if isinstance(model.model, TransformerClassifier):
        for layer in model.model.base_model.layers[:-1]:
            layer.attention = SeparateAttention(layer.attention)
    return model


class SeparateAttention(nn.Module):
    """A block's attention in plain products, and queries, keys and values in one each.

    The same numbers as torch's fused forms make. Runtimes take what follows a product into it, as bringing it to int8, but
    not beyond where it is split; and ONNX's fused attention scales queries and keys one by one, which moves both as floats.

    Args:
        attention: whose weights it has.
        answered: how many tokens, from the first on, are answered for; all when None.
    """

    def __init__(self, attention: Attention, answered: int | None = None) -> None:
        super().__init__()
        inner = attention.qkv.out_features // 3
        self.q, self.k, self.v = (_rows(attention.qkv, place * inner, (place + 1) * inner) for place in range(3))
        self.o_proj, self.head_width, self.answered = attention.o_proj, attention.head_width, answered

    def forward(self, x: Tensor, *_: object) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, ``answered``, D), and None where an attention has its weights."""
        q, k, v = (
            part.reshape(*part.shape[:2], -1, self.head_width).transpose(1, 2)
            for part in (self.q(x[:, : self.answered]), self.k(x), self.v(x))
        )
        scores = q @ k.transpose(2, 3) * self.head_width**-0.5  # (B, H, answered, N)
        mixed = scores.softmax(dim=-1) @ v
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


class LastBlock(nn.Module):
    """A transformer's last block for its first tokens alone: the heads read no others, and the others cost the same.

    All tokens are still looked at: keys and values are made of every one.

    Args:
        block: whose weights it has; it is taken apart.
        answered: how many tokens come out.
    """

    def __init__(self, block: Block, answered: int) -> None:
        super().__init__()
        self.attention = SeparateAttention(block.attention, answered)
        self.answered, self.block = answered, block
        del block.attention

    def forward(self, x: Tensor, *_: None) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, ``answered``, D), and None where a block has its attention."""
        attended, _ = self.attention(self.block.layernorm_before(x))
        x = x[:, : self.answered] + self.block.scaled(attended, None, 0)
        return x + self.block.scaled(self.block.mlp(self.block.layernorm_after(x)), None, 1), None


def _shared_copy(module: Network) -> Network:
    """The structure of a module once more, its weights not."""
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)  # what stands in the memo is not copied


def _rows(linear: nn.Linear, first: int, last: int) -> nn.Linear:
    """Some of a linear map's outputs, with the same weights, not copies of them."""
    part = nn.Linear(linear.in_features, last - first, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[first:last], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[first:last], requires_grad=False)
    return part


def channel_map(processor: DeiTImageProcessor, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What rescaling and normalizing do to each channel: x -> scale x + shift, float64, (C) each."""
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
