"""What patches learn from a teacher's maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.distillation.feature_distillation import Hints
from tests.helpers import noise, tiny_vit

GRID = (4, 4)  # of tiny_vit: 32 pixels in patches of 8


def _hints(*shapes: tuple[int, int, int], layers: int = 4, seed: int = 0) -> Hints:
    return Hints(tiny_vit(num_hidden_layers=layers), shapes, seed)


def _states(layers: int, width: int, prefix: int = 1) -> list[Tensor]:
    return [noise(2, prefix + 16, width, seed=layer) for layer in range(layers + 1)]


@pytest.mark.parametrize(
    ("layers", "maps", "expected"),
    [(6, 5, [1, 2, 3, 4, 6]), (4, 4, [1, 2, 3, 4]), (12, 4, [3, 6, 9, 12]), (2, 5, [1, 1, 1, 1, 2]), (3, 1, [3])],
)
def test_maps_are_spread_over_the_layers(layers: int, maps: int, expected: list[int]) -> None:
    assert _hints(*[(3, 4, 4)] * maps, layers=layers).layers == expected


def test_a_fine_map_gives_a_patch_its_four_points() -> None:
    hints = _hints((3, 9, 8), (5, 7, 8), (2, 1, 1))
    assert hints.points == [2, 1, 1]
    assert [hints.get_submodule(f"maps.{place}.1").out_features for place in range(3)] == [12, 5, 2]


def test_the_distance_is_that_of_the_definition() -> None:
    hints, width = _hints((3, 8, 8), layers=2), tiny_vit().hidden_size
    states, taught = _states(2, width, prefix=2), 5 * noise(2, 3, 8, 8) + 7
    mean, deviation = taught.mean(dim=(0, 2, 3)), taught.std(dim=(0, 2, 3), correction=0)
    expected = 0.0
    for image in range(2):
        for row in range(4):
            for column in range(4):
                said = hints.maps[0](states[2][image, 2 + 4 * row + column])
                points = taught[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                wanted = ((points - mean[:, None, None]) / deviation[:, None, None]).clamp(-4, 6)
                expected += F.mse_loss(said, wanted.permute(1, 2, 0).flatten()).item() / 32
    assert hints(states, [taught]).item() == pytest.approx(expected, rel=1e-4)


def test_maps_of_any_size_and_scale_will_do() -> None:
    shapes = ((3, 13, 13), (4, 5, 6), (2, 1, 1))
    hints, states = _hints(*shapes), _states(4, tiny_vit().hidden_size)
    maps = [noise(2, *shape, seed=place) for place, shape in enumerate(shapes)]
    scaled = [100 * one - 3 for one in maps]
    torch.testing.assert_close(hints(states, maps), hints(states, scaled), rtol=1e-3, atol=1e-4)
    assert torch.isfinite(hints(states, [torch.zeros_like(one) for one in maps]))
    lone = [state[:1] for state in states]
    assert torch.isfinite(_hints((2, 1, 1))(lone, [torch.ones(1, 2, 1, 1)]))


def test_the_seed_alone_draws_the_first_weights() -> None:
    one, same, other = (_hints((3, 4, 4), seed=seed).maps[0][1].weight for seed in (1, 1, 2))  # type: ignore[index]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
