"""Golden values of one image after the image processor and after the training augmentation.

Pixels come from integer arithmetic and are pinned by their SHA-256. Floating-point values are pinned by a few rounded
statistics. A change here changes the input of trained models: never update the values without saying so.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from deit.data.loader import TrainSamples
from deit.data.sampler import epoch_steps
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.images.processor import DeiTImageProcessor
from deit.rng import RngStream, generator
from tests.helpers import MemorySource, pattern

IMAGE = "3cb143e8f4bd3ece"
PIXELS = {"squash": "715bba1701fa45fc", "authors": "1dfdb9362d30bd0d"}
VALUES = {"squash": [-0.001, 0.484, 0.004, -0.004, 0.561, -10.643], "authors": [0.224, 1.004, 0.057, 0.188, 1.176, 62.553]}
TRAINING = [
    [0.091, 1.207, -0.32, 0.188, -1.212, 148.416],
    [0.443, 1.014, 0.23, 2.221, 0.383, 33.042],
    [0.863, 0.823, 1.307, 1.763, 1.751, 11.535],
    [0.969, 0.61, 1.29, 0.345, 1.455, -13.838],
]
ORDER = [[4, 0], [5, 0], [1, 0], [4, 1], [5, 1], [1, 1], [4, 2], [5, 2], [1, 2]]
TARGETS = [
    [0.0333, 0.7505, 0.2161],
    [0.0333, 0.2161, 0.7505],
    [0.0333, 0.9333, 0.0333],
    [0.0333, 0.9333, 0.0333],
    [0.0333, 0.2825, 0.6842],
    [0.0333, 0.6842, 0.2825],
    [0.0333, 0.3729, 0.5938],
    [0.0333, 0.5938, 0.3729],
    [0.0333, 0.9333, 0.0333],
]
BATCH = [0.364, 1.81, -2.118, 2.429, 2.64, -29.013]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def statistics(values: np.ndarray) -> list[float]:
    """Returns mean, standard deviation, the center pixel, and a weighted sum that depends on the positions of the values."""
    exact = values.astype(np.float64)
    weights = np.sin(np.arange(exact.size)).reshape(exact.shape)
    center = exact[:, exact.shape[1] // 2, exact.shape[2] // 2]
    return [round(float(value), 3) for value in (exact.mean(), exact.std(), *center, (exact * weights).sum())]


def test_input_image() -> None:
    assert digest(np.asarray(pattern(301, 207))) == IMAGE


@pytest.mark.parametrize(
    ("name", "processor"), [("squash", DeiTImageProcessor()), ("authors", DeiTImageProcessor.for_size(224, 224))]
)
def test_processor(name: str, processor: DeiTImageProcessor) -> None:
    image = pattern(301, 207)
    assert digest(processor.pixels(image)) == PIXELS[name]
    assert statistics(processor(image).pixel_values[0].numpy()) == pytest.approx(VALUES[name], abs=2e-3)


def test_training_augmentation() -> None:
    transform = TrainTransform(Augmentation(), 224, 224)
    samples = [statistics(transform(pattern(301, 207), generator(7, RngStream.AUGMENT, 3, index))) for index in range(4)]
    assert np.allclose(samples, TRAINING, atol=2e-3), samples


def test_mixed_batch() -> None:
    source = MemorySource(9)
    samples = TrainSamples(source, TrainTransform(Augmentation(), 32, 32), Mixing(mixup=0.8, cutmix=1.0), seed=7, smoothing=0.1)
    (plan,) = epoch_steps(9, 9, seed=7, epoch=1, repeats=3)
    batch = samples.batch(plan)
    assert plan.samples[:, :2].tolist() == ORDER
    assert np.allclose(batch.targets.numpy(), TARGETS, atol=1e-3), batch.targets.tolist()
    assert statistics(batch.pixel_values.reshape(27, 32, 32).numpy()[:3]) == pytest.approx(BATCH, abs=2e-3)
