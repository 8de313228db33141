"""A model -> a bundle that other runtimes answer with, let out only once its answers are the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from deit.data.splits import read_record
from deit.errors import MissingExtraError, UserError
from deit.export import formats, quantization
from deit.export.calibration import real_images
from deit.export.parity import Parity, answers, check, compare, parts
from deit.images.processor import Crop
from deit.inference import libraries
from deit.inference.bundle import GRAPH_FILES, Bundle, Format, Precision, is_bundle, open_bundle, write_bundle
from deit.inference.graph import Graph, operations
from deit.inference.loading import open_runtime
from deit.inference.predictor import model_pixels
from deit.inference.runtime_selection import images_per_second, remember
from deit.inference.runtimes import RuntimeName, usable
from deit.inference.torch_runtime import TorchRuntime
from deit.models.auto import LoadedClassifier, load_classifier
from deit.models.modeling import TransformerClassifier
from deit.system.files import BEST_NAME, BUNDLE_NAME, LAST_NAME, PROCESSOR_NAME, new_directory
from deit.system.hardware import cores, cpu_name
from deit.system.progress import Progress, print_status

IMAGES = 500  # to compare on, at most
CALIBRATION_IMAGES = 300
REFERENCE_BATCH = 16
OWN_FILES = frozenset({BUNDLE_NAME, PROCESSOR_NAME, *(name for names in GRAPH_FILES.values() for name in names)})
# What it takes to write each format and to ask it, the one to take by default first.
NEEDED: dict[Format, tuple[str, ...]] = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnx": ("onnxruntime", "onnx", "onnxscript"),
    "torch": (),
}


@dataclass(frozen=True)
class Exported:
    """What became of a model.

    Attributes:
        source: what was read.
        bundle: what was written.
        parities: runtime -> how its answers compare with the fp32 model's.
        speeds: runtime -> images per second, with all its calls at work; and of the model as it was, as ``before``.
    """

    source: Path | None
    bundle: Bundle
    parities: Mapping[RuntimeName, Parity]
    speeds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        facts = self.bundle.facts
        return {
            "source": None if self.source is None else str(self.source),
            "bundle": str(self.bundle.path),
            "format": facts.format,
            "precision": facts.precision,
            "heads": list(facts.heads),
            "kept": list(facts.kept),
            **facts.report,
        }


def export(
    source: str | Path,
    destination: str | Path | None = None,
    to: Format | None = None,
    precision: Precision = "fp32",
    *,
    calibrate: str | Path | None = None,
    images: int = IMAGES,
    crop: Crop | None = None,
    ema: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model as a bundle, once its answers to real images are those of the model.

    Args:
        source: a model of any format, a run, a teacher, a name on the hub (with ``revision``), or a variant's name.
        destination: a directory; one below ``exports/``, named by model, format and precision, when None.
        to: ``openvino``, ``onnx`` or ``torch``; the first of these whose libraries are installed when None.
        precision: of the matrix products; ``int8`` needs ``calibrate``.
        calibrate: a data set, with labels or without. int8's ranges are found on its training part, and all bundles are
            compared with the model on the part that is set aside from training. Without, they are compared on crops of two
            photographs.
        images: how many to compare on, at most.
        crop: ``keep``, ``squash`` or ``pad``, as :meth:`DeiTImageProcessor.for_size` says; the model's own when None.
        ema: take the average of the weights of a training checkpoint.
        overwrite: replace a bundle that is there.

    Raises:
        UserError: no such format or precision, something else stands at the destination, or no data to calibrate on.
        CheckpointError: no readable model.
        DataError: too few readable images.
        MissingExtraError: a library that the format needs is not installed.
        WorkError: the answers are too far from the model's; then nothing is left at the destination.
    """
    form = to or default_format()
    path = Path(destination) if destination else default_destination(source, form, precision)
    _check_request(path, form, precision, calibrate, overwrite)
    classifier = load_classifier(source, ema=ema, revision=revision)
    if form == "torch" and not isinstance(classifier.model, TransformerClassifier):
        kind = type(classifier.model).__name__
        raise UserError(f"A torch bundle holds a DeiT or ViT, and this is a {kind}", "pass --to onnx")
    if crop is not None:
        classifier.processor = classifier.processor.with_crop(crop)
    graph = Graph(classifier)
    record = read_record(classifier.path) if classifier.path else None
    learned, compared = real_images(calibrate, record)
    prepare = partial(model_pixels, classifier.processor, graph.pixels)
    pixels = compared.pixels(prepare, images)
    expected = _reference(classifier, graph, pixels)
    calibration = learned.pixels(prepare, CALIBRATION_IMAGES) if precision == "int8" else None
    with new_directory(path) as draft:
        print_status(f"Writing {form} in {precision}")
        kept = _write(classifier, graph, form, precision, calibration, draft)
        facts = {
            "format": form,
            "precision": precision,
            "pixels": graph.pixels,
            "shape": graph.shape,
            "heads": graph.heads,
            "classes": classifier.classes,
            "kept": kept,
        }
        bundle = write_bundle(draft, classifier.processor, facts)
        parities, speeds = _compared(bundle, pixels, expected)
        speeds["before"] = images_per_second(TorchRuntime(graph, "cpu"), bundle)
        report = {
            "compared_on": f"{len(pixels)} {compared.description}",
            "runtimes": {name: parity.to_dict() for name, parity in parities.items()},
            "images_per_second": dict(speeds),
            "bytes": {"before": 4 * sum(map(torch.Tensor.numel, classifier.model.parameters())), "after": bundle.graph_bytes},
            "operations": operations(graph),
            **_circumstances(form),
        }
        write_bundle(draft, classifier.processor, {**facts, "report": report})
    bundle = open_bundle(path)
    if "openvino" in parities:
        open_runtime(bundle, "openvino")  # keeps the compiled graph, so that the first answer does not wait for it
    remember(bundle, "cpu", {name: speeds[name] for name in parities})
    return Exported(classifier.path, bundle, parities, speeds)


