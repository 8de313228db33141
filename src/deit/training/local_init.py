"""Local initialization: attention that starts out like a convolution.

A randomly initialized transformer has to learn that neighboring patches are related, which it hardly does from a few thousand
images. This initialization gives it that prior; the architecture does not change. It follows the idea of structured
initialization of attention (arXiv 2305.09828, 2404.01139); the construction is our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deit.models.modeling import DeiTForMaskedImageModeling, TransformerClassifier

SHARPNESS = 3.0  # scale of the attention logits; larger values concentrate a head on its neighbor
MAX_FREQUENCY = 0.75 * math.pi  # radians per patch
CODE_GAIN = 0.1  # gain of residual branches in the dimensions of the position code, so that deep layers can still read it
HEAD_GAIN = 0.3


@torch.no_grad()
def local_init_(model: TransformerClassifier | DeiTForMaskedImageModeling, generator: torch.Generator) -> None:
    """Initializes a model in place so that each attention head attends to one neighboring patch.

    The position of a patch is encoded as sines and cosines in the first dimensions of its token, as many as a head is wide.
    Keys copy this code; the queries of a head rotate it by one step in the head's direction, so that the attention logits peak
    at the neighbor in that direction. The nine directions, including no step, are shuffled per layer. The class and
    distillation tokens have no position code, so that they attend to all patches equally.

    Args:
        model: its backbone is newly initialized, and its heads with smaller weights.
        generator: source of the random draws.
    """
    config, backbone = model.config, model.base_model
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    code_dim = head_dim - head_dim % 4
    if not code_dim:
        return  # a head needs at least four dimensions for a position code
    codes, frequencies = position_code(*config.grid, code_dim)
    embeddings = backbone.embeddings
    projection = embeddings.patch_embeddings.projection.weight
    _fill_normal(projection, generator, 1 / math.sqrt(projection[0].numel()))
    projection[:code_dim] *= CODE_GAIN
    prefix = config.PREFIX_TOKENS
    _fill_normal(embeddings.position_embeddings, generator, 0.02)
    embeddings.position_embeddings[0, :prefix, :code_dim] = 0
    embeddings.position_embeddings[0, prefix:, :code_dim] = codes * math.sqrt(2)
    for name, token in embeddings.named_parameters():
        if name.endswith("_token"):
            _fill_normal(token, generator, 0.5)
            token[..., :code_dim] = 0
    directions = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    for layer in backbone.layers:
        attention, mlp = layer.attention, layer.mlp
        shuffled = torch.randperm(len(directions), generator=generator).tolist()
        gain = math.sqrt(4 * SHARPNESS * math.sqrt(head_dim) / code_dim)
        queries, keys, values = attention.qkv.weight.view(3, config.num_attention_heads, head_dim, width)
        queries.zero_()
        keys.zero_()
        for head in range(config.num_attention_heads):
            down, right = directions[shuffled[head % len(directions)]]
            queries[head, :code_dim, :code_dim] = gain * step_matrix(frequencies, down, right)
            keys[head, :code_dim, :code_dim] = gain * torch.eye(code_dim)
        _fill_normal(values, generator, 1 / math.sqrt(width))
        _fill_normal(attention.o_proj.weight, generator, 1 / math.sqrt(width))
        _fill_normal(mlp.fc1.weight, generator, math.sqrt(2 / width))
        _fill_normal(mlp.fc2.weight, generator, math.sqrt(2 / (mlp.fc2.in_features * len(backbone.layers))))
        attention.o_proj.weight[:code_dim] *= CODE_GAIN
        mlp.fc2.weight[:code_dim] *= CODE_GAIN
    for name, parameter in model.named_parameters():
        if name.endswith("classifier.weight"):
            _fill_normal(parameter, generator, HEAD_GAIN / math.sqrt(width))


def position_code(rows: int, columns: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Encodes the position of each patch as sines and cosines.

    Args:
        rows: rows of patches.
        columns: columns of patches.
        dimensions: of the code, a multiple of 4.

    Returns:
        The codes (rows x columns, dimensions): sines and cosines of the row, then of the column; and their frequencies
        (dimensions / 4) in radians per patch.
    """
    frequencies = torch.linspace(math.pi / max(rows, columns), MAX_FREQUENCY, dimensions // 4)
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [index.flatten()[:, None] * frequencies for index in (down, right)]  # each (P, dimensions / 4)
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1), frequencies


def step_matrix(frequencies: Tensor, down: int, right: int) -> Tensor:
    """Returns the matrix (dimensions, dimensions) that maps the position code of a patch to that of a neighbor."""
    count = len(frequencies)
    matrix = torch.zeros(4 * count, 4 * count)
    index = torch.arange(count)
    for first, step in ((0, down), (2 * count, right)):
        sine, cosine = first + index, first + count + index
        matrix[sine, sine] = matrix[cosine, cosine] = (frequencies * step).cos()
        matrix[sine, cosine] = (frequencies * step).sin()
        matrix[cosine, sine] = -(frequencies * step).sin()
    return matrix


def _fill_normal(tensor: Tensor, generator: torch.Generator, std: float) -> None:
    tensor.copy_(torch.empty(tensor.shape).normal_(0, std, generator=generator))
