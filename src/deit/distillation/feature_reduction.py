"""Reduces a teacher's feature maps, so that a student learns what they have in common, and so that they can be cached.

A feature map is pooled to at most ``MAX_GRID`` rows and columns. Its standardized channels are projected on their leading
principal components, which are rotated until all have the same variance (PHI-S, arXiv 2410.01680), scaled to a variance of 1,
and quantized to int8. The rotation lets every direction of the feature space weigh as much as in the feature map itself;
without it, weak components would count as much as strong ones.

The result is a feature map with fewer channels and a coarser grid, each channel of which has mean 0 and variance 1 on the
samples that the reduction was fitted to.

Shapes: B images, C channels of a feature map, r channels of the reduced one, h rows, w columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.checkpoints.tensors import open_safetensors
from deit.checkpoints.weights import serialize_tensors
from deit.errors import CheckpointError, DataError, NonFiniteOutputError, TeacherError

Shape = tuple[int, int, int]  # (r, h, w)

FITTED_SAMPLES = 128  # the first samples of view 0, which a reduction is fitted to
MAX_GRID = 16  # rows and columns
COARSE_GRID = 8
COARSE_CHANNELS = 64  # up to COARSE_GRID rows and columns
FINE_CHANNELS = 16  # with more; early feature maps have many positions and need few channels
LEVELS = 127  # the largest int8 value
CLIP = 6.0  # standard deviations; feature distillation clamps its targets there, too
EPSILON = 1e-5  # as in feature distillation
MAX_SCALE = 1e4  # far above the scale of any standardized channel


def reduced_shape(channels: int, height: int, width: int) -> Shape:
    """Returns the shape (r, h, w) that a feature map (C, height, width) is reduced to."""
    rows, columns = min(height, MAX_GRID), min(width, MAX_GRID)
    limit = COARSE_CHANNELS if max(rows, columns) <= COARSE_GRID else FINE_CHANNELS
    return min(channels, limit), rows, columns


def row_bytes(shapes: Sequence[Shape]) -> int:
    """Returns the bytes per image of reduced feature maps of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


