"""How faithful explanations are: a planted mark that decides the class, deletion, insertion, and salience-guided faithfulness.

    python -m benchmarks.explain [--minutes 4] [--images 200] [--seed 0] [--write]

A teacher and a distilled DeiT are trained on images whose class is that of a small mark at a random position: a pattern of
stripes, checks or dots. The background has the same colors. The maps of both tokens for the predicted class are averaged, and
each method is measured on the same test images:

- **on the mark**: share of the 5% of pixels with the largest relevance that lie on the mark; maps are enlarged bilinearly;
- **deletion**: mean probability of the predicted class while patches are replaced by the mean color of the image, the most
  relevant ones first; lower is better;
- **insertion**: the same while patches are put back into an image of that color; higher is better;
- **two marks**: as on the mark, for an image with the mark of another class beside its own: the share that lies on the mark of
  the class that is explained; a map that does not depend on the class has about a half;
- **SaCo** (arXiv 2404.01415): patches are divided into ten groups by relevance; the coefficient, in -1..1, says how far the
  groups that are said to matter more change the probability more when they are replaced.

``Grad-CAM`` is that of pytorch-grad-cam (``pip install grad-cam``; left out if it is not installed), on the input of the last
block's attention, with the reshape that its documentation gives for vision transformers. ``random`` assigns every patch a
random relevance. Differences from the default are paired, image by image, with a 95% interval. The last line printed is the
result as JSON. ``--write`` writes ``explain.json`` and ``explain.md``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.reporting import environment, publish
from deit.evaluation.explanation import METHODS, Explainer, Explanation
from deit.models.auto import LoadedClassifier, load_classifier
from deit.training.run import train

SIDE, MARK = 64, 20  # pixels
MARKS = ("rows", "columns", "checks", "dots")
TRAIN_IMAGES, TEST_IMAGES = 200, 50  # per class
HOTTEST = 0.05  # of the pixels
GROUPS = 10
RANDOM, GRAD_CAM = "random", "Grad-CAM"
GRAD_CAM_MODULE = "pytorch_grad_cam"
DEFAULT = METHODS[0]
MEASURES = ("on the mark", "two marks", "deletion", "insertion", "SaCo")


def draw(mark: str, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """Draws an image with a mark. Returns it and the row and column of the mark."""
    coarse = rng.uniform(0, 255, (8, 8, 3)).astype(np.uint8)
    background = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
    pixels = background + rng.normal(0, 12, background.shape)
    top, left = rng.integers(0, SIDE - MARK, 2).tolist()
    add_mark(pixels, mark, (top, left), rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), (top, left)


def add_mark(pixels: np.ndarray, mark: str, place: tuple[int, int], rng: np.random.Generator) -> None:
    """Draws a mark into an image (SIDE, SIDE, 3), in two colors that differ."""
    rows, columns = np.indices((MARK, MARK)) // 4 % 2
    pattern = {"rows": rows, "columns": columns, "checks": rows ^ columns, "dots": rows & columns}[mark]
    colors = rng.uniform(0, 255, (2, 3))
    while np.abs(colors[0] - colors[1]).sum() < 250:
        colors = rng.uniform(0, 255, (2, 3))
    top, left = place
    pixels[top : top + MARK, left : left + MARK] = colors[pattern]


def with_second_mark(image: Image.Image, mark: str, place: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Returns an image with the mark of another class beside its own."""
    pixels, other = np.array(image, float), place
    while max(abs(other[0] - place[0]), abs(other[1] - place[1])) < MARK:
        top, left = rng.integers(0, SIDE - MARK, 2).tolist()
        other = (top, left)
    add_mark(pixels, str(rng.choice([name for name in MARKS if name != mark])), other, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder: Path, seed: int) -> dict[str, tuple[int, int]]:
    """Writes the data set. Returns the position of the mark in each test image, by path."""
    rng, places = np.random.default_rng(seed), {}
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for mark in MARKS:
            (folder / split / mark).mkdir(parents=True)
            for number in range(count):
                image, place = draw(mark, rng)
                path = folder / split / mark / f"{number}.png"
                image.save(path)
                if split == "test":
                    places[str(path)] = place
    return places


