"""Wraps an exported model as a classifier, for code that expects a saved model, such as evaluation.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deit.images.crops import Crop
from deit.inference.predictor import Predictor
from deit.inference.runtimes import Runtime
from deit.models.auto import LoadedClassifier
from deit.models.outputs import ImageClassifierOutput, ImageClassifierWithTeacherOutput


class BundleClassifier(nn.Module):
    """A runtime with the interface of a DeiT or ViT classifier.

    Args:
        runtime: runs the model.
        num_classes: number of classes.
    """

    def __init__(self, runtime: Runtime, num_classes: int) -> None:
        super().__init__()
        self.runtime, self.num_classes = runtime, num_classes

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput | ImageClassifierWithTeacherOutput:
        """(B, C, height, width), of the type of the bundle's input -> logits (B, K). B may be 0."""
        if not len(pixel_values):
            heads = {name: torch.zeros(0, self.num_classes) for name in self.runtime.heads}
        else:
            heads = {name: torch.from_numpy(logits) for name, logits in self.runtime(pixel_values.numpy()).items()}
        if len(heads) == 1:
            return ImageClassifierOutput(logits=heads["class"])
        return ImageClassifierWithTeacherOutput(
            logits=heads["both"], cls_logits=heads["class"], distillation_logits=heads["distillation"]
        )


def load_bundle_classifier(path: str | Path, device: str = "auto", crop: Crop | None = None) -> LoadedClassifier:
    """Loads a bundle with an image processor whose output is the input of the bundle.

    Raises:
        CheckpointError: the bundle is not readable.
        ConfigError: there is no such crop.
        MissingExtraError: no runtime for the bundle is installed.
        UserError: the device or the crop does not fit the bundle.
    """
    predictor = Predictor.from_pretrained(path, device, crop, performance_hint="latency")
    processor = predictor.processor
    if predictor.input_dtype == "uint8":
        processor = processor.replace(do_rescale=False, do_normalize=False)
    model = BundleClassifier(predictor.runtime, len(predictor.classes))
    return LoadedClassifier(model, processor, predictor.classes, Path(path))