class MapReduction(nn.Module):
    """The reduction of one feature map.

    Args:
        shape: shape (r, h, w) of the reduced feature map.
        mean: mean of each channel (C,).
        basis: projection (C, r) of the centered channels.
        scales: width of a quantization step of each projected channel (r,), positive: ``CLIP / LEVELS`` of its standard
            deviation.
    """

    mean: Tensor
    basis: Tensor
    scales: Tensor

    def __init__(self, shape: Shape, mean: Tensor, basis: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.shape = shape
        for name, tensor in {"mean": mean, "basis": basis, "scales": scales}.items():
            self.register_buffer(name, tensor.float())

    @property
    def deviations(self) -> Tensor:
        """Standard deviation of each projected channel (r,), by which it is divided."""
        return self.scales * (LEVELS / CLIP)

    @property
    def kept_variance(self) -> float:
        """Share of the variance of the standardized channels that the components have, in 0..1."""
        return min(self.deviations.square().sum().item() / len(self.mean), 1.0)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Returns the reduced feature map (B, r, h, w), channels last, of a feature map (B, C, height, width)."""
        channels, height, width = self.shape
        basis = self.basis / self.deviations
        bias = -self.mean @ basis
        dtype = feature_map.dtype
        projected = F.linear(_positions(feature_map, self.shape), basis.T.to(dtype), bias.to(dtype))  # (B h w, r)
        return projected.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def encode(self, feature_map: Tensor) -> Tensor:
        """Reduces a feature map (B, C, height, width) to rows of bytes (B, h w r), channels last, int8."""
        projected = (_positions(feature_map, self.shape).float() - self.mean) @ self.basis  # (B h w, r)
        levels = (projected / self.scales).round().clamp(-LEVELS, LEVELS)
        return levels.to(torch.int8).reshape(len(feature_map), -1)

    def decode(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the reduced feature map (B, r, h, w) of rows (B, h w r), in channels-last memory format."""
        channels, height, width = self.shape
        levels = rows.view(-1, height, width, channels).to(dtype)
        return (levels * (CLIP / LEVELS)).permute(0, 3, 1, 2)


class FeatureReduction(nn.Module):
    """The reduction of all feature maps of a teacher, first to last."""

    def __init__(self, maps: Sequence[MapReduction]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    @property
    def reductions(self) -> list[MapReduction]:
        """The reduction of each feature map."""
        return list(self.maps)  # type: ignore[arg-type]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape (r, h, w) of each reduced feature map."""
        return tuple(reduction.shape for reduction in self.reductions)

    @classmethod
    def fit(cls, batches: Iterable[Sequence[Tensor]]) -> Self:
        """Computes the principal components of feature maps.

        Args:
            batches: the feature maps of some images, in batches: each a list of (B, C, height, width), first to last.

        Raises:
            DataError: there are no images.
            NonFiniteOutputError: a value is not finite.
        """
        moments: list[_Moments] = []
        for feature_maps in batches:
            moments = moments or [_Moments(*features.shape[1:]) for features in feature_maps]
            for moment, features in zip(moments, feature_maps, strict=True):
                moment.add(features)
        if not moments:
            raise DataError("None of the first training images is readable", "`deit data check` lists the unreadable files")
        return cls([moment.reduction() for moment in moments])

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Returns the reduced feature maps, each (B, r, h, w), of feature maps (B, C, height, width)."""
        return [reduction(features) for reduction, features in zip(self.reductions, feature_maps, strict=True)]

    def encode(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Reduces feature maps, each (B, C, height, width), to one row of bytes per image: (B, n) int8."""
        pairs = zip(self.reductions, feature_maps, strict=True)
        return torch.cat([reduction.encode(features) for reduction, features in pairs], dim=1)

    def decode(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Returns the reduced feature maps of rows of bytes.

        The error of a value is at most ``CLIP / LEVELS / 2``, unless it was beyond ``CLIP``.

        Args:
            rows: (B, n) int8.
            dtype: of the feature maps.

        Returns:
            The feature maps, each (B, r, h, w) in channels-last memory format.
        """
        parts = torch.split(rows, [math.prod(shape) for shape in self.shapes], dim=1)
        pairs = zip(self.reductions, parts, strict=True)
        return [reduction.decode(part.contiguous(), dtype) for reduction, part in pairs]

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file that :meth:`load` reads."""
        return serialize_tensors(self.state_dict())

    @classmethod
    def load(cls, path: Path, shapes: Sequence[Shape]) -> Self:
        """Reads a reduction.

        Args:
            path: a safetensors file.
            shapes: the shape (r, h, w) of each reduced feature map.

        Raises:
            TeacherError: the file is missing, or does not hold a reduction to these shapes.
        """
        invalid = TeacherError(f"{path} is missing or damaged", "copy it again, or rebuild the cache")
        names = [[f"maps.{index}.{name}" for name in ("mean", "basis", "scales")] for index in range(len(shapes))]
        try:
            file = open_safetensors(path)
            if set(file.entries) != set(itertools.chain(*names)):
                raise invalid
            for (channels, _, _), group in zip(shapes, names, strict=True):
                mean, basis, scales = (file.entries[name].shape for name in group)
                if len(mean) != 1 or basis != (*mean, channels) or scales != (channels,):
                    raise invalid
            tensors = file.read(file.entries)
        except CheckpointError as error:
            raise invalid from error
        if any(tensor.dtype != torch.float32 or not torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise invalid
        maps = [MapReduction(shape, *(tensors[name] for name in group)) for shape, group in zip(shapes, names, strict=True)]
        if any((one.scales <= 0).any() or (one.scales > MAX_SCALE).any() for one in maps):
            raise invalid
        return cls(maps)


class _Moments:
    """Sums over the positions of a feature map, in float64.

    Args:
        channels: C.
        height: rows of the feature map.
        width: columns of the feature map.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self._shape = reduced_shape(channels, height, width)
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, feature_map: Tensor) -> None:
        """Adds a feature map (B, C, height, width)."""
        positions = _positions(feature_map, self._shape).cpu().double()  # (B h w, C)
        self._count += len(positions)
        self._sum += positions.sum(dim=0)
        self._products += positions.T @ positions

    def reduction(self) -> MapReduction:
        """Returns the reduction to the leading principal components.

        Raises:
            NonFiniteOutputError: a value is not finite.
        """
        if not torch.isfinite(self._products).all():
            raise NonFiniteOutputError("The teacher's feature maps hold NaN or infinite values", "pass another teacher")
        channels = self._shape[0]
        mean = self._sum / self._count
        covariance = self._products / self._count - mean[:, None] * mean
        weights = (covariance.diagonal().clamp(min=0) + EPSILON).rsqrt()
        variances, vectors = torch.linalg.eigh(covariance * weights[:, None] * weights)  # ascending
        variances, vectors = variances[-channels:].clamp(min=0), vectors[:, -channels:]
        basis = weights[:, None] * (vectors @ _equalizing_rotation(variances))
        # Activations after ReLU have their peaks above the mean, and so do the targets that feature distillation clamps.
        basis = torch.where(basis.sum(dim=0) < 0, -basis, basis)
        scale = CLIP * (variances.mean() + EPSILON).sqrt() / LEVELS
        return MapReduction(self._shape, mean, basis, scale.expand(channels).contiguous())


def _positions(feature_map: Tensor, shape: Shape) -> Tensor:
    """Pools a feature map (B, C, height, width) and returns its positions, (B h w, C)."""
    pooled = feature_map if feature_map.shape[2:] == shape[1:] else F.adaptive_avg_pool2d(feature_map, shape[1:])
    return pooled.permute(0, 2, 3, 1).reshape(-1, feature_map.shape[1])


def _equalizing_rotation(variances: Tensor) -> Tensor:
    """Returns a rotation (r, r) of uncorrelated components, after which each has the mean of their variances.

    Each step rotates the components of the largest and the smallest variance, so that one of them gets the mean. The other is
    still uncorrelated with all components that are left.
    """
    rotation, left = torch.eye(len(variances), dtype=variances.dtype), variances.tolist()
    mean = sum(left) / len(left)
    indices = list(range(len(left)))
    while len(indices) > 1:
        high, low = max(indices, key=left.__getitem__), min(indices, key=left.__getitem__)
        if not left[high] > mean > left[low]:
            break
        angle = math.atan(math.sqrt((left[high] - mean) / (mean - left[low])))
        first, second = rotation[:, high].clone(), rotation[:, low].clone()
        rotation[:, high] = math.cos(angle) * first + math.sin(angle) * second
        rotation[:, low] = math.cos(angle) * second - math.sin(angle) * first
        left[low] += left[high] - mean
        indices.remove(high)
    return rotation