def _circumstances(form: Format) -> dict[str, Any]:
    """Where, with what and when a bundle was measured."""
    return {
        "machine": f"{cpu_name()}, {cores()} cores",
        "versions": {name: libraries.version(name) for name in (*NEEDED[form], "torch")},
        "date": date.today().isoformat(),
    }


def default_format() -> Format:
    """The first format whose libraries are installed; torch's always are."""
    return next(form for form, names in NEEDED.items() if all(libraries.version(name) for name in names))


def default_destination(source: str | Path, form: Format, precision: Precision) -> Path:
    """Where a bundle goes that was given no place. Of a run, the run's name is taken, not that of the model in it."""
    parts = [part for part in Path(source).resolve().parts if part not in (BEST_NAME, LAST_NAME)]
    return Path("exports") / f"{parts[-1]}-{form}-{precision}"


def _check_request(path: Path, form: Format, precision: Precision, calibrate: str | Path | None, overwrite: bool) -> None:
    """All that can be known to be wrong before anything is read."""
    for what, value, known in (("format", form, get_args(Format)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise UserError(f"There is no {what} {value!r}", f"known are {', '.join(known)}")
    if precision == "int8" and form == "torch":
        raise UserError("torch runs no int8 here", "pass --to openvino or --to onnx")
    if precision == "bf16" and form == "onnx":
        raise UserError("ONNX Runtime multiplies no bf16 on a processor", "pass --to openvino, or --precision int8 or fp32")
    for name in (*NEEDED[form], *(("nncf", "openvino") if precision == "int8" else ())):
        if libraries.version(name) is None:
            raise MissingExtraError(f"A bundle of {form} in {precision}", libraries.EXTRA)
    if precision == "int8" and calibrate is None:
        raise UserError("int8 needs images to find its ranges on", "pass --calibrate DATA")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already", "choose another destination, or pass --overwrite")
    if path.exists() and (not is_bundle(path) or {file.name for file in path.iterdir()} - OWN_FILES):
        raise UserError(f"{path} is not a bundle alone", "choose another destination")


def _write(
    classifier: LoadedClassifier, graph: Graph, form: Format, precision: Precision, calibration: np.ndarray | None, draft: Path
) -> tuple[str, ...]:
    """Write the graph's files -> the parts of an int8 graph that were left in higher precision."""
    if form == "torch":
        formats.write_torch(classifier, draft, precision)
        return ()
    kept: tuple[str, ...] = ()
    network = formats.onnx_model(graph)
    if calibration is not None:
        network, kept = quantization.quantized(network, calibration)
    if form == "onnx":
        formats.write_onnx(network, draft)
    else:
        formats.write_openvino(network, draft, precision)
    return kept


def _reference(classifier: LoadedClassifier, graph: Graph, pixels: np.ndarray) -> np.ndarray:
    """The answers, (n, K), of the model as it is, in fp32, with its own image processor's normalization."""
    logits = []
    with Progress("Asking the fp32 model", len(pixels)) as progress, torch.inference_mode():
        for part in parts(pixels, REFERENCE_BATCH):
            values = part
            if graph.pixels == "uint8":
                values = classifier.processor.normalize([np.moveaxis(image, 0, -1) for image in part])
            logits.append(list(classifier.model(torch.from_numpy(values)).heads.values())[-1].numpy())
            progress.advance(len(part))
    return np.concatenate(logits)


def _compared(bundle: Bundle, pixels: np.ndarray, expected: np.ndarray) -> tuple[dict[RuntimeName, Parity], dict[str, float]]:
    """Each installed runtime's answers beside the model's, and its speed.

    Raises:
        WorkError: one is too far off.
    """
    parities: dict[RuntimeName, Parity] = {}
    speeds: dict[str, float] = {}
    for name in usable(bundle.facts.format):
        print_status(f"Comparing the answers of {name}")
        runtime = open_runtime(bundle, name, work="throughput")
        parities[name] = compare(expected, answers(runtime, pixels))
        check(parities[name], bundle.facts.precision, name)
        speeds[name] = images_per_second(runtime, bundle)
    return parities, speeds
