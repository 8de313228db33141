"""Images -> class names with probabilities. One bad image is one error in its place, not the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deit.devices import choose_device
from deit.distillation.classifiers import LoadedClassifier, load_classifier
from deit.errors import ImageError
from deit.image_processor import Crop
from deit.images import open_image, to_rgb
from deit.progress import Progress
from deit.threads import on_threads

BATCH_SIZE = 32

ImageLike = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        image: the file's path, or ``image 3`` for one that has none.
        labels: class names, most likely first; empty where the image is unreadable.
        probabilities: of those, in 0..1.
        error: why there is no answer; empty where there is one.
    """

    image: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        if self.error:
            return {"image": self.image, "error": self.error}
        answers = zip(self.labels, self.probabilities, strict=True)
        return {"image": self.image, "predictions": [{"label": name, "probability": p} for name, p in answers]}


class Predictor:
    """A classifier that takes files, bytes or Pillow images.

    Args:
        classifier: a loaded model.
        device: where it runs.

    Example:
        predictor = Predictor.from_pretrained("runs/photos/best")
        predictor(["cat.jpg"])[0].labels[0]
    """

    def __init__(self, classifier: LoadedClassifier, device: str = "auto") -> None:
        self.device = choose_device(device)
        self.classes, self.processor = classifier.classes, classifier.processor
        self._model = classifier.model.to(self.device).eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        crop: Crop | None = None,
        *,
        ema: bool = False,
        revision: str | None = None,
    ) -> Predictor:
        """A predictor of a saved model.

        Args:
            name: a model of any format, a run, a teacher, a name on the hub (with ``revision``), or a variant's name.
            ema: take the average of the weights of a training checkpoint.
            crop: ``keep``, ``squash`` or ``pad``, as :meth:`DeiTImageProcessor.for_size` says; the model's own when None.

        Raises:
            CheckpointError: no readable model.
            ConfigError: no such crop.
        """
        predictor = cls(load_classifier(name, ema=ema, revision=revision), device)
        if crop is not None:
            predictor.processor = predictor.processor.with_crop(crop)
        return predictor

    def __call__(self, images: Iterable[ImageLike], top: int = 5, names: Sequence[str] = ()) -> list[Prediction]:
        """Classify images.

        Args:
            images: paths, bytes of image files, or Pillow images.
            top: how many classes to name.
            names: what to call the images, where they have no paths.

        Returns:
            One prediction an image, in their order.
        """
        listed = list(images)
        called = list(names) or [str(item) if isinstance(item, str | Path) else f"image {i}" for i, item in enumerate(listed)]
        rest = zip(called, listed, strict=True)
        predictions: list[Prediction] = []
        with Progress("Predicting", len(listed)) as progress:
            while chunk := list(islice(rest, BATCH_SIZE)):
                pixels = on_threads(self._pixels, [item for _, item in chunk])
                predictions += self._answers([name for name, _ in chunk], pixels, top)
                progress.advance(len(chunk))
        return predictions

    def _pixels(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            if isinstance(image, Image.Image):
                return self.processor.pixels(to_rgb(image))
            return self.processor.pixels(open_image(image if isinstance(image, bytes) else Path(image)))
        except ImageError as error:
            return error

    @torch.inference_mode()
    def _answers(self, names: list[str], pixels: list[np.ndarray | ImageError], top: int) -> list[Prediction]:
        readable = [item for item in pixels if isinstance(item, np.ndarray)]
        rows: Iterator[tuple[list[float], list[int]]] = iter(())
        if readable:
            values = torch.from_numpy(self.processor.normalise(readable)).to(self.device)
            logits = list(self._model(values).heads.values())[-1]
            best = logits.float().softmax(dim=-1).topk(min(top, len(self.classes)), dim=-1)
            rows = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        predictions = []
        for name, item in zip(names, pixels, strict=True):
            if isinstance(item, ImageError):
                predictions.append(Prediction(name, error=str(item)))
                continue
            probabilities, indices = next(rows)
            labels = tuple(self.classes[index] for index in indices)
            predictions.append(Prediction(name, labels, tuple(probabilities)))
        return predictions