class _Logits(nn.Module):
    """A classifier that returns its logits alone, as pytorch-grad-cam wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values).logits
        return logits


class GradCam:
    """Grad-CAM of pytorch-grad-cam."""

    def __init__(self, classifier: LoadedClassifier) -> None:
        model: Any = classifier.model
        config = model.config
        self._grid, self._processor = config.grid, classifier.processor

        def reshape(tokens: torch.Tensor) -> torch.Tensor:
            patches = tokens[:, config.PREFIX_TOKENS :]
            return patches.reshape(len(patches), *config.grid, -1).permute(0, 3, 1, 2)

        layer = getattr(model, model.base_model_prefix).layers[-1].layernorm_before
        library = importlib.import_module(GRAD_CAM_MODULE)
        self._target = importlib.import_module(f"{GRAD_CAM_MODULE}.utils.model_targets").ClassifierOutputTarget
        self._classes = classifier.classes
        self._cam = library.GradCAM(model=_Logits(model), target_layers=[layer], reshape_transform=reshape)

    def __call__(self, image: Image.Image, target: str | None) -> np.ndarray:
        """Returns the map (h, w) of a class; None is the predicted one."""
        targets = None if target is None else [self._target(self._classes.index(target))]
        values = torch.from_numpy(self._processor.normalize([self._processor.pixels(image)]))
        enlarged = np.asarray(self._cam(input_tensor=values, targets=targets))[0]  # (height, width)
        rows, columns = self._grid
        patches: np.ndarray = enlarged.reshape(rows, enlarged.shape[0] // rows, columns, -1).mean(axis=(1, 3))
        return patches


def relevance_maps(
    explainer: Explainer, grad_cam: GradCam | None, image: Image.Image, rng: np.random.Generator, target: str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a map (h, w) per method, of a class or the predicted one; of both tokens the mean."""
    found: Explanation | None = None
    for method in METHODS:
        found = explainer(image, method=method, target=target)
        yield method, np.mean([head.relevance for head in found.heads], axis=0)
    assert found is not None
    if grad_cam is not None:
        yield GRAD_CAM, grad_cam(image, target)
    yield RANDOM, rng.permutation(found.heads[0].relevance.size).reshape(found.heads[0].relevance.shape) / 1.0


