"""An exported model in the place of a saved one, for whoever asks a classifier for logits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deit.images.processor import Crop
from deit.inference.predictor import Predictor
from deit.inference.runtimes import Runtime
from deit.models.auto import LoadedClassifier
from deit.models.outputs import ImageClassifierOutput, ImageClassifierWithTeacherOutput


class BundleClassifier(nn.Module):
    """Answers as our models do, whatever runs it.

    Args:
        runtime: what runs it.
        classes: how many there are.
    """

    def __init__(self, runtime: Runtime, classes: int) -> None:
        super().__init__()
        self.runtime, self.classes = runtime, classes

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput | ImageClassifierWithTeacherOutput:
        """(B, C, height, width), of the type that the bundle takes -> logits (B, K)."""
        if not len(pixel_values):
            heads = {name: torch.zeros(0, self.classes) for name in self.runtime.heads}
        else:
            heads = {name: torch.from_numpy(values) for name, values in self.runtime(pixel_values.numpy()).items()}
        if len(heads) == 1:
            return ImageClassifierOutput(logits=heads["class"])
        return ImageClassifierWithTeacherOutput(
            logits=heads["both"], cls_logits=heads["class"], distillation_logits=heads["distillation"]
        )


def load_bundle_classifier(path: str | Path, device: str = "auto", crop: Crop | None = None) -> LoadedClassifier:
    """A bundle, its image processor such that what it makes goes into the bundle as it is.

    Raises:
        UserError: as :meth:`Predictor.from_pretrained`.
    """
    predictor = Predictor.from_pretrained(path, device, crop, work="latency")
    processor = predictor.processor
    if predictor.takes == "uint8":
        processor = type(processor)(**{**processor.model_dump(), "do_rescale": False, "do_normalize": False})
    model = BundleClassifier(predictor.runtime, len(predictor.classes))
    return LoadedClassifier(model, processor, predictor.classes, Path(path))
