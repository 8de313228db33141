"""Against timm, which took over the authors' code: the same weights, mixing, erasing and RandAugment."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import ColorJitter

from deit.checkpoints.layouts import to_layout
from deit.config import variant_config
from deit.data.augment import OPERATIONS, Augmentation, RandAugment, TrainTransform, color_jitter, crop_box, erase
from deit.data.mixing import MixDraw, Mixing, draw, mix_images, soft_targets
from deit.draws import Stream, generator
from deit.modeling import DeiTForImageClassificationWithTeacher, load_model, new_classifier
from tests.helpers import noise, pattern, randomised

data: Any = timm.data  # untyped
timms_crop = data.transforms.RandomResizedCropAndInterpolation.get_params
MODELS = [("deit-tiny-distilled-patch16-224", "timm-distilled"), ("deit-tiny-patch16-224", "timm")]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, _ in MODELS])
def test_timms_weights_give_timms_logits(name: str, tmp_path: Path) -> None:
    theirs = randomised(timm.create_model(name.replace("-", "_")), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = load_model(tmp_path / "weights.pth")
    x = noise(2, 3, 224, 224)
    expected = theirs(x)  # for two heads their mean, as we answer
    assert expected.std() > 0.01
    assert torch.allclose(ours(x).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_our_weights_fit_timm_to_the_last_tensor(name: str, layout: str) -> None:
    ours = randomised(new_classifier(variant_config(name, num_labels=7, num_hidden_layers=2)), std=0.05)
    theirs: Any = timm.create_model(name.replace("-", "_"), num_classes=7, depth=2).eval()
    theirs.load_state_dict(to_layout(ours.canonical_state(), layout), strict=True)
    x = noise(1, 3, 224, 224)
    assert torch.allclose(ours(x).logits, theirs(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_heads_are_not_swapped(tmp_path: Path) -> None:
    theirs: Any = randomised(timm.create_model("deit_tiny_distilled_patch16_224", depth=2), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = load_model(tmp_path / "weights.pth")
    assert isinstance(ours, DeiTForImageClassificationWithTeacher)
    theirs.set_distilled_training(True)
    x = noise(1, 3, 224, 224)
    head, head_dist = theirs.train()(x)
    output = ours(x)
    assert torch.allclose(output.cls_logits, head, atol=1e-5, rtol=0)
    assert torch.allclose(output.distillation_logits, head_dist, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_are_timms(weight: float, smoothing: float) -> None:
    labels = torch.tensor([4, 0])  # of two, the reverse is the neighbour
    mix = MixDraw(np.array([1, 0]), np.array([weight, weight]), np.zeros((2, 4), np.int64))
    expected = data.mixup.mixup_target(labels, 6, weight, smoothing)
    assert torch.allclose(soft_targets(labels, mix, 6, smoothing), expected, atol=1e-6)


def test_mixed_images_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = data.mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5, label_smoothing=0.1)
    labels = torch.tensor([1, 3])
    for box in ([0, 0, 0, 0], [2, 9, 1, 5]):
        top, bottom, left, right = box
        weight = 1 - (bottom - top) * (right - left) / (12 * 16) if any(box) else 0.37
        mix = MixDraw(np.array([1, 0]), np.array([weight] * 2), np.array([box] * 2))
        monkeypatch.setattr(mixer, "_params_per_batch", lambda box=box, weight=weight: (weight, any(box)))
        monkeypatch.setattr("timm.data.mixup.rand_bbox", lambda *_, box=box, **__: tuple(box))
        images = noise(2, 3, 12, 16)
        theirs, targets = mixer(images.clone(), labels)
        assert torch.allclose(mix_images(images, mix), theirs, atol=1e-6)
        assert torch.allclose(soft_targets(labels, mix, 5, 0.1), targets, atol=1e-6)


def moments(values: Any) -> list[float]:
    array = np.asarray(values, np.float64)
    return [array.mean().item(), array.std().item()]


def test_cutmix_rectangles_are_spread_as_timms() -> None:
    np.random.seed(0)
    theirs = np.array([data.mixup.rand_bbox((3, 48, 64), np.random.beta(1.0, 1.0)) for _ in range(4000)])
    samples = np.column_stack([np.arange(8000), np.zeros(8000, np.int64), np.arange(8000)])
    ours = draw(Mixing(cutmix=1.0), 0, 0, samples, 48, 64).box[::2]
    for side in range(4):
        assert moments(ours[:, side]) == pytest.approx(moments(theirs[:, side]), abs=1.0)
    areas = [(box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (48 * 64) for box in (ours, theirs)]
    assert moments(areas[0]) == pytest.approx(moments(areas[1]), abs=0.015)


def regions(values: list[np.ndarray]) -> list[float]:
    """Mean and spread of the erased share, of the logarithm of its aspect, and of its place."""
    shares, aspects, tops, lefts = [], [], [], []
    for image in values:
        touched = (image != 9).any(axis=0)
        rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        shares.append(touched.mean())
        aspects.append(np.log(len(rows) / len(columns)))
        tops.append(rows[0] / len(touched))
        lefts.append(columns[0] / touched.shape[1])
    return [*moments(shares), *moments(aspects), *moments(tops), *moments(lefts)]


def test_erased_regions_are_spread_as_timms() -> None:
    random.seed(0)
    torch.manual_seed(0)
    eraser = data.random_erasing.RandomErasing(probability=1.0, mode="pixel", device="cpu")
    theirs = [eraser(torch.full((3, 48, 64), 9.0)).numpy() for _ in range(3000)]
    ours = [np.full((3, 48, 64), 9.0, np.float32) for _ in range(3000)]
    for seed, values in enumerate(ours):
        erase(values, generator(seed, Stream.AUGMENT))
    assert regions(ours) == pytest.approx(regions(theirs), abs=0.03)


def test_crops_are_spread_as_timms() -> None:
    random.seed(0)
    image = Image.new("RGB", (120, 90))
    theirs = []
    for _ in range(4000):
        top, left, height, width = timms_crop(image, (0.08, 1.0), (3 / 4, 4 / 3))
        theirs.append((left, top, left + width, top + height))
    ours = [crop_box(120, 90, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed, Stream.AUGMENT)) for seed in range(4000)]
    for side in range(4):
        assert moments([box[side] for box in ours]) == pytest.approx(moments([box[side] for box in theirs]), abs=1.5)


def test_where_no_crop_fits_ours_is_timms() -> None:
    for size in ((1000, 10), (10, 1000), (333, 7)):
        top, left, height, width = timms_crop(Image.new("RGB", size), (1, 1), (3 / 4, 4 / 3))
        box = crop_box(*size, (1, 1), (3 / 4, 4 / 3), generator(0, Stream.AUGMENT))
        assert box == (left, top, left + width, top + height)


HPARAMS = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}


def test_the_operations_are_timms_increasing_set() -> None:
    assert len(OPERATIONS) == len(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("place", range(len(OPERATIONS)), ids=auto_augment._RAND_INCREASING_TRANSFORMS)
@pytest.mark.parametrize("magnitude", [0.0, 2.7, 5.0, 9.0, 9.7])
@pytest.mark.parametrize("way", [1, -1])
def test_an_operation_gives_timms_pixels(monkeypatch: pytest.MonkeyPatch, place: int, magnitude: float, way: int) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: way * value)
    theirs = data.auto_augment.AugmentOp(auto_augment._RAND_INCREASING_TRANSFORMS[place], 1.0, magnitude, HPARAMS)
    for size in ((48, 48), (31, 17)):
        image = pattern(*size)
        ours = OPERATIONS[place](image, magnitude / 10, way, (124, 116, 104))
        assert np.array_equal(np.asarray(ours), np.asarray(theirs(image)))


def test_the_default_settings_are_timms_by_name() -> None:
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))
    ours = RandAugment()
    (levels,) = {(op.magnitude, op.magnitude_std, op.prob, op.magnitude_max) for op in theirs.ops}
    assert levels == (ours.magnitude, ours.magnitude_std, 0.5, None)
    assert theirs.num_layers == ours.operations
    assert [op.name for op in theirs.ops] == auto_augment._RAND_INCREASING_TRANSFORMS


def test_colour_jitter_is_spread_as_torchvisions() -> None:
    torch.manual_seed(0)
    image, jitter = pattern(16, 16), ColorJitter(0.3, 0.3, 0.3)
    theirs = np.array([np.asarray(jitter(image), np.float64).mean((0, 1)) for _ in range(1500)])
    ours = np.array(
        [np.asarray(color_jitter(image, 0.3, generator(seed, Stream.AUGMENT)), np.float64).mean((0, 1)) for seed in range(1500)]
    )
    for channel in range(3):
        assert moments(ours[:, channel]) == pytest.approx(moments(theirs[:, channel]), abs=1.5)


def test_a_whole_training_image_is_spread_as_timms() -> None:
    """All steps together, in the released code's order: the same mean and spread of the pixels."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    theirs = data.create_transform(
        input_size=40,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m8-mstd0.5-inc1",  # at 9, Pillow 13 refuses timm's posterizing to no bits
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    theirs.transforms[-1].device = "cpu"
    transform = TrainTransform(Augmentation(randaugment=RandAugment(magnitude=8)), 40, 40)
    image = pattern(64, 50)
    expected = np.stack([theirs(image).numpy() for _ in range(1500)])
    ours = np.stack([transform(image, generator(seed, Stream.AUGMENT)) for seed in range(1500)])
    assert ours.mean((0, 2, 3)) == pytest.approx(expected.mean((0, 2, 3)), abs=0.05)
    assert ours.std((0, 2, 3)) == pytest.approx(expected.std((0, 2, 3)), abs=0.05)
    assert ours.mean((1, 2, 3)).std() == pytest.approx(expected.mean((1, 2, 3)).std(), abs=0.05)


