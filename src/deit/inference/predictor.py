"""Images -> class names with probabilities. One bad image is one error in its place, not the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deit.errors import ImageError, UserError
from deit.images.arrays import channels_last
from deit.images.decoding import open_image, to_rgb
from deit.images.processor import Crop, DeiTImageProcessor
from deit.inference.bundle import Bundle, PixelType, Precision, is_bundle, open_bundle
from deit.inference.decoding import near_pixels
from deit.inference.loading import open_runtime
from deit.inference.runtime_selection import choose_runtime
from deit.inference.runtimes import Runtime, RuntimeName, Work
from deit.system.hardware import cores
from deit.system.malloc import retain_freed_memory
from deit.system.progress import Progress
from deit.system.threads import ordered_map

if TYPE_CHECKING:
    import torch

    ImageLike = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor


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
    """A classifier that takes files, bytes, Pillow images, arrays or tensors.

    Each of its threads reads, decodes and resizes a few images, asks the model, and takes the next few: while some are at
    the model, others decode. Memory that is freed stays with the process, up to some hundred MiB (:mod:`deit.system.malloc`).

    Args:
        runtime: what runs the model.
        processor: how an image becomes its input.
        classes: in the order of the logits.
        pixels: the type that the runtime takes: ``uint8`` where it rescales and normalizes itself.
        exact: read files to the last bit as the processor does, and as evaluation does; otherwise as
            :mod:`deit.inference.decoding` does, in half the time.

    Example:
        predictor = Predictor.from_pretrained("runs/photos/best")
        predictor(["cat.jpg"])[0].labels[0]
    """

    def __init__(
        self,
        runtime: Runtime,
        processor: DeiTImageProcessor,
        classes: tuple[str, ...],
        pixels: PixelType = "uint8",
        exact: bool = False,
    ) -> None:
        retain_freed_memory()
        self.runtime, self.processor, self.classes = runtime, processor, classes
        self.takes, self.exact = pixels, exact

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        crop: Crop | None = None,
        *,
        runtime: RuntimeName | None = None,
        precision: Precision | None = None,
        work: Work = "throughput",
        exact: bool = False,
        ema: bool = False,
        revision: str | None = None,
    ) -> Predictor:
        """A predictor of a saved or an exported model.

        Args:
            name: a bundle of ``deit export``, or a model of any format, a run, a teacher, a name on the hub (with
                ``revision``), or a variant's name.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            crop: ``keep``, ``squash`` or ``pad``, as :meth:`DeiTImageProcessor.for_size` says; the model's own when None.
            runtime: of those that ``deit info`` lists; when None the fastest that is known here for a bundle, and torch for
                a model.
            precision: of a model, fp32 when None; a bundle has its own.
            work: ``latency`` answers one image as soon as can be, ``throughput`` many.
            exact: as in :class:`Predictor`.
            ema: take the average of the weights of a training checkpoint.

        Raises:
            CheckpointError: no readable model.
            ConfigError: no such crop.
            MissingExtraError: the bundle's runtime is not installed.
            UserError: a runtime, device or precision that does not go with the model.
        """
        if is_bundle(name):
            if ema or revision is not None:
                raise UserError(f"{name} is a bundle, which has one set of weights", "leave --ema and --revision out")
            return cls._of_bundle(open_bundle(name), device, crop, runtime, precision, work, exact)
        if runtime not in (None, "torch", "torch-compiled"):
            raise UserError(f"{name} is no bundle, and {runtime} runs bundles only", "`deit export` makes one")
        from deit.inference.graph import Graph
        from deit.inference.torch_runtime import TorchRuntime
        from deit.models.auto import load_classifier

        classifier = load_classifier(name, ema=ema, revision=revision)
        if crop is not None:
            classifier.processor = classifier.processor.with_crop(crop)
        graph = Graph(classifier)
        ready = TorchRuntime(graph, device, precision or "fp32", compiled=runtime == "torch-compiled")
        return cls(ready, classifier.processor, classifier.classes, graph.pixels, exact)

    @classmethod
    def _of_bundle(
        cls,
        bundle: Bundle,
        device: str,
        crop: Crop | None,
        runtime: RuntimeName | None,
        precision: Precision | None,
        work: Work,
        exact: bool,
    ) -> Predictor:
        facts, path = bundle.facts, bundle.path
        if precision not in (None, facts.precision):
            raise UserError(f"{path} was exported in {facts.precision}", f"export it with --precision {precision}")
        place = "cpu" if device == "auto" and facts.format != "torch" else device
        chosen = runtime or choose_runtime(bundle, place, measure=work == "throughput").name
        processor = bundle.processor
        if crop is not None:
            processor = processor.with_crop(crop)
            if processor.do_pad and facts.pixels == "uint8":
                raise UserError(f"{path} normalizes in its graph, where padding cannot be", "export the model with --crop pad")
        return cls(open_runtime(bundle, chosen, place, work), processor, facts.classes, facts.pixels, exact)

    def __call__(self, images: Iterable[ImageLike], top: int = 5, names: Sequence[str] = ()) -> list[Prediction]:
        """Classify images.

        Args:
            images: paths, bytes of image files, Pillow images, or arrays and tensors of (height, width, C) or
                (C, height, width), in 0..255 or floats in 0..1.
            top: how many classes to name.
            names: what to call the images, where they have no paths.

        Returns:
            One prediction an image, in their order.
        """
        listed = list(images)
        predictions: list[Prediction] = []
        with Progress("Predicting", len(listed)) as progress:
            for prediction in self.stream(listed, top, names):
                predictions.append(prediction)
                progress.advance(1)
        return predictions

    def stream(self, images: Iterable[ImageLike], top: int = 5, names: Iterable[str] = ()) -> Iterator[Prediction]:
        """As a call, but images are taken, and answers given, one after the other: of a long list few are in memory."""
        given = iter(names)
        called = ((next(given, None) or _name(place, image), image) for place, image in enumerate(images))
        if isinstance(images, Sequence) and len(images) == 1:
            yield from self._answered(list(called), top)
            return
        threads = cores()
        batch = self.runtime.batch
        if isinstance(images, Sequence):
            batch = max(1, min(batch, -(-len(images) // threads)))
        chunks = iter(lambda: list(islice(called, batch)), [])
        for answers in ordered_map(lambda chunk: self._answered(chunk, top), chunks, threads):
            yield from answers

    def pixels(self, image: ImageLike) -> np.ndarray:
        """One image as the model takes it: (C, height, width).

        Raises:
            ImageError: it cannot be read.
        """
        return model_pixels(self.processor, self.takes, image, self.exact)

    def _answered(self, chunk: list[tuple[str, ImageLike]], top: int) -> list[Prediction]:
        ready: list[np.ndarray | ImageError] = []
        for _, image in chunk:
            try:
                ready.append(self.pixels(image))
            except ImageError as error:
                ready.append(error)
        readable = [item for item in ready if isinstance(item, np.ndarray)]
        rows = iter(self._ranked(np.stack(readable), top) if readable else ())
        named = zip((name for name, _ in chunk), ready, strict=True)
        return [
            Prediction(name, error=str(item)) if isinstance(item, ImageError) else Prediction(name, *next(rows))
            for name, item in named
        ]

    def _ranked(self, pixels: np.ndarray, top: int) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        logits = self.runtime(pixels)[self.runtime.heads[-1]].astype(np.float64)  # (B, K)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        order = np.argsort(-shares, axis=1, kind="stable")[:, : min(top, len(self.classes))]
        for row, places in zip(shares, order, strict=True):
            yield tuple(self.classes[place] for place in places), tuple(row[places].tolist())


def model_pixels(processor: DeiTImageProcessor, kind: PixelType, image: ImageLike, exact: bool = True) -> np.ndarray:
    """One image as a model takes it: (C, height, width), ``uint8``, or normalized ``float32``.

    Args:
        exact: as in :class:`Predictor`.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, str | Path | bytes):
        source = image if isinstance(image, bytes) else Path(image)
        array = processor.pixels(open_image(source)) if exact else near_pixels(processor, source)
    elif isinstance(image, Image.Image):
        array = processor.pixels(to_rgb(image))
    else:
        array = processor.pixels(_of_bytes(channels_last(image, True, None, {1, 3, 4})))
    return processor.normalize(array) if kind == "float32" else np.moveaxis(_of_bytes(array), -1, 0)


def _name(place: int, image: Any) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {place}"


def _of_bytes(array: np.ndarray | Image.Image) -> np.ndarray:
    """Values of any type in 0..255, or floats in 0..1 -> uint8.

    Raises:
        ImageError: other values.
    """
    values = np.asarray(array)
    if values.dtype == np.uint8:
        return values
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (low >= 0 and high <= 255):
        raise ImageError(f"An image has values from {low} to {high}", "bring them to 0..255, or floats to 0..1")
    scaled = values * 255.0 if values.dtype.kind == "f" and high <= 1 else values
    return np.rint(scaled).astype(np.uint8)
