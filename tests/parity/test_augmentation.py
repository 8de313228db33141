"""Augmentation against timm, torchvision and DeiT III's code: equal pixels for equal draws, equal distributions of draws."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment
from torchvision.transforms import ColorJitter, Grayscale, RandomCrop
from torchvision.transforms import functional as pillow_functional
from torchvision.transforms.v2 import functional

from deit.data.transforms.augment import Augmentation, TrainTransform, color_jitter, erase, three_augment
from deit.data.transforms.crops import crop_and_resize, padded_crop, random_resized_crop_box, simple_random_crop
from deit.data.transforms.randaugment import OPERATIONS, RandAugment, draw_operations
from deit.rng import RngStream, generator
from tests.helpers import pattern
from tests.parity.distributions import assert_same_distribution

data: Any = timm.data  # untyped
timm_crop = data.transforms.RandomResizedCropAndInterpolation.get_params
BICUBIC = functional.InterpolationMode.BICUBIC
FILL = (124, 116, 104)
HPARAMS = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, RngStream.AUGMENT)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@dataclass
class Scripted:
    """A random generator that returns given numbers."""

    numbers: list[float]
    order: list[int] = field(default_factory=list)

    def uniform(self, _low: float, _high: float) -> float:
        return self.numbers.pop(0)

    def integers(self, *_args: Any, **_named: Any) -> int:
        return int(self.numbers.pop(0))

    def permutation(self, _count: int) -> list[int]:
        return self.order


def scripted(*numbers: float, order: tuple[int, ...] = ()) -> Any:
    return Scripted(list(numbers), list(order))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(120, 90), (50, 400)])
def test_distribution_of_random_resized_crops_matches_timm(size: tuple[int, int]) -> None:
    image, theirs = Image.new("RGB", size), []
    for _ in range(4000):
        top, left, height, width = timm_crop(image, (0.08, 1.0), (3 / 4, 4 / 3))
        theirs.append((left, top, left + width, top + height))
    ours = [random_resized_crop_box(*size, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed)) for seed in range(4000)]
    for ours_values, theirs_values in zip(box_statistics(ours), box_statistics(theirs), strict=True):
        assert_same_distribution(ours_values, theirs_values)


def box_statistics(boxes: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """Returns areas, aspect ratios and the four edges."""
    left, top, right, bottom = np.array(boxes).T
    return [(right - left) * (bottom - top), (right - left) / (bottom - top), left, top, right, bottom]


def test_fallback_center_crop_matches_timm() -> None:
    for size in ((1000, 10), (10, 1000), (333, 7)):
        top, left, height, width = timm_crop(Image.new("RGB", size), (1, 1), (3 / 4, 4 / 3))
        box = random_resized_crop_box(*size, (1, 1), (3 / 4, 4 / 3), rng())
        assert box == (left, top, left + width, top + height)


BOXES = [(3, 5, 200, 190), (0, 0, 301, 207), (40, 30, 71, 60), (100, 7, 140, 200)]


@pytest.mark.parametrize("box", BOXES)
def test_resized_crop_matches_torchvision(box: tuple[int, int, int, int]) -> None:
    image = pattern(301, 207)
    left, top, right, bottom = box
    expected = functional.resized_crop(tensor(image), top, left, bottom - top, right - left, [56, 64], BICUBIC, antialias=True)
    assert np.array_equal(crop_and_resize(np.asarray(image), box, 56, 64), expected.numpy())


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_resized_crop_is_within_the_documented_bound_of_timm(name: str) -> None:
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    differences = []
    for seed in range(30):
        box = random_resized_crop_box(*image.size, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed))
        theirs = np.asarray(image.crop(box).resize((224, 224), Image.Resampling.BICUBIC), int).transpose(2, 0, 1)
        differences.append(np.abs(crop_and_resize(np.asarray(image), box, 224, 224) - theirs))
    assert np.mean(differences) < 0.1
    assert np.max(differences) <= 24


@pytest.mark.parametrize("size", [(50, 40), (40, 61), (33, 33), (9, 20)])
@pytest.mark.parametrize("position", [(0, 0), (3, 5), (8, 8)])
def test_simple_random_crop_matches_deit_3(size: tuple[int, int], position: tuple[int, int]) -> None:
    image = pattern(*size)
    whole = functional.pad(functional.resize(tensor(image), [24], BICUBIC, antialias=True), [4], padding_mode="reflect")
    ours = simple_random_crop(np.asarray(image), 24, 24, scripted(*position))
    assert np.array_equal(ours, functional.crop(whole, *position, 24, 24).numpy())


def test_distribution_of_simple_random_crops_matches_torchvision() -> None:
    image = pattern(50, 40)  # 30 x 24 when it is resized, 38 x 32 with its padding
    theirs = [RandomCrop.get_params(torch.zeros(3, 32, 38), (24, 24))[:2] for _ in range(3000)]
    ours: list[tuple[int, int]] = []

    class Recorder:
        def __init__(self, seed: int) -> None:
            self.rng = rng(seed)
            self.drawn: list[int] = []

        def integers(self, stop: int) -> int:
            offset = int(self.rng.integers(stop))
            self.drawn.append(offset)
            return offset

    for seed in range(3000):
        recorder: Any = Recorder(seed)
        simple_random_crop(np.asarray(image), 24, 24, recorder)
        ours.append(tuple(recorder.drawn))
    for axis in range(2):
        assert_same_distribution([offsets[axis] for offsets in ours], [offsets[axis] for offsets in theirs])


@pytest.mark.parametrize("position", [(0, 0), (3, 5), (8, 8)])
def test_padded_crop_matches_torchvision(position: tuple[int, int]) -> None:
    class FixedPosition(Scripted):
        def integers(self, *_args: Any, **_named: Any) -> Any:
            return np.array([position[1], position[0]])

    image = pattern(32, 32)
    ours = padded_crop(np.asarray(image), 32, 32, FixedPosition([]))  # type: ignore[arg-type]
    assert np.array_equal(ours, functional.crop(functional.pad(tensor(image), [4]), *position, 32, 32).numpy())


def test_operations_are_the_increasing_set_of_timm() -> None:
    assert len(OPERATIONS) == len(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("index", range(len(OPERATIONS)), ids=auto_augment._RAND_INCREASING_TRANSFORMS)
@pytest.mark.parametrize("magnitude", [0.0, 2.7, 5.0, 9.0, 9.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_operation_matches_timm(monkeypatch: pytest.MonkeyPatch, index: int, magnitude: float, sign: int) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    theirs = data.auto_augment.AugmentOp(auto_augment._RAND_INCREASING_TRANSFORMS[index], 1.0, magnitude, HPARAMS)
    for size in ((48, 48), (31, 17), (1, 5), (200, 90), (90, 201)):
        image = pattern(*size)
        ours = OPERATIONS[index](image, magnitude / 10, sign, FILL)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs(image)))


def test_defaults_match_timm_by_name() -> None:
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))
    ours = RandAugment()
    (levels,) = {(op.magnitude, op.magnitude_std, op.prob, op.magnitude_max) for op in theirs.ops}
    assert levels == (ours.magnitude, ours.magnitude_std, 0.5, None)
    assert theirs.num_layers == ours.operations
    assert [op.name for op in theirs.ops] == auto_augment._RAND_INCREASING_TRANSFORMS


def test_distribution_of_operations_matches_timm() -> None:
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))
    drawn: list[tuple[int, float]] = []

    def record(image: Image.Image, index: int, level: float) -> Image.Image:
        drawn.append((index, level))
        return image

    for index, operation in enumerate(theirs.ops):
        operation.level_fn = lambda level, _hparams: (level / 10,)
        operation.aug_fn = lambda image, level, index=index, **_named: record(image, index, level)
    lengths = []
    for _ in range(6000):
        before = len(drawn)
        theirs(Image.new("RGB", (1, 1)))
        lengths.append(len(drawn) - before)
    samples = [draw_operations(RandAugment(), rng(seed)) for seed in range(6000)]
    ours = [(OPERATIONS.index(operation.operation), operation.level) for sample in samples for operation in sample]
    assert_same_distribution([len(sample) for sample in samples], lengths)
    for column in range(2):  # operation and level
        assert_same_distribution([row[column] for row in ours], [row[column] for row in drawn])
    counts = np.array([np.bincount([index for index, _ in rows], minlength=15) for rows in (ours, drawn)])
    assert (np.abs(counts[0] - counts[1]) < 5 * np.sqrt(counts.sum(axis=0))).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_color_jitter_matches_torchvision(order: tuple[int, int, int]) -> None:
    factors = [0.71, 1.25, 1.1]
    theirs = image = pattern(40, 30)
    steps = (pillow_functional.adjust_brightness, pillow_functional.adjust_contrast, pillow_functional.adjust_saturation)
    for index, factor in zip(order, factors, strict=True):
        theirs = steps[index](theirs, factor)
    ours = color_jitter(image, 0.3, scripted(*factors, order=order))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_distribution_of_color_jitter_matches_torchvision() -> None:
    jitter = ColorJitter(0.3, 0.3, 0.3)
    theirs = [ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None) for _ in range(3000)]
    drawn: list[list[tuple[int, float]]] = []

    class Recorder:
        def __init__(self, seed: int) -> None:
            self.rng = rng(seed)
            self.order: Any = ()
            drawn.append([])

        def permutation(self, count: int) -> Any:
            self.order = self.rng.permutation(count)
            return self.order

        def uniform(self, low: float, high: float) -> float:
            value = self.rng.uniform(low, high)
            drawn[-1].append((int(self.order[len(drawn[-1])]), value))
            return value

    for seed in range(3000):
        recorder: Any = Recorder(seed)
        color_jitter(Image.new("RGB", (1, 1)), 0.3, recorder)
    for kind in range(3):
        assert_same_distribution([dict(each)[kind] for each in drawn], [each[1 + kind] for each in theirs])
        # 3 is hue, which is not changed.
        ranks = [[step for step in each[0].tolist() if step != 3].index(kind) for each in theirs]
        assert_same_distribution([[step for step, _ in each].index(kind) for each in drawn], ranks)


def test_three_augment_matches_deit_3() -> None:
    image = pattern(40, 30)
    expected = [Grayscale(3)(image), ImageOps.solarize(image, 128), image.filter(ImageFilter.GaussianBlur(radius=1.37))]
    for choice, theirs in enumerate(expected):
        assert np.array_equal(np.asarray(three_augment(image, scripted(choice, 1.37))), np.asarray(theirs))


def test_distribution_of_three_augment_matches_deit_3() -> None:
    drawn: list[tuple[int, float]] = []

    class Recorder:
        def __init__(self, seed: int) -> None:
            self.rng = rng(seed)

        def integers(self, stop: int) -> int:
            drawn.append((int(self.rng.integers(stop)), 0.0))
            return drawn[-1][0]

        def uniform(self, low: float, high: float) -> float:
            drawn[-1] = (drawn[-1][0], self.rng.uniform(low, high))
            return drawn[-1][1]

    for seed in range(3000):
        recorder: Any = Recorder(seed)
        three_augment(Image.new("RGB", (3, 3)), recorder)
    counts = Counter(kind for kind, _ in drawn)
    assert all(counts[kind] == pytest.approx(1000, abs=130) for kind in range(3))
    assert_same_distribution([radius for kind, radius in drawn if kind == 2], [random.uniform(0.1, 2.0) for _ in range(3000)])


def erased_statistics(values: list[np.ndarray]) -> list[list[float]]:
    """Returns the erased area, its aspect ratio and its top left corner."""
    areas, aspect_ratios, tops, lefts = [], [], [], []
    for image in values:
        erased = (image != 9).any(axis=0)
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        areas.append(erased.mean().item())
        aspect_ratios.append(len(rows) / len(columns))
        tops.append(rows[0].item())
        lefts.append(columns[0].item())
    return [areas, aspect_ratios, tops, lefts]


def test_distribution_of_random_erasing_matches_timm() -> None:
    eraser = data.random_erasing.RandomErasing(probability=1.0, mode="pixel", device="cpu")
    theirs = [eraser(torch.full((3, 48, 64), 9.0)).numpy() for _ in range(3000)]
    ours = [np.full((3, 48, 64), 9.0, np.float32) for _ in range(3000)]
    for seed, values in enumerate(ours):
        erase(values, rng(seed))
    for ours_values, theirs_values in zip(erased_statistics(ours), erased_statistics(theirs), strict=True):
        assert_same_distribution(ours_values, theirs_values)
    assert_same_distribution(*(np.concatenate([image[image != 9][:20] for image in images]) for images in (ours, theirs)))


def test_distribution_of_the_whole_augmentation_matches_timm() -> None:
    """All steps in the order of the released code: equal mean and standard deviation of the pixels."""
    theirs = data.create_transform(
        input_size=40,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m8-mstd0.5-inc1",  # at 9, Pillow 13 rejects timm's posterize with 0 bits
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    theirs.transforms[-1].device = "cpu"
    transform = TrainTransform(Augmentation(randaugment=RandAugment(magnitude=8)), 40, 40)
    image = pattern(64, 50)
    expected = np.stack([theirs(image).numpy() for _ in range(1500)])
    ours = np.stack([transform(image, rng(seed)) for seed in range(1500)])
    for channel in range(3):
        assert_same_distribution(ours[:, channel].mean((1, 2)), expected[:, channel].mean((1, 2)))
        assert_same_distribution(ours[:, channel].std((1, 2)), expected[:, channel].std((1, 2)))
        assert_same_distribution(ours[:, channel, 20, 20], expected[:, channel, 20, 20])
