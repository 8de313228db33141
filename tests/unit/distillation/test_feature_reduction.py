"""Reduction of feature maps: shapes, quantization error, equal variances, and damaged files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from deit.distillation.feature_reduction import (
    CLIP,
    COARSE_CHANNELS,
    COARSE_GRID,
    FINE_CHANNELS,
    LEVELS,
    MAX_GRID,
    FeatureReduction,
    reduced_shape,
    row_bytes,
)
from deit.errors import DataError, NonFiniteOutputError, TeacherError
from tests.helpers import noise

SHAPES = ((6, 20, 18), (9, 5, 4))


def _maps(images: int, seed: int = 0, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> list[Tensor]:
    """Feature maps with correlated channels of unequal variance, after a ReLU."""
    maps = []
    for index, (channels, height, width) in enumerate(shapes):
        mixing = noise(channels, channels, seed=100 + index) / torch.arange(1, channels + 1)
        values = torch.einsum("dc,bchw->bdhw", mixing, noise(images, channels, height, width, seed=seed + index))
        maps.append(values.relu().to(memory_format=torch.channels_last))
    return maps


def _fitted(shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> FeatureReduction:
    return FeatureReduction.fit(_maps(4, seed=seed, shapes=shapes) for seed in (10, 20, 30))


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 300))
def test_reduced_shapes_are_small(channels: int, height: int, width: int) -> None:
    reduced, rows, columns = reduced_shape(channels, height, width)
    assert 1 <= reduced <= channels
    assert (rows, columns) == (min(height, MAX_GRID), min(width, MAX_GRID))
    assert reduced * rows * columns <= max(FINE_CHANNELS * MAX_GRID**2, COARSE_CHANNELS * COARSE_GRID**2)


maps_shapes = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(maps_shapes, min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_decoded_values_are_within_half_a_level(shapes: list[tuple[int, int, int]], images: int, seed: int) -> None:
    maps = _maps(images, seed=seed, shapes=tuple(shapes))
    reduction = FeatureReduction.fit([maps])
    rows = reduction.encode(maps)
    assert rows.dtype == torch.int8
    assert rows.shape == (images, row_bytes(reduction.shapes))
    for one, feature_map, decoded in zip(reduction.reductions, maps, reduction.decode(rows), strict=True):
        assert decoded.shape[1:] == reduced_shape(*feature_map.shape[1:])
        assert decoded.is_contiguous(memory_format=torch.channels_last)
        pooled = torch.nn.functional.adaptive_avg_pool2d(feature_map, one.shape[1:])
        exact = torch.einsum("cr,bchw->brhw", one.basis / one.deviations, pooled - one.mean[:, None, None])
        error = (decoded - exact.clamp(-CLIP, CLIP)).abs()
        assert (error <= 0.51 * CLIP / LEVELS + 1e-4).all()


def test_all_channels_have_a_variance_of_one_and_are_uncorrelated_with_nothing_lost() -> None:
    maps = [torch.cat(parts) for parts in zip(*(_maps(4, seed=seed) for seed in (10, 20, 30)), strict=True)]
    reduction = _fitted()
    for reduced in (reduction(maps), reduction.decode(reduction.encode(maps))):
        for one in reduced:
            torch.testing.assert_close(one.std(dim=(0, 2, 3)), torch.ones(one.shape[1]), rtol=0.03, atol=0)
            assert one.mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert reduction.reductions[1].kept_variance == pytest.approx(1, abs=1e-3)


def test_distances_between_standardized_maps_are_kept_if_no_channel_is_left_out() -> None:
    maps = [torch.cat(parts) for parts in zip(*(_maps(4, seed=seed) for seed in (10, 20, 30)), strict=True)]
    decoded = _fitted().decode(_fitted().encode(maps))[1].permute(0, 2, 3, 1).reshape(-1, 9)
    positions = maps[1].permute(0, 2, 3, 1).reshape(-1, 9)
    standardized = (positions - positions.mean(dim=0)) / positions.std(dim=0, correction=0)
    kept, expected = torch.pdist(decoded), torch.pdist(standardized)
    error = ((kept - expected).abs() / expected.mean()).quantile(0.99)  # rare peaks are clipped
    assert error < 0.05


def test_leading_components_keep_what_is_shared() -> None:
    shared = noise(8, 1, 20, 20)
    maps = [shared * noise(40, 1, 1, seed=1) + 1e-3 * noise(8, 40, 20, 20, seed=2)]
    reduction = FeatureReduction.fit([maps])
    [decoded] = reduction.decode(reduction.encode(maps))
    pooled = torch.nn.functional.adaptive_avg_pool2d(shared, MAX_GRID).flatten()
    correlations = [abs(torch.corrcoef(torch.stack([pooled, channel.flatten()]))[0, 1]) for channel in decoded.unbind(1)]
    assert decoded.shape[1] == FINE_CHANNELS
    assert 0.98 < reduction.reductions[0].kept_variance < 1
    assert min(correlations) > 0.99  # the rotation has distributed the one strong component over all channels


def test_fit_and_encoding_are_deterministic() -> None:
    one, two = _fitted(), _fitted()
    assert one.to_bytes() == two.to_bytes()
    assert torch.equal(one.encode(_maps(3)), two.encode(_maps(3)))


def test_decoding_in_bfloat16_differs_by_its_rounding() -> None:
    reduction = _fitted()
    rows = reduction.encode(_maps(3))
    for exact, rounded in zip(reduction.decode(rows), reduction.decode(rows, torch.bfloat16), strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=2**-7, atol=1e-6)


def test_constant_maps_and_every_byte_decode_to_finite_values() -> None:
    constant = [torch.full((2, 3, 4, 4), 7.0)]
    reduction = FeatureReduction.fit([constant])
    assert not reduction.encode(constant).any()
    rows = torch.arange(-128, 128).to(torch.int8).repeat(1, 48)[:, :48]
    assert all(torch.isfinite(decoded).all() for decoded in reduction.decode(rows))


def test_nothing_and_non_finite_values_cannot_be_fitted() -> None:
    with pytest.raises(DataError, match="readable"):
        FeatureReduction.fit([])
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite"):
        FeatureReduction.fit([[torch.full((2, 3, 4, 4), math.nan)]])


def test_file_is_read_back(tmp_path: Path) -> None:
    reduction = _fitted()
    (tmp_path / "features.safetensors").write_bytes(reduction.to_bytes())
    loaded = FeatureReduction.load(tmp_path / "features.safetensors", reduction.shapes)
    assert torch.equal(loaded.encode(_maps(3)), reduction.encode(_maps(3)))
    for shapes in (reduction.shapes[:1], (*reduction.shapes, (1, 1, 1)), ((5, 16, 16), reduction.shapes[1])):
        with pytest.raises(TeacherError, match="missing or damaged"):
            FeatureReduction.load(tmp_path / "features.safetensors", shapes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maps.0.scales", torch.zeros(6)),
        ("maps.0.scales", torch.full((6,), 1e30)),
        ("maps.0.scales", torch.full((6,), math.nan)),
        ("maps.0.scales", torch.ones(6, dtype=torch.int32)),
        ("maps.0.mean", torch.full((6,), math.inf)),
        ("maps.0.mean", torch.zeros(7)),
        ("maps.0.mean", torch.zeros(())),
        ("maps.1.basis", torch.zeros(8, 9)),
        ("maps.1.basis", torch.zeros(81)),
        ("more", torch.zeros(1)),
    ],
)
def test_forged_file_is_rejected(tmp_path: Path, name: str, value: Tensor) -> None:
    reduction, path = _fitted(), tmp_path / "features.safetensors"
    save_file({**reduction.state_dict(), name: value}, path)
    with pytest.raises(TeacherError, match="missing or damaged"):
        FeatureReduction.load(path, reduction.shapes)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, None])
def test_file_of_another_kind_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "features.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherError, match="missing or damaged"):
        FeatureReduction.load(path, ((3, 4, 4),))
