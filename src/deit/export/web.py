"""Exports a model as a static folder that classifies images in the browser, without a server.

The folder is written only after the page, in Chromium, has predicted the class of the fp32 model for nearly all images.
"""

from __future__ import annotations

import gzip
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.data.sources import ImageSource, encoded_file
from deit.errors import MissingExtraError, UserError, WorkError
from deit.export import formats, quantization
from deit.export.browser import (
    CONTENT_SECURITY_POLICY,
    BrowserPrediction,
    chromium_path,
    open_page,
    outside_event_loop,
    predict,
    serve,
)
from deit.export.export import (
    CALIBRATION_IMAGES,
    COMPARED_IMAGES,
    ExportInputs,
    check_destination,
    measurement_context,
    model_name,
)
from deit.export.npm_package import NpmPackage, check_available, package_files
from deit.export.parity import LIMITS
from deit.images.crops import Crop
from deit.images.processor import DeiTImageProcessor
from deit.inference import optional_libraries
from deit.inference.bundle import GRAPH_FILES
from deit.inference.inference_model import count_flops
from deit.models.auto import load_classifier
from deit.system.files import check_writable, new_directory, write_bytes, write_json, write_text
from deit.system.progress import Progress, print_status

EXTRA = "web"
LIBRARIES = ("playwright", "onnx", "onnxscript", "nncf", "openvino")
ONNXRUNTIME = NpmPackage(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    files=("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
PAGE_NAME = "index.html"
DESCRIPTION_NAME = "model.json"
REPORT_NAME = "report.json"
# File of deit.page -> file of the folder.
PAGE_FILES = {
    "page.css": "page/page.css",
    "page.js": "page/page.js",
    "dom.js": "page/dom.js",
    "map.js": "page/map.js",
    "browser.js": "page/backend.js",
    "worker.js": "page/worker.js",
    "decoding.js": "page/decoding.js",
    "preprocessing.js": "page/preprocessing.js",
    "onnxruntime-license.txt": "onnxruntime/LICENSE.txt",
}
SCRIPT_NAME = "onnxruntime/onnxruntime.js"  # some servers do not know .mjs, and browsers then refuse to run it
WASM_NAME = "onnxruntime/ort-wasm-simd-threaded.wasm.gz"
(GRAPH_NAME,) = GRAPH_FILES["onnx"]
FILES = frozenset({PAGE_NAME, DESCRIPTION_NAME, REPORT_NAME, GRAPH_NAME, SCRIPT_NAME, WASM_NAME, *PAGE_FILES.values()})
CHARSET = '<meta charset="utf-8">'
MIN_AGREEMENT = LIMITS["int8"].agreement
# First bytes of the files that browsers decode: JPEG, PNG, GIF, WebP, AVIF.
BROWSER_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
BROWSER_BRANDS = (b"WEBP", b"avif", b"avis")  # at byte 8


@dataclass(frozen=True)
class WebExport:
    """A finished export.

    Attributes:
        source: path of the original model; None for a newly initialized variant.
        path: the folder.
        report: content of its ``report.json``.
    """

    source: Path | None
    path: Path
    report: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {"source": None if self.source is None else str(self.source), "path": str(self.path), **self.report}


def export_web(
    source: str | Path,
    destination: str | Path | None = None,
    *,
    calibrate: str | Path | None,
    images: int = COMPARED_IMAGES,
    crop: Crop | None = None,
    ema: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> WebExport:
    """Exports a model in int8 as a static folder whose page classifies images in the browser.

    Args:
        source: a model, as :func:`deit.export_model` takes it.
        destination: a directory; None takes one in ``exports/`` that is named by the model.
        calibrate: a data set, with labels or without. int8 is calibrated on its train split, and the page is compared with the
            model on its validation split.
        images: maximum number of images to compare on.
        crop: ``keep``, ``squash`` or ``pad``, see :meth:`DeiTImageProcessor.for_size`; None takes the model's own.
        ema: load the exponential moving average of the weights from a training checkpoint.
        revision: branch, tag or commit on the hub.
        overwrite: replace an existing export of this kind.

    Raises:
        UserError: an existing destination, no data, or neither Chromium nor npm where they are needed.
        CheckpointError: the model is not readable.
        DataError: too few images are readable.
        MissingExtraError: a library is not installed.
        WorkError: the page predicts other classes than the model; then nothing is written to the destination.
    """
    path = Path(destination) if destination else Path("exports") / f"{model_name(source)}-web"
    _check_request(path, calibrate, overwrite)
    chromium = chromium_path()
    runtime = package_files(ONNXRUNTIME)
    classifier = load_classifier(source, ema=ema, revision=revision)
    inputs = ExportInputs.open(classifier, calibrate, crop)
    _check_channels(inputs)
    pixels, indices = inputs.comparison.indexed_pixels(inputs.prepare, images)
    expected = [classifier.classes[label] for label in inputs.reference_logits(pixels).argmax(axis=1)]
    with new_directory(path) as draft:
        kept = _write_graph(inputs, draft)
        _write_page(draft, runtime)
        write_json(draft / DESCRIPTION_NAME, _description(inputs, model_name(source)))
        browser, predictions = outside_event_loop(
            partial(_predict_in_browser, draft, chromium, inputs.comparison.source, indices)
        )
        report = {
            "compared_on": f"{len(indices)} {inputs.comparison.description}",
            **compare(predictions, expected, browser),
            "kept": list(kept),
            "bytes": {"before": inputs.parameter_bytes, **_sizes(draft)},
            "flops": count_flops(inputs.inference_model),
            "onnxruntime_web": ONNXRUNTIME.version,
            **measurement_context((*LIBRARIES, "torch")),
        }
        write_json(draft / REPORT_NAME, report)
    return WebExport(classifier.path, path, report)


def compare(predictions: Sequence[BrowserPrediction], expected: Sequence[str], browser: str) -> dict[str, Any]:
    """Compares the classes that the page predicts with those of the fp32 model.

    Args:
        predictions: of the page. An image that it cannot predict counts as a different class.
        expected: most likely class of each image, of the fp32 model.
        browser: name and version of the browser.

    Returns:
        The comparison as JSON values, with the median times in milliseconds.

    Raises:
        WorkError: fewer classes are the same than the limit of int8.
    """
    agreement = float(np.mean([prediction.label == label for prediction, label in zip(predictions, expected, strict=True)]))
    failed = [prediction.problem for prediction in predictions if prediction.problem]
    if agreement < MIN_AGREEMENT:
        errors = f" ({len(failed)} failed, the first with: {failed[0]})" if failed else ""
        raise WorkError(
            f"In {browser}, the page agrees with the fp32 model on {agreement:.1%} of {len(expected)} images{errors}; "
            f"the limit is {MIN_AGREEMENT:.0%}",
            "nothing was written; calibrate on images like the training data",
        )
    timed = [prediction for prediction in predictions if not prediction.problem]
    preprocessing = statistics.median(prediction.preprocessing_ms for prediction in timed)
    model = statistics.median(prediction.model_ms for prediction in timed)
    total = statistics.median(prediction.preprocessing_ms + prediction.model_ms for prediction in timed)
    return {
        "browser": browser,
        "images": len(expected),
        "agreement": agreement,
        "failed": len(failed),
        "milliseconds": {"preprocessing": preprocessing, "model": model, "total": total},
    }


def browser_file(source: ImageSource, index: int) -> bytes:
    """Returns an image as the page receives it: its file if browsers decode the format, otherwise its pixels as PNG."""
    file = encoded_file(source, index)
    if file is not None:
        content = file.read_bytes() if isinstance(file, Path) else file
        if content.startswith(BROWSER_SIGNATURES) or content[8:12] in BROWSER_BRANDS:
            return content
    return _png(source.load(index))


def preprocessing_settings(processor: DeiTImageProcessor, normalizes: bool) -> dict[str, Any]:
    """Returns the settings of an image processor that ``preprocessing.js`` takes; None where a step is off.

    Args:
        processor: image processor of the model.
        normalizes: whether it normalizes; if False, the graph does.
    """
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = processor.rgb_statistics
    return {
        "size": processor.size if processor.do_resize else None,
        "resample": Image.Resampling(processor.resample).name.lower(),
        "crop_size": processor.crop_size if processor.do_center_crop else None,
        "crop_rounding": processor.crop_rounding,
        "normalization": {"factor": factor, "mean": mean, "std": std} if normalizes else None,
        "pad_size": processor.pad_size if processor.do_pad else None,
    }


def _check_request(path: Path, calibrate: str | Path | None, overwrite: bool) -> None:
    """Checks everything that can be checked before the model is loaded."""
    if calibrate is None:
        raise UserError("A web export is in int8, which needs images to calibrate on", "pass --calibrate DATA")
    if any(optional_libraries.version(library) is None for library in LIBRARIES):
        raise MissingExtraError("A web export", EXTRA)
    check_destination(path, overwrite, "a web export", DESCRIPTION_NAME, FILES)
    check_writable(path)
    check_available(ONNXRUNTIME)


def _check_channels(inputs: ExportInputs) -> None:
    """Checks that the model takes what a browser decodes."""
    channels = inputs.inference_model.input_shape[0]
    if channels != 3:
        raise UserError(f"The model takes images of {channels} channels, and a browser decodes RGB", "pass --to onnx")


def _write_graph(inputs: ExportInputs, draft: Path) -> tuple[str, ...]:
    """Writes the int8 graph and returns the operators that were kept in higher precision."""
    print_status("Writing the graph in int8")
    calibration = inputs.calibration.pixels(inputs.prepare, CALIBRATION_IMAGES)
    model, kept = quantization.quantize(formats.onnx_model(inputs.inference_model), calibration)
    formats.remove_metadata(model)
    formats.write_onnx(model, draft)
    return kept


def _write_page(draft: Path, runtime: Path) -> None:
    """Writes the page and its scripts, and those of ONNX Runtime."""
    page = resources.files("deit.page")
    for name, target in PAGE_FILES.items():
        write_bytes(draft / target, (page / name).read_bytes())
    policy = f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'
    html = (page / PAGE_NAME).read_text(encoding="utf-8")
    assert CHARSET in html
    write_text(draft / PAGE_NAME, html.replace(CHARSET, f"{CHARSET}\n    {policy}"))
    script, wasm = (runtime / Path(name).name for name in ONNXRUNTIME.files)
    write_bytes(draft / SCRIPT_NAME, script.read_bytes())
    # A quarter of the size, also on servers that do not compress.
    write_bytes(draft / WASM_NAME, gzip.compress(wasm.read_bytes(), mtime=0))


def _description(inputs: ExportInputs, name: str) -> dict[str, Any]:
    """Returns what the page knows of the model."""
    model, processor = inputs.inference_model, inputs.classifier.processor
    return {
        "name": name,
        "facts": f"int8, ONNX Runtime Web {ONNXRUNTIME.version}",
        "classes": list(inputs.classifier.classes),
        "heads": list(model.heads),
        "input": {"name": formats.INPUT_NAME, "dtype": model.input_dtype, "shape": list(model.input_shape)},
        "preprocessing": preprocessing_settings(processor, normalizes=model.input_dtype == "float32"),
    }


def _predict_in_browser(
    draft: Path, chromium: str, source: ImageSource, indices: Sequence[int]
) -> tuple[str, list[BrowserPrediction]]:
    """Opens the page in Chromium and classifies images. Returns the browser's name, and the predictions."""
    print_status("Comparing the page with the fp32 model, in Chromium")
    predictions = []
    with (
        serve(draft, lambda index: browser_file(source, index)) as address,
        open_page(chromium, address) as page,
        Progress("Classifying in Chromium", len(indices)) as progress,
    ):
        assert page.context.browser is not None
        browser = f"Chromium {page.context.browser.version}"
        for index in indices:
            predictions.append(predict(page, index))
            progress.advance(1)
    return browser, predictions


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the bytes of each part of a folder that has no report yet, and of all."""
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    graph, runtime, total = sizes[GRAPH_NAME], sizes[SCRIPT_NAME] + sizes[WASM_NAME], sum(sizes.values())
    return {"graph": graph, "runtime": runtime, "page": total - graph - runtime, "total": total}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
