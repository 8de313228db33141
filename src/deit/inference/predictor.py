"""Predictor: images -> class names with probabilities. An unreadable image is one prediction with an error.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from PIL import Image

from deit.errors import ImageError, UserError
from deit.images.crops import Crop
from deit.images.decoding import open_image
from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import Bundle, InputDtype, Precision, is_bundle, open_bundle
from deit.inference.decoding import fast_pixels
from deit.inference.inputs import from_array, from_pillow, image_file, is_single_image, values_to_uint8
from deit.inference.loading import load_runtime
from deit.inference.logits import softmax
from deit.inference.runtime_selection import select_runtime
from deit.inference.runtimes import PerformanceHint, Runtime, RuntimeName
from deit.system.hardware import cores
from deit.system.progress import Progress
from deit.system.threads import ordered_map

if TYPE_CHECKING:
    from deit.inference.inputs import ImageLike


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: path of the file, or ``image 3`` if there is none.
        labels: class names, most likely first; empty if the image is unreadable.
        probabilities: their probabilities, in 0..1.
        error: why the image is unreadable; empty if it is readable.
    """

    image: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction as JSON values."""
        if self.error:
            return {"image": self.image, "error": self.error}
        pairs = zip(self.labels, self.probabilities, strict=True)
        return {"image": self.image, "predictions": [{"label": name, "probability": p} for name, p in pairs]}


class Predictor:
    """Classifies files, Pillow images, arrays or tensors.

    Uses one thread per core. Each thread decodes and resizes a few images, runs the model on them, and takes the next ones, so
    that some threads decode while others run the model.

    Python programs that predict many files may call :func:`deit.system.malloc.retain_freed_memory` once, as ``deit predict``
    does: decoding then reuses freed memory, up to 256 MiB at the end of each heap. With a tiny model in int8, this raised the
    throughput from 185 files/s to between 201 and 262 (docs/log.md).

    Args:
        runtime: runs the model.
        processor: converts images to the input of the model.
        classes: class names in the order of the logits.
        input_dtype: type of the runtime's input: ``uint8`` if the model rescales and normalizes.
        exact: decode and resize files bit for bit as the processor does, and as in evaluation; if False, as
            :mod:`deit.inference.decoding` does, in half of the time.
        channels: channels of the runtime's input.

    Example:
        predictor = Predictor.from_pretrained("runs/photos/best")
        predictor("cat.jpg").labels[0]
    """

    def __init__(
        self,
        runtime: Runtime,
        processor: DeiTImageProcessor,
        classes: tuple[str, ...],
        input_dtype: InputDtype = "uint8",
        exact: bool = False,
        channels: int = 3,
    ) -> None:
        self.runtime, self.processor, self.classes = runtime, processor, classes
        self.input_dtype, self.exact, self.channels = input_dtype, exact, channels

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        crop: Crop | None = None,
        *,
        runtime: RuntimeName | None = None,
        precision: Precision | None = None,
        performance_hint: PerformanceHint = "throughput",
        exact: bool = False,
        ema: bool = False,
        revision: str | None = None,
    ) -> Predictor:
        """Loads a saved or an exported model.

        Args:
            name: a bundle of ``deit export``, or a model of any format, a run, a teacher, a name on the hub (with
                ``revision``), or a variant's name.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            crop: ``keep``, ``squash`` or ``pad``, see :meth:`DeiTImageProcessor.for_size`; None takes the model's own.
            runtime: one of those that ``deit info`` lists; None takes the fastest known one for a bundle, and torch for other
                models.
            precision: precision of a model that was not exported; None means fp32. A bundle has its own.
            performance_hint: ``latency`` to predict single images, ``throughput`` to predict many.
            exact: decode and resize files bit for bit as in evaluation.
            ema: load the exponential moving average of the weights from a training checkpoint.
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: the model is not readable.
            ConfigError: there is no such crop.
            MissingExtraError: no runtime for the bundle is installed.
            UserError: the runtime, device, precision, crop, ``ema`` or ``revision`` does not fit the model.
        """
        if is_bundle(name):
            if ema or revision is not None:
                raise UserError(f"{name} is a bundle, which has one set of weights", "leave --ema and --revision out")
            return cls._from_bundle(open_bundle(name), device, crop, runtime, precision, performance_hint, exact)
        if runtime not in (None, "torch", "torch-compiled"):
            raise UserError(f"{name} is not a bundle, and {runtime} runs only bundles", "make one with `deit export`")
        from deit.inference.inference_model import InferenceModel
        from deit.inference.torch_runtime import TorchRuntime
        from deit.models.auto import load_classifier

        classifier = load_classifier(name, ema=ema, revision=revision)
        if crop is not None:
            classifier.processor = classifier.processor.with_crop(crop)
        model = InferenceModel(classifier)
        compiled = runtime == "torch-compiled"
        torch_runtime = TorchRuntime(model, device, precision or "fp32", compiled, performance_hint)
        return cls(torch_runtime, classifier.processor, classifier.classes, model.input_dtype, exact, model.input_shape[0])

    @classmethod
    def _from_bundle(
        cls,
        bundle: Bundle,
        device: str,
        crop: Crop | None,
        runtime: RuntimeName | None,
        precision: Precision | None,
        performance_hint: PerformanceHint,
        exact: bool,
    ) -> Predictor:
        metadata, path = bundle.metadata, bundle.path
        if precision not in (None, metadata.precision):
            raise UserError(f"{path} was exported in {metadata.precision}", f"export it with --precision {precision}")
        runtime_device = "cpu" if device == "auto" and metadata.format != "torch" else device
        runtime_name = runtime or select_runtime(bundle, runtime_device, measure=performance_hint == "throughput").name
        processor = bundle.processor
        if crop is not None:
            processor = processor.with_crop(crop)
            if processor.do_pad and metadata.input_dtype == "uint8":
                raise UserError(f"{path} cannot pad, because its graph normalizes", "export the model with --crop pad")
        loaded = load_runtime(bundle, runtime_name, runtime_device, performance_hint)
        return cls(loaded, processor, metadata.classes, metadata.input_dtype, exact, metadata.input_shape[0])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, height, width) of one input image of the runtime."""
        return (self.channels, *self.processor.input_hw)

    # Of types that are both, such as str, the first applies.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageLike, top: int = 5, names: str | Sequence[str] = ()
    ) -> Prediction: ...

    @overload
    def __call__(self, images: Iterable[ImageLike], top: int = 5, names: Sequence[str] = ()) -> list[Prediction]: ...

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top: int = 5, names: str | Sequence[str] = ()
    ) -> Prediction | list[Prediction]:
        """Classifies one image or several.

        Args:
            images: an image: a path, the bytes of an image file, an open binary file, a Pillow image, or an array or tensor of
                (height, width), (height, width, C) or (C, height, width), in 0..255 or floats in 0..1. Or several: a list,
                another iterable such as a generator, or an array or tensor of four dimensions. Files and Pillow images are
                turned upright by their EXIF orientation.
            top: number of classes per prediction.
            names: names of the images in the predictions; images without one are named by path or number.

        Returns:
            One prediction for one image; for several, a list in the order of the images.

        Raises:
            ImageError: ``images`` is neither an image nor an iterable. An unreadable image, a URL or a nested list is a
                prediction with an error.
        """
        if is_single_image(images):
            [prediction] = self.stream([cast("ImageLike", images)], top, [names] if isinstance(names, str) else names)
            return prediction
        if not isinstance(images, Iterable) and not hasattr(images, "__iter__"):
            raise ImageError(f"{type(images).__name__} is not an image", "pass a path, a Pillow image, an array, or a list")
        listed = list(cast("Iterable[ImageLike]", images))
        predictions: list[Prediction] = []
        with Progress("Predicting", len(listed)) as progress:
            for prediction in self.stream(listed, top, names):
                predictions.append(prediction)
                progress.advance(1)
        return predictions

    def stream(self, images: Iterable[ImageLike], top: int = 5, names: Iterable[str] = ()) -> Iterator[Prediction]:
        """Classifies images lazily: yields the predictions in order, and holds only a few images in memory.

        Args:
            images: several images as for a call; may be infinite.
            top: number of classes per prediction.
            names: names of the images in the predictions.
        """
        if is_single_image(images):
            raise UserError("stream takes several images, not one", "pass it in a list, or call the predictor")
        remaining_names = iter(names)
        named = ((next(remaining_names, None) or _image_name(index, image), image) for index, image in enumerate(images))
        if isinstance(images, Sequence) and len(images) == 1:
            yield from self._classify(list(named), top)
            return
        threads = cores()
        batch_size = self.runtime.batch_size
        if isinstance(images, Sequence):
            batch_size = max(1, min(batch_size, -(-len(images) // threads)))
        batches = iter(lambda: list(islice(named, batch_size)), [])
        for predictions in ordered_map(lambda batch: self._classify(batch, top), batches, threads):
            yield from predictions

    def preprocess(self, image: ImageLike) -> np.ndarray:
        """Converts one image to the input of the model, (C, height, width).

        Raises:
            ImageError: the image is unreadable.
        """
        return preprocess_image(self.processor, self.input_dtype, image, self.exact)

    def _classify(self, named_images: list[tuple[str, ImageLike]], top: int) -> list[Prediction]:
        inputs: list[np.ndarray | ImageError] = []
        for _, image in named_images:
            try:
                inputs.append(self.preprocess(image))
            except ImageError as error:
                inputs.append(error)
        readable = [item for item in inputs if isinstance(item, np.ndarray)]
        results = iter(self._top_classes(np.stack(readable), top) if readable else ())
        names = (name for name, _ in named_images)
        return [
            Prediction(name, error=str(item)) if isinstance(item, ImageError) else Prediction(name, *next(results))
            for name, item in zip(names, inputs, strict=True)
        ]

    def _top_classes(self, pixels: np.ndarray, top: int) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Yields the names and probabilities of the most likely classes of each image."""
        probabilities = softmax(self.runtime(pixels)[self.runtime.heads[-1]])  # (B, K)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(top, len(self.classes))]
        for row, labels in zip(probabilities, order, strict=True):
            yield tuple(self.classes[label] for label in labels), tuple(row[labels].tolist())


def preprocess_image(
    processor: DeiTImageProcessor, input_dtype: InputDtype, image: ImageLike, exact: bool = True
) -> np.ndarray:
    """Converts one image to the input of a model.

    Args:
        processor: image processor of the model.
        input_dtype: type of the model's input.
        image: one image of any kind that a :class:`Predictor` takes.
        exact: decode and resize files bit for bit as the processor does.

    Returns:
        (C, height, width), ``uint8``, or normalized ``float32``.

    Raises:
        ImageError: the image is unreadable.
    """
    file = image_file(image)
    if file is not None:
        name = _image_name(None, image)
        read = partial(open_image, file, name, processor.file_range)
        pixels = processor.pixels(read()) if exact else fast_pixels(processor, file, name)
    elif isinstance(image, Image.Image):
        pixels = processor.pixels(from_pillow(image, processor.file_range))
    else:
        pixels = processor.pixels(from_array(image, processor.file_range))
    return processor.normalize(pixels) if input_dtype == "float32" else np.moveaxis(values_to_uint8(pixels), -1, 0)


def _image_name(index: int | None, image: Any) -> str:
    """Returns the name of an image in its prediction: its path, or its number."""
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "name", None) if hasattr(image, "read") else None
    if isinstance(path, str | os.PathLike):
        return os.fsdecode(path)
    return "" if index is None else f"image {index}"
