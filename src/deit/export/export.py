"""Exports a model as a bundle for other runtimes. The bundle is written only after the parity check passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from PIL import Image

from deit.data.image_hashes import copy_data_record, read_image_hashes
from deit.data.splits import read_record
from deit.errors import MissingExtraError, UserError
from deit.export import formats, quantization
from deit.export.calibration import CalibrationImages, calibration_images
from deit.export.parity import Parity, batches, check_parity, compare_logits, main_logits
from deit.images.crops import Crop
from deit.inference import optional_libraries
from deit.inference.bundle import GRAPH_FILES, Bundle, Format, Precision, open_bundle, write_bundle
from deit.inference.inference_model import InferenceModel, count_flops
from deit.inference.loading import load_runtime
from deit.inference.logits import check_logits
from deit.inference.predictor import preprocess_image
from deit.inference.runtime_selection import measure_speed, save_speeds
from deit.inference.runtimes import RuntimeName, available_runtimes
from deit.inference.torch_runtime import TorchRuntime
from deit.models.auto import LoadedClassifier, load_classifier
from deit.models.modeling import TransformerClassifier
from deit.system.files import (
    BEST_NAME,
    BUNDLE_NAME,
    IMAGE_HASHES_NAME,
    LAST_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    new_directory,
)
from deit.system.hardware import cores, cpu_name
from deit.system.progress import Progress, print_status
from deit.system.replacing import is_empty_directory, shortened

COMPARED_IMAGES = 500
CALIBRATION_IMAGES = 300
REFERENCE_BATCH_SIZE = 16
BUNDLE_FILES = frozenset(
    {BUNDLE_NAME, PROCESSOR_NAME, RECORD_NAME, IMAGE_HASHES_NAME, *(name for names in GRAPH_FILES.values() for name in names)}
)
# The libraries that each format needs, in the order of preference of the formats.
REQUIRED_LIBRARIES: dict[Format, tuple[str, ...]] = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnx": ("onnxruntime", "onnx", "onnxscript"),
    "torch": (),
}


@dataclass(frozen=True)
class ExportInputs:
    """What an export starts from.

    Attributes:
        classifier: the original model.
        inference_model: the module that is exported.
        calibration: images to calibrate int8 on.
        comparison: images to compare predictions on.
    """

    classifier: LoadedClassifier
    inference_model: InferenceModel
    calibration: CalibrationImages
    comparison: CalibrationImages

    @classmethod
    def open(cls, classifier: LoadedClassifier, data: str | Path | None, crop: Crop | None) -> Self:
        """Opens the images for the export of a model.

        Args:
            classifier: the model; its image processor takes on the crop.
            data: a data set, as :func:`deit.export.calibration.calibration_images` takes it.
            crop: ``keep``, ``squash`` or ``pad``; None takes the model's own.
        """
        if crop is not None:
            classifier.processor = classifier.processor.with_crop(crop)
        inference_model = InferenceModel(classifier)
        record = read_record(classifier.path) if classifier.path else None
        hashes = read_image_hashes(classifier.path) if classifier.path else None
        images = calibration_images(data, record, hashes, classifier.processor.file_range)
        return cls(classifier, inference_model, *images)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Converts an image to the input of the exported module, (C, height, width)."""
        return preprocess_image(self.classifier.processor, self.inference_model.input_dtype, image)

    def reference_logits(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the logits (n, K) of the original model in fp32 for prepared images (n, C, height, width)."""
        return _reference_logits(self.classifier, self.inference_model, pixels)

    @property
    def parameter_bytes(self) -> int:
        """Size of the original model's weights in fp32."""
        return 4 * sum(map(torch.Tensor.numel, self.classifier.model.parameters()))


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        source: path of the original model; None for a newly initialized variant.
        bundle: the exported model.
        parities: runtime -> comparison of its logits with those of the fp32 model.
        speeds: runtime -> images per second at full load; ``before`` is the original model in torch.
    """

    source: Path | None
    bundle: Bundle
    parities: Mapping[RuntimeName, Parity]
    speeds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        metadata = self.bundle.metadata
        return {
            "source": None if self.source is None else str(self.source),
            "bundle": str(self.bundle.path),
            "format": metadata.format,
            "precision": metadata.precision,
            "heads": list(metadata.heads),
            "kept": list(metadata.kept),
            **metadata.report,
        }


def export_model(
    source: str | Path,
    destination: str | Path | None = None,
    to: Format | None = None,
    precision: Precision = "fp32",
    *,
    calibrate: str | Path | None = None,
    images: int = COMPARED_IMAGES,
    crop: Crop | None = None,
    ema: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Exports a model as a bundle, if its logits for real images match those of the model.

    Args:
        source: a model of any format, a run, a teacher, a name on the hub (with ``revision``), or a variant's name.
        destination: a directory; None takes one in ``exports/`` that is named by model, format and precision.
        to: ``openvino``, ``onnx`` or ``torch``; None takes the first of these whose libraries are installed.
        precision: of the matrix products; ``int8`` needs ``calibrate``.
        calibrate: a data set, with labels or without. int8 is calibrated on its train split, and every bundle is compared with
            the model on its validation split. None compares on crops of two photographs.
        images: maximum number of images to compare on.
        crop: ``keep``, ``squash`` or ``pad``, see :meth:`DeiTImageProcessor.for_size`; None takes the model's own.
        ema: load the exponential moving average of the weights from a training checkpoint.
        revision: branch, tag or commit on the hub.
        overwrite: replace an existing bundle.

    Raises:
        UserError: unknown format or precision, an existing destination, or no data to calibrate on.
        CheckpointError: the model is not readable.
        DataError: too few images are readable.
        MissingExtraError: a library that the format needs is not installed.
        WorkError: the parity check fails; then nothing is written to the destination.
    """
    graph_format = to or default_format()
    path = Path(destination) if destination else default_destination(source, graph_format, precision)
    _check_request(path, graph_format, precision, calibrate, overwrite)
    classifier = load_classifier(source, ema=ema, revision=revision)
    _check_format(classifier, graph_format)
    inputs = ExportInputs.open(classifier, calibrate, crop)
    inference_model = inputs.inference_model
    pixels = inputs.comparison.pixels(inputs.prepare, images)
    expected = inputs.reference_logits(pixels)
    calibration = inputs.calibration.pixels(inputs.prepare, CALIBRATION_IMAGES) if precision == "int8" else None
    with new_directory(path) as draft:
        print_status(f"Writing {graph_format} in {precision}")
        kept = _write_graph(classifier, inference_model, graph_format, precision, calibration, draft)
        fields = {
            "format": graph_format,
            "precision": precision,
            "input_dtype": inference_model.input_dtype,
            "input_shape": inference_model.input_shape,
            "heads": inference_model.heads,
            "classes": classifier.classes,
            "kept": kept,
        }
        bundle = write_bundle(draft, classifier.processor, fields)
        parities, speeds = _compare_runtimes(bundle, pixels, expected)
        speeds["before"] = measure_speed(TorchRuntime(inference_model, "cpu"), bundle)
        report = {
            "source": None if classifier.path is None else str(classifier.path.resolve()),
            "compared_on": f"{len(pixels)} {inputs.comparison.description}",
            "runtimes": {name: parity.to_dict() for name, parity in parities.items()},
            "images_per_second": dict(speeds),
            "bytes": {"before": inputs.parameter_bytes, "after": bundle.graph_bytes},
            "flops": count_flops(inference_model),
            **measurement_context((*REQUIRED_LIBRARIES[graph_format], "torch")),
        }
        write_bundle(draft, classifier.processor, {**fields, "report": report})
        if classifier.path is not None:
            copy_data_record(classifier.path, draft)
    bundle = open_bundle(path)
    if "openvino" in parities:
        load_runtime(bundle, "openvino")  # caches the compiled graph, so that the first prediction does not wait for it
    save_speeds(bundle, "cpu", {name: speeds[name] for name in parities})
    return ExportResult(classifier.path, bundle, parities, speeds)


def _check_format(classifier: LoadedClassifier, graph_format: Format) -> None:
    """Checks that a format can hold the model."""
    if graph_format == "torch" and not isinstance(classifier.model, TransformerClassifier):
        kind = type(classifier.model).__name__
        raise UserError(f"A torch bundle holds a DeiT or ViT, not a {kind}", "pass --to onnx")


def default_format() -> Format:
    """Returns the first format whose libraries are installed; those of torch always are."""
    return next(
        name
        for name, required in REQUIRED_LIBRARIES.items()
        if all(optional_libraries.version(library) for library in required)
    )


def default_destination(source: str | Path, graph_format: Format, precision: Precision) -> Path:
    """Returns the directory of a bundle if none is given, named by the model."""
    return Path("exports") / f"{model_name(source)}-{graph_format}-{precision}"


def model_name(source: str | Path) -> str:
    """Returns the name of a model in names of exports; for the model of a run, that of the run."""
    names = [name for name in Path(source).resolve().parts if name not in (BEST_NAME, LAST_NAME)]
    return shortened(names[-1])


def check_destination(path: Path, overwrite: bool, kind: str, marker: str, files: Collection[str]) -> None:
    """Checks that a destination is free, or an export of the same kind that may be replaced.

    Args:
        path: the destination.
        overwrite: whether it may be replaced.
        kind: what the export is called: ``a bundle``.
        marker: path of a file that every such export has.
        files: paths of all files that it may have.

    Raises:
        UserError: it exists and may not be replaced, or contains other files.
    """
    if not path.exists() or is_empty_directory(path):
        return
    if not overwrite:
        raise UserError(f"{path} already exists", "choose another destination, or pass --overwrite")
    is_export = (path / marker).is_file()
    if not is_export or {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - set(files):
        raise UserError(f"{path} contains other files than {kind}", "choose another destination")


def measurement_context(libraries: Collection[str]) -> dict[str, Any]:
    """Returns on which machine, with which versions of which libraries and when an export was measured."""
    return {
        "machine": f"{cpu_name()}, {cores()} cores",
        "versions": {name: optional_libraries.version(name) for name in libraries},
        "date": date.today().isoformat(),
    }


def _check_request(
    path: Path, graph_format: Format, precision: Precision, calibrate: str | Path | None, overwrite: bool
) -> None:
    """Checks everything that can be checked before the model is loaded."""
    requests = (("format", graph_format, get_args(Format)), ("precision", precision, get_args(Precision)))
    for what, value, choices in requests:
        if value not in choices:
            raise UserError(f"There is no {what} {value!r}", f"choose from {', '.join(choices)}")
    if precision == "int8" and graph_format == "torch":
        raise UserError("The torch runtime does not support int8", "pass --to openvino or --to onnx")
    if precision == "bf16" and graph_format == "onnx":
        raise UserError("ONNX Runtime does not support bf16 on CPUs", "pass --to openvino, or --precision int8 or fp32")
    required = (*REQUIRED_LIBRARIES[graph_format], *(("nncf", "openvino") if precision == "int8" else ()))
    if any(optional_libraries.version(library) is None for library in required):
        raise MissingExtraError(f"A bundle of {graph_format} in {precision}", optional_libraries.EXTRA)
    if precision == "int8" and calibrate is None:
        raise UserError("int8 needs images to calibrate on", "pass --calibrate DATA")
    check_destination(path, overwrite, "a bundle", BUNDLE_NAME, BUNDLE_FILES)


def _write_graph(
    classifier: LoadedClassifier,
    inference_model: InferenceModel,
    graph_format: Format,
    precision: Precision,
    calibration: np.ndarray | None,
    draft: Path,
) -> tuple[str, ...]:
    """Writes the graph files and returns the operators of an int8 graph that were kept in higher precision."""
    if graph_format == "torch":
        formats.write_torch(classifier, draft, precision)
        return ()
    kept: tuple[str, ...] = ()
    model = formats.onnx_model(inference_model)
    if calibration is not None:
        model, kept = quantization.quantize(model, calibration)
    if graph_format == "onnx":
        formats.write_onnx(model, draft)
    else:
        formats.write_openvino(model, draft, precision)
    return kept


def _reference_logits(classifier: LoadedClassifier, inference_model: InferenceModel, pixels: np.ndarray) -> np.ndarray:
    """Returns the logits (n, K) of the original model in fp32, with the normalization of its own image processor.

    Raises:
        NonFiniteOutputError: they are NaN or infinite.
    """
    logits = []
    with Progress("Running the fp32 model", len(pixels)) as progress, torch.inference_mode():
        for batch in batches(pixels, REFERENCE_BATCH_SIZE):
            values = batch
            if inference_model.input_dtype == "uint8":
                values = classifier.processor.normalize([np.moveaxis(image, 0, -1) for image in batch])
            logits.append(list(classifier.model(torch.from_numpy(values)).heads.values())[-1].numpy())
            check_logits(logits[-1])
            progress.advance(len(batch))
    return np.concatenate(logits)


def _compare_runtimes(
    bundle: Bundle, pixels: np.ndarray, expected: np.ndarray
) -> tuple[dict[RuntimeName, Parity], dict[str, float]]:
    """Runs each installed runtime and returns its parity and its images per second.

    Raises:
        WorkError: a runtime fails the parity check.
    """
    parities: dict[RuntimeName, Parity] = {}
    speeds: dict[str, float] = {}
    for name in available_runtimes(bundle.metadata.format):
        print_status(f"Comparing {name} with the fp32 model")
        runtime = load_runtime(bundle, name, performance_hint="throughput")
        parities[name] = compare_logits(expected, main_logits(runtime, pixels))
        check_parity(parities[name], bundle.metadata.precision, name)
        speeds[name] = measure_speed(runtime, bundle)
    return parities, speeds