@torch.no_grad()
def test_layer_scale_is_timm_s() -> None:
    theirs: Any = randomised(
        timm.create_model("deit3_small_patch16_224", num_classes=7, depth=2, no_embed_class=False), std=0.05
    )
    assert theirs.blocks[0].ls1.gamma.shape == (384,)
    ours = new_classifier(variant_config("deit-small-patch16-224", num_labels=7, num_hidden_layers=2, layer_scale=1e-4)).eval()
    state = theirs.state_dict()
    factors = {name: state.pop(name) for name in list(state) if name.endswith(".gamma")}
    wanted = ours.canonical_state()
    names = {name: next(iter(to_layout({name: value}, "timm"))) for name, value in wanted.items() if "layer_scale" not in name}
    for name, value in wanted.items():
        if "layer_scale" in name:
            layer = name.split(".")[1]
            value.copy_(torch.stack([factors[f"blocks.{layer}.ls{n}.gamma"] for n in (1, 2)]))
        else:
            value.copy_(state.pop(names[name]).reshape(value.shape))
    assert not state
    x = noise(2, 3, 224, 224)
    expected = theirs(x)
    assert torch.allclose(ours(x).logits, expected, atol=1e-5, rtol=0)
    assert torch.allclose(ours.without_layer_scale()(x).logits, expected, atol=1e-5, rtol=0)