def share_on_mark(relevance: np.ndarray, place: tuple[int, int]) -> float:
    """Returns the share of the hottest pixels that lie on the mark."""
    enlarged = F.interpolate(
        torch.from_numpy(relevance)[None, None].double(), size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    hottest = np.argsort(-enlarged, axis=None)[: round(HOTTEST * SIDE**2)]
    rows, columns = np.unravel_index(hottest, enlarged.shape)
    (top, left) = place
    inside = (rows >= top) & (rows < top + MARK) & (columns >= left) & (columns < left + MARK)
    return float(inside.mean())


class Replacement:
    """Predicts an image of which some patches are replaced by its mean color.

    Attributes:
        target: index of the class that the whole image is predicted as.
    """

    def __init__(self, classifier: LoadedClassifier, image: Image.Image) -> None:
        self._classifier = classifier
        self._pixels = classifier.processor.pixels(image)
        self._mean = self._pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        self.target = int(self._logits(self._pixels[None])[0].argmax())

    def probabilities(self, kept: np.ndarray) -> np.ndarray:
        """Returns the probability of :attr:`target` for each mask (n, h, w) of the patches that are kept."""
        factors = (self._pixels.shape[0] // kept.shape[1], self._pixels.shape[1] // kept.shape[2])
        masks = kept.repeat(factors[0], axis=1).repeat(factors[1], axis=2)[..., None]
        logits = self._logits(np.where(masks, self._pixels, self._mean))
        return logits.softmax(dim=1)[:, self.target].numpy()

    @torch.inference_mode()
    def _logits(self, pixels: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(self._classifier.processor.normalize(list(pixels)))
        logits: torch.Tensor = self._classifier.model(values).logits
        return logits


def measure(relevance: np.ndarray, of_two: np.ndarray, place: tuple[int, int], image: Replacement) -> list[float]:
    """Returns the measures of a map, and of that of the image with a second mark."""
    order = np.argsort(-relevance, axis=None, kind="stable")
    ranks = np.argsort(order).reshape(relevance.shape)  # 0 is the most relevant
    steps = np.arange(order.size + 1)[:, None, None]
    deletion = float(image.probabilities(ranks >= steps).mean())
    insertion = float(image.probabilities(ranks < steps).mean())
    shares = [share_on_mark(relevance, place), share_on_mark(of_two, place)]
    return [*shares, deletion, insertion, faithfulness(relevance, ranks, image.probabilities)]


def faithfulness(relevance: np.ndarray, ranks: np.ndarray, probabilities: Callable[[np.ndarray], np.ndarray]) -> float:
    """Returns the salience-guided faithfulness coefficient (algorithm 1 of arXiv 2404.01415)."""
    group = ranks * GROUPS // ranks.size  # 0 is the most relevant
    masks = np.stack([np.ones_like(group, bool), *(group != number for number in range(GROUPS))])
    predicted = probabilities(masks)
    effects = predicted[0] - predicted[1:]
    salience = np.array([relevance[group == number].sum() for number in range(GROUPS)])
    gained = total = 0.0
    for first in range(GROUPS):
        for second in range(first + 1, GROUPS):
            weight = salience[first] - salience[second]
            gained += weight if effects[first] >= effects[second] else -weight
            total += abs(weight)
    return float(gained / total) if total else 0.0


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Faithfulness of explanations\n",
        f"{result['date']}, {result['hardware']}; {result['software']}.",
        f"`{result['command']}`: {result['images']} test images, of which the",
        f"model classifies {result['top1']:.1f}% correctly. Means; in parentheses the paired difference of the default,",
        "gradient, from the method, with its 95% interval.\n",
        f"| | {' | '.join(MEASURES)} |",
        f"|---|{'---|' * len(MEASURES)}",
    ]
    for method, row in result["methods"].items():
        cells = []
        for measure_name in MEASURES:
            figure = row[measure_name]
            difference = "" if method == DEFAULT else f" ({figure['difference']:+.3f} ± {figure['interval']:.3f})"
            cells.append(f"{figure['mean']:.3f}{difference}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--images", type=int, default=TEST_IMAGES * len(MARKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    values: dict[str, list[list[float]]] = {}
    correct = 0
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(arguments.seed)
        places = dict(list(write_images(folder / "images", arguments.seed).items())[: arguments.images])
        settings = {"seed": str(arguments.seed)}
        teacher = train(
            folder / "images", "convnet", out=folder / "teacher", settings={**settings, "minutes": f"{0.3 * arguments.minutes}"}
        )
        student = train(
            folder / "images",
            "small-data-distilled",
            teacher=teacher.directory,
            out=folder / "student",
            settings={**settings, "minutes": f"{0.7 * arguments.minutes}"},
        )
        classifier = load_classifier(student.directory)
        explainer = Explainer(classifier, "cpu")
        grad_cam = GradCam(classifier) if importlib.util.find_spec(GRAD_CAM_MODULE) else None
        for path, place in places.items():
            with Image.open(path) as image:
                replaced = Replacement(classifier, image)
                mark = Path(path).parent.name
                correct += classifier.classes[replaced.target] == mark
                of_two = dict(relevance_maps(explainer, grad_cam, with_second_mark(image, mark, place, rng), rng, mark))
                for method, relevance in relevance_maps(explainer, grad_cam, image, rng):
                    values.setdefault(method, []).append(measure(relevance, of_two[method], place, replaced))
    figures = {method: np.array(rows) for method, rows in values.items()}
    methods = {
        method: {
            measure_name: {
                "mean": float(rows[:, index].mean()),
                "difference": float((figures[DEFAULT] - rows)[:, index].mean()),
                "interval": float(1.96 * (figures[DEFAULT] - rows)[:, index].std(ddof=1) / len(rows) ** 0.5),
            }
            for index, measure_name in enumerate(MEASURES)
        }
        for method, rows in figures.items()
    }
    result = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "command": f"python -m benchmarks.explain --minutes {arguments.minutes:g}",
        "images": len(places),
        "top1": 100 * correct / len(places),
        "methods": methods,
    }
    publish(result, table(result), "explain" if arguments.write else None)


if __name__ == "__main__":
    main()
