"""Feature distillation from a teacher's feature maps to patch tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.feature_reduction import FeatureReduction
from deit.models.modeling import select_patches
from tests.helpers import noise, tiny_vit

GRID = (4, 4)  # of tiny_vit: 32 pixels in patches of 8


def _module(*shapes: tuple[int, int, int], layers: int = 4, seed: int = 0) -> FeatureDistillation:
    return FeatureDistillation(tiny_vit(num_hidden_layers=layers), shapes, seed)


def _states(layers: int, width: int, prefix: int = 1) -> list[Tensor]:
    return [noise(2, prefix + 16, width, seed=layer) for layer in range(layers + 1)]


@pytest.mark.parametrize(
    ("layers", "maps", "expected"),
    [(6, 5, [1, 2, 3, 4, 6]), (4, 4, [1, 2, 3, 4]), (12, 4, [3, 6, 9, 12]), (2, 5, [1, 1, 1, 1, 2]), (3, 1, [3])],
)
def test_feature_maps_are_distributed_over_the_layers(layers: int, maps: int, expected: list[int]) -> None:
    assert _module(*[(3, 4, 4)] * maps, layers=layers).layers == expected


def test_fine_feature_maps_give_four_points_per_patch() -> None:
    module = _module((3, 9, 8), (5, 7, 8), (2, 1, 1))
    assert module.points == [2, 1, 1]
    assert [module.get_submodule(f"heads.{index}.1").out_features for index in range(3)] == [12, 5, 2]


def test_loss_matches_its_definition() -> None:
    module, width = _module((3, 8, 8), layers=2), tiny_vit().hidden_size
    states, features = _states(2, width, prefix=2), 5 * noise(2, 3, 8, 8)
    expected = 0.0
    for image in range(2):
        for row in range(4):
            for column in range(4):
                predicted = module.heads[0](states[2][image, 2 + 4 * row + column])
                points = features[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                target = points.clamp(-4, 6).permute(1, 2, 0).flatten()
                expected += F.mse_loss(predicted, target).item() / 32
    assert module(states, [features]).item() == pytest.approx(expected, rel=1e-4)


def _select(states: Tensor, kept: Tensor) -> Tensor:
    return torch.cat([states[:, :1], select_patches(states[:, 1:], kept)], dim=1)


def test_dropped_patches_are_left_out() -> None:
    module, width = _module((3, 8, 8), (5, 4, 4)), tiny_vit().hidden_size
    states, maps = _states(4, width), [noise(2, 3, 8, 8), noise(2, 5, 4, 4)]
    kept = torch.tensor([[0, 7, 9], [3, 4, 15]])
    loss = module([_select(state, kept) for state in states], maps, kept)
    dropped = torch.ones(2, 17, dtype=torch.bool).scatter(1, kept + 1, False)[..., None]
    changed = [torch.where(dropped, -state.flip(2), state) for state in states]
    assert not torch.allclose(module(changed, maps), module(states, maps))
    assert torch.equal(module([_select(state, kept) for state in changed], maps, kept), loss)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(module(states, maps, everything), module(states, maps))


def test_loss_is_independent_of_feature_map_scale() -> None:
    shapes = ((3, 13, 13), (4, 5, 6))
    config, states = tiny_vit(num_hidden_layers=4), _states(4, tiny_vit().hidden_size)
    maps = [noise(2, *shape, seed=place) for place, shape in enumerate(shapes)]
    losses = []
    for changed in (maps, [100 * one - 3 for one in maps]):
        reduction = FeatureReduction.fit([changed])
        losses.append(FeatureDistillation(config, reduction.shapes, 0, reduction)(states, changed))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_loss_of_an_image_is_independent_of_its_batch() -> None:
    module, states, maps = _module((3, 8, 8)), _states(4, tiny_vit().hidden_size), [noise(2, 3, 8, 8)]
    alone = [module([state[index : index + 1] for state in states], [maps[0][index : index + 1]]) for index in range(2)]
    torch.testing.assert_close(torch.stack(alone).mean(), module(states, maps))


def test_loss_of_constant_feature_maps_is_finite() -> None:
    constant = [torch.ones(1, 2, 1, 1)]
    reduction = FeatureReduction.fit([constant])
    module = FeatureDistillation(tiny_vit(num_hidden_layers=4), reduction.shapes, 0, reduction)
    assert torch.isfinite(module([state[:1] for state in _states(4, tiny_vit().hidden_size)], constant))


def test_initial_weights_depend_only_on_the_seed() -> None:
    one, same, other = (_module((3, 4, 4), seed=seed).heads[0][1].weight for seed in (1, 1, 2))  # type: ignore[index]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_feature_maps_are_reduced_as_saved_with_the_weights() -> None:
    maps = [noise(2, 90, 8, 8), noise(2, 5, 4, 4, seed=1)]
    reduction = FeatureReduction.fit([maps, [features.flip(0) for features in maps]])
    assert reduction.shapes == ((64, 8, 8), (5, 4, 4))
    config, states = tiny_vit(num_hidden_layers=4), _states(4, tiny_vit().hidden_size)
    module = FeatureDistillation(config, reduction.shapes, 0, reduction)
    expected = _module(*reduction.shapes)(states, reduction(maps))
    assert torch.equal(module(states, maps), expected)
    assert not any(name.startswith("reduction") for name, _ in module.named_parameters())
    other = FeatureDistillation(config, reduction.shapes, 1, FeatureReduction.fit([[one.square() for one in maps]]))
    assert not torch.allclose(other(states, maps), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(states, maps), expected)
