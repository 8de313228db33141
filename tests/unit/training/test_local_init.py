"""Local initialization."""

from __future__ import annotations

import pytest
import torch

from deit.config import variant_config
from deit.models.modeling import TransformerClassifier, new_classifier
from deit.training.local_init import local_init_, position_code, step_matrix

GRID = 8


def model(variant: str = "deit-tiny-distilled-patch16-224", heads: int = 4, seed: int = 0) -> TransformerClassifier:
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": heads}
    config = variant_config(variant, image_size=32, patch_size=4, **shape, id2label={0: "a", 1: "b"})
    generator = torch.Generator().manual_seed(seed)
    network = new_classifier(config, generator)
    local_init_(network, generator)
    return network.eval()


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 1), (2, -3)])
def test_step_matrix_maps_a_code_to_that_of_the_neighbor(down: int, right: int) -> None:
    codes, frequencies = position_code(GRID, GRID + 2, 16)
    codes = codes.view(GRID, GRID + 2, 16)
    moved = codes[3, 4] @ step_matrix(frequencies, down, right).T
    torch.testing.assert_close(moved, codes[3 + down, 4 + right])


@pytest.mark.parametrize("variant", ["deit-tiny-distilled-patch16-224", "deit-tiny-patch16-224"])
def test_each_head_attends_to_one_neighbor(variant: str) -> None:
    network = model(variant)
    prefix = network.config.PREFIX_TOKENS
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention = network(images, output_attentions=True).attentions[0]  # (B, H, N, N)
    neighbors = set()
    for head in range(4):
        steps = set()
        for row in range(2, GRID - 2):
            for column in range(2, GRID - 2):
                attended = int(attention[0, head, prefix + row * GRID + column].argmax()) - prefix
                steps.add((attended // GRID - row, attended % GRID - column))
        assert len(steps) == 1, "a head attends in the same direction at every position"
        (step,) = steps
        assert max(map(abs, step)) <= 1
        neighbors.add(step)
    assert len(neighbors) == 4
    assert attention[0, :, prefix + 3 * GRID + 3].max(dim=-1).values.min() > 0.5


def test_class_and_distillation_tokens_attend_evenly() -> None:
    network = model()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention = network(images, output_attentions=True).attentions[0]
    even = 1 / network.config.tokens
    assert attention[0, :, :2].max() < 2 * even


def test_weights_depend_on_the_seed() -> None:
    first, same, other = (model(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["deit.layers.0.attention.qkv.weight"], other["deit.layers.0.attention.qkv.weight"])


def test_narrow_heads_leave_the_weights_unchanged() -> None:
    config = variant_config(
        "deit-tiny-patch16-224", image_size=32, patch_size=8, hidden_size=12, intermediate_size=48, num_attention_heads=4
    )
    network = new_classifier(config, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    local_init_(network, torch.Generator().manual_seed(1))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
