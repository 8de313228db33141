"""First weights that look at neighbors."""

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
    made = new_classifier(config, generator)
    local_init_(made, generator)
    return made.eval()


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 1), (2, -3)])
def test_a_step_turns_the_code_of_a_patch_into_that_of_its_neighbor(down: int, right: int) -> None:
    codes, waves = position_code(GRID, GRID + 2, 16)
    codes = codes.view(GRID, GRID + 2, 16)
    moved = codes[3, 4] @ step_matrix(waves, down, right).T
    torch.testing.assert_close(moved, codes[3 + down, 4 + right])


@pytest.mark.parametrize("variant", ["deit-tiny-distilled-patch16-224", "deit-tiny-patch16-224"])
def test_each_head_of_the_first_layer_looks_at_one_neighbor(variant: str) -> None:
    made = model(variant)
    prefix = made.config.PREFIX_TOKENS
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention = made(images, output_attentions=True).attentions[0]  # (B, H, N, N)
    places = set()
    for head in range(4):
        steps = set()
        for row in range(2, GRID - 2):
            for column in range(2, GRID - 2):
                seen = int(attention[0, head, prefix + row * GRID + column].argmax()) - prefix
                steps.add((seen // GRID - row, seen % GRID - column))
        assert len(steps) == 1, "wherever it stands, a head looks the same way"
        (step,) = steps
        assert max(map(abs, step)) <= 1
        places.add(step)
    assert len(places) == 4
    assert attention[0, :, prefix + 3 * GRID + 3].max(dim=-1).values.min() > 0.5


def test_the_tokens_before_the_patches_look_at_all_of_them_alike() -> None:
    made = model()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention = made(images, output_attentions=True).attentions[0]
    even = 1 / made.config.tokens
    assert attention[0, :, :2].max() < 2 * even


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    one, same, other = (model(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["deit.layers.0.attention.qkv.weight"], other["deit.layers.0.attention.qkv.weight"])


def test_a_head_too_narrow_for_a_code_leaves_the_weights_as_they_are() -> None:
    config = variant_config(
        "deit-tiny-patch16-224", image_size=32, patch_size=8, hidden_size=12, intermediate_size=48, num_attention_heads=4
    )
    made = new_classifier(config, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    local_init_(made, torch.Generator().manual_seed(1))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
