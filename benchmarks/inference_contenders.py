"""The contenders of ``inference.py``: classifiers of pixels and files, by this package and by other libraries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import timm
import torch
import transformers
from PIL import Image

from deit.config import variant_config
from deit.export import formats, quantization
from deit.export.calibration import SampleCrops
from deit.images.decoding import configure_pillow
from deit.images.processor import DeiTImageProcessor
from deit.inference import optional_libraries
from deit.inference.bundle import Format, Precision, write_bundle
from deit.inference.inference_model import InferenceModel, count_flops
from deit.inference.predictor import Predictor
from deit.inference.runtimes import RuntimeName
from deit.inference.torch_runtime import TorchRuntime
from deit.models.auto import LoadedClassifier
from deit.models.modeling import new_classifier
from deit.system.hardware import cores
from deit.system.malloc import retain_freed_memory
from deit.system.threads import ordered_map

CLASSES = tuple(map(str, range(1000)))
CALIBRATION_IMAGES = 16  # few, because random weights have no accuracy to lose
FILE_BATCH = 16  # files per call of the other libraries
OURS = "ours, "
GPU_CONTENDERS = ("transformers bf16", "timm bf16", "timm bf16, compiled", "ours, torch bf16", "ours, torch-compiled bf16")
CPU_CONTENDERS = (
    "transformers fp32",
    "transformers bf16",
    "timm fp32",
    "timm bf16",
    "plain ONNX Runtime fp32",
    "plain OpenVINO bf16",
    "plain OpenVINO int8",
    "ours, torch bf16",
    "ours, onnxruntime fp32",
    "ours, onnxruntime int8",
    "ours, openvino bf16",
    "ours, openvino int8",
)
CONTENDERS = (*CPU_CONTENDERS, *(name for name in GPU_CONTENDERS if name not in CPU_CONTENDERS))


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        contender: name of the contender.
        size: "tiny", "small" or "base".
        precision: precision of the matrix products.
        device: "cpu" or "cuda".
        flops: additions and multiplications per image in its graph.
        folder: folder of the graphs that :func:`prepare` wrote.
        files: paths of JPEG files.
    """

    contender: str
    size: str
    precision: Precision
    device: str
    flops: int
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        make_batches: images per call -> input arrays (images, 3, 224, 224), one per parallel call.
        run_batches: input arrays -> logits, for throughput.
        run_batch: one input array -> logits, for latency.
        classify_files: paths -> labels, for throughput.
        classify_file: one path -> label, for latency.
    """

    make_batches: Callable[[int], list[np.ndarray]]
    run_batches: Callable[[list[np.ndarray]], object]
    run_batch: Callable[[np.ndarray], object]
    classify_files: Callable[[Sequence[str]], object]
    classify_file: Callable[[str], object]


def our_model(size: str) -> LoadedClassifier:
    """Returns a distilled model with random weights."""
    config = variant_config(f"deit-{size}-distilled-patch16-224").with_classes(CLASSES)
    model = new_classifier(config, torch.Generator().manual_seed(0)).eval()
    return LoadedClassifier(model, DeiTImageProcessor.for_size(224, 224), CLASSES)


def transformers_model(size: str) -> torch.nn.Module:
    """Returns a model of the same shape in transformers."""
    config = variant_config(f"deit-{size}-distilled-patch16-224").with_classes(CLASSES)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields: dict[str, Any] = {name: getattr(config, name) for name in names}
    their_config = transformers.DeiTConfig(**fields, id2label=dict(enumerate(CLASSES)))
    network: torch.nn.Module = transformers.DeiTForImageClassificationWithTeacher(their_config)
    return network.eval()


def jobs(size: str, device: str, folder: str, files: tuple[str, ...]) -> dict[str, Job]:
    """Returns the jobs of a device by the name of the contender."""
    our_flops = count_flops(InferenceModel(our_model(size)))
    their_flops = _count_flops(transformers_model(size))
    by_name = {}
    for name in GPU_CONTENDERS if device == "cuda" else CPU_CONTENDERS:
        precision: Precision = next(value for value in get_args(Precision) if value in name)
        flops = our_flops if name.startswith(OURS) else their_flops
        by_name[name] = Job(name, size, precision, device, flops, folder, files)
    return by_name


def _count_flops(model: torch.nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    return int(counter.get_total_flops())


def prepare(size: str, folder: Path, contenders: Collection[str]) -> None:
    """Writes the graphs that the contenders read."""
    ours = our_model(size)
    write_bundles(
        ours, folder, [name.removeprefix(OURS) for name in contenders if name.startswith(OURS) and "torch" not in name]
    )
    if any(name.startswith("plain") for name in contenders):
        _prepare_plain(size, folder, contenders, ours.processor.normalize(_calibration_images(ours)))


def _calibration_images(classifier: LoadedClassifier) -> list[np.ndarray]:
    return [classifier.processor.pixels(SampleCrops().load(number)) for number in range(CALIBRATION_IMAGES)]


def write_bundles(classifier: LoadedClassifier, folder: Path, names: Collection[str]) -> None:
    """Writes bundles of a model, without the parity check, which random weights would not pass.

    Args:
        classifier: the model.
        folder: where each bundle is written, under its name.
        names: runtime and precision of each, such as ``openvino int8``.
    """
    inference_model = InferenceModel(classifier)
    pixels = np.stack([np.moveaxis(image, -1, 0) for image in _calibration_images(classifier)])
    network = formats.onnx_model(inference_model) if names else None
    quantized = quantization.run_nncf(network, pixels, ()) if any("int8" in name for name in names) else None
    for name in names:
        runtime, precision = name.split()
        bundle_format: Format = "onnx" if runtime == "onnxruntime" else "openvino"
        bundle = folder / name
        bundle.mkdir()
        model = quantized if precision == "int8" else network
        if bundle_format == "onnx":
            formats.write_onnx(model, bundle)
        else:
            formats.write_openvino(model, bundle, precision)  # type: ignore[arg-type]
        fields = {
            "format": bundle_format,
            "precision": precision,
            "input_dtype": "uint8",
            "input_shape": inference_model.input_shape,
        }
        write_bundle(bundle, classifier.processor, {**fields, "heads": inference_model.heads, "classes": classifier.classes})


def _prepare_plain(size: str, folder: Path, contenders: Collection[str], pixel_values: np.ndarray) -> None:
    """Converts the model of transformers as the documentation of each library says."""
    openvino = optional_libraries.load("openvino", "This contender")
    nncf = optional_libraries.load("nncf", "This contender")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = transformers_model(size)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(pixel_values).logits
            return logits

    example = torch.from_numpy(pixel_values[:2])
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        if "plain ONNX Runtime fp32" in contenders:
            path = str(folder / "plain.onnx")
            torch.onnx.export(
                Logits(), (example,), path, dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False
            )
        model = openvino.convert_model(Logits(), example_input=example, input=[openvino.PartialShape([-1, 3, 224, 224])])
    openvino.save_model(model, folder / "plain bf16.xml")
    if "plain OpenVINO int8" in contenders:
        dataset = nncf.Dataset([image[None] for image in pixel_values])
        quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixel_values))
        openvino.save_model(quantized, folder / "plain int8.xml")


def load_classifier(job: Job) -> Classifier:
    """Loads the classifier of a contender."""
    torch.set_num_threads(cores())
    configure_pillow()
    return _our_classifier(job) if job.contender.startswith(OURS) else _their_classifier(_their_network(job))


def _our_classifier(job: Job) -> Classifier:
    retain_freed_memory()
    runtime: RuntimeName = job.contender.removeprefix(OURS).split()[0]  # type: ignore[assignment]
    if runtime.startswith("torch"):
        model = our_model(job.size)
        torch_runtime = TorchRuntime(InferenceModel(model), job.device, job.precision, compiled=runtime == "torch-compiled")
        for_latency = for_throughput = Predictor(torch_runtime, model.processor, model.classes)
    else:
        bundle = f"{job.folder}/{job.contender.removeprefix(OURS)}"
        for_latency, for_throughput = (
            Predictor.from_pretrained(bundle, job.device, runtime=runtime, performance_hint=hint)
            for hint in ("latency", "throughput")
        )

    def run_batches(batches: list[np.ndarray]) -> None:
        for _ in ordered_map(for_throughput.runtime, batches, for_throughput.runtime.concurrency):
            pass

    def make_batches(count: int) -> list[np.ndarray]:
        return [np.zeros((count, 3, 224, 224), np.uint8)] * 2 * for_throughput.runtime.concurrency

    return Classifier(make_batches, run_batches, for_latency.runtime, for_throughput, lambda path: for_latency([path]))


def _their_network(job: Job) -> Callable[[np.ndarray], Any]:
    """Returns a function from normalized float32 images to logits."""
    if job.contender.startswith("plain ONNX"):
        onnxruntime = optional_libraries.load("onnxruntime", "This contender")
        session = onnxruntime.InferenceSession(f"{job.folder}/plain.onnx", providers=["CPUExecutionProvider"])
        input_name = session.get_inputs()[0].name
        return lambda pixel_values: session.run(None, {input_name: pixel_values})[0]
    if job.contender.startswith("plain OpenVINO"):
        openvino = optional_libraries.load("openvino", "This contender")
        compiled = openvino.Core().compile_model(f"{job.folder}/plain {job.precision}.xml", "CPU")
        return lambda pixel_values: compiled([pixel_values])[0]
    if job.contender.startswith("timm"):
        network: torch.nn.Module = timm.create_model(f"deit_{job.size}_distilled_patch16_224").eval()
    else:
        network = transformers_model(job.size)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    network = network.to(job.device, dtype)
    model: Callable[..., Any] = torch.compile(network, mode="max-autotune") if "compiled" in job.contender else network

    def run(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = model(torch.from_numpy(pixel_values).to(job.device, dtype))
            logits: np.ndarray = getattr(output, "logits", output).float().cpu().numpy()
        return logits

    return run


def _their_classifier(run: Callable[[np.ndarray], Any]) -> Classifier:
    processor = transformers.DeiTImageProcessor(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )

    def classify_batch(paths: Sequence[str]) -> list[int]:
        images = [Image.open(path).convert("RGB") for path in paths]
        pixel_values = processor(images, return_tensors="pt").pixel_values.numpy()
        return [int(label) for label in np.asarray(run(pixel_values)).argmax(axis=1)]

    def classify_files(paths: Sequence[str]) -> list[int]:
        starts = range(0, len(paths), FILE_BATCH)
        return [label for start in starts for label in classify_batch(paths[start : start + FILE_BATCH])]

    def make_batches(count: int) -> list[np.ndarray]:
        return [np.zeros((count, 3, 224, 224), np.float32)]

    return Classifier(make_batches, lambda batches: run(batches[0]), run, classify_files, lambda path: classify_batch([path]))
