"""First weights with which a transformer begins as something like a convolutional network.

A transformer that starts from noise has to find out that neighboring patches belong together, and on a few thousand images
it hardly does. These weights tell it so, and stay ordinary weights of an ordinary model: nothing in its shape changes. In the
spirit of structured initialization of attention (arXiv 2305.09828, 2404.01139); the construction is our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deit.models.modeling import DeiTForMaskedImageModeling, TransformerClassifier

SHARPNESS = 3.0  # logits between the patch that a head looks at and its far ones, a unit of the position code
FASTEST = 0.75 * math.pi  # radians a patch of the quickest wave of the position code
QUIET = 0.1  # share of a branch's output that reaches the dimensions of the position code, so that deep layers still read it
HEAD_GAIN = 0.3


@torch.no_grad()
def local_init_(model: TransformerClassifier | DeiTForMaskedImageModeling, generator: torch.Generator) -> None:
    """Make each head begin by looking at one neighbor, a few patches wide in deeper layers; class tokens at all patches alike.

    The position of a patch is written as sines and cosines in the first dimensions of its token, as many as a head is wide.
    Keys copy this code; the queries of a head turn it by one step in the head's direction, so that their product peaks at the
    neighbor there. The nine directions, standing still among them, are drawn anew for each layer. The tokens before the
    patches have no code, and so their attention is even: an average over the image.

    Args:
        model: with weights of any kind; all of the trunk's are replaced, and the heads' made smaller.
        generator: where the draws come from.
    """
    config, trunk = model.config, model.base_model
    width, head_width = config.hidden_size, config.hidden_size // config.num_attention_heads
    coded = head_width - head_width % 4
    if not coded:
        return  # a head of fewer than four dimensions holds no code
    codes, waves = position_code(*config.grid, coded)
    embeddings = trunk.embeddings
    projection = embeddings.patch_embeddings.projection.weight
    _draw(projection, generator, 1 / math.sqrt(projection[0].numel()))
    projection[:coded] *= QUIET
    prefix = config.PREFIX_TOKENS
    _draw(embeddings.position_embeddings, generator, 0.02)
    embeddings.position_embeddings[0, :prefix, :coded] = 0
    embeddings.position_embeddings[0, prefix:, :coded] = codes * math.sqrt(2)
    for name, token in embeddings.named_parameters():
        if name.endswith("_token"):
            _draw(token, generator, 0.5)
            token[..., :coded] = 0
    directions = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    for layer in trunk.layers:
        attention, mlp = layer.attention, layer.mlp
        order = torch.randperm(len(directions), generator=generator).tolist()
        strength = math.sqrt(4 * SHARPNESS * math.sqrt(head_width) / coded)
        queries, keys, values = attention.qkv.weight.view(3, config.num_attention_heads, head_width, width)
        queries.zero_()
        keys.zero_()
        for head in range(config.num_attention_heads):
            down, right = directions[order[head % len(directions)]]
            queries[head, :coded, :coded] = strength * step_matrix(waves, down, right)
            keys[head, :coded, :coded] = strength * torch.eye(coded)
        _draw(values, generator, 1 / math.sqrt(width))
        _draw(attention.o_proj.weight, generator, 1 / math.sqrt(width))
        _draw(mlp.fc1.weight, generator, math.sqrt(2 / width))
        _draw(mlp.fc2.weight, generator, math.sqrt(2 / (mlp.fc2.in_features * len(trunk.layers))))
        attention.o_proj.weight[:coded] *= QUIET
        mlp.fc2.weight[:coded] *= QUIET
    for name, parameter in model.named_parameters():
        if name.endswith("classifier.weight"):
            _draw(parameter, generator, HEAD_GAIN / math.sqrt(width))


def position_code(rows: int, columns: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Where each patch stands, as waves.

    Args:
        rows: of patches; likewise ``columns``.
        dimensions: of the code, a multiple of 4.

    Returns:
        (rows x columns, dimensions), sines and cosines of the row, then of the column; and (dimensions / 4), the waves' speed
        in radians a patch.
    """
    waves = torch.linspace(math.pi / max(rows, columns), FASTEST, dimensions // 4)
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * waves for place in (down, right)]  # each (P, dimensions / 4)
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1), waves


def step_matrix(waves: Tensor, down: int, right: int) -> Tensor:
    """The matrix that turns the code of a patch into that of a neighbor: (dimensions, dimensions)."""
    count = len(waves)
    matrix = torch.zeros(4 * count, 4 * count)
    place = torch.arange(count)
    for first, step in ((0, down), (2 * count, right)):
        sine, cosine = first + place, first + count + place
        matrix[sine, sine] = matrix[cosine, cosine] = (waves * step).cos()
        matrix[sine, cosine] = (waves * step).sin()
        matrix[cosine, sine] = -(waves * step).sin()
    return matrix


def _draw(tensor: Tensor, generator: torch.Generator, deviation: float) -> None:
    tensor.copy_(torch.empty(tensor.shape).normal_(0, deviation, generator=generator))
