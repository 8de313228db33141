"""Who takes part in ``inference.py``: classifiers that answer pixels and files, ours and others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from deit.images.processor import DeiTImageProcessor
from deit.inference import libraries
from deit.inference.bundle import Format, Precision, write_bundle
from deit.inference.graph import Graph, operations
from deit.inference.predictor import Predictor
from deit.inference.runtimes import RuntimeName
from deit.inference.torch_runtime import TorchRuntime
from deit.models.auto import LoadedClassifier
from deit.models.modeling import new_classifier
from deit.system.hardware import cores
from deit.system.threads import ordered_map

CLASSES = tuple(map(str, range(1000)))
CALIBRATED = 16  # random weights have no accuracy to lose
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
        operations: of one image in its graph.
        folder: with what was prepared for it.
    """

    name: str
    size: str
    precision: Precision
    device: str
    operations: int
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Answerer:
    """A classifier that is ready.

    Attributes:
        values: number of images a call -> arrays of so many images, one for each call at once.
        many: such arrays -> logits, as it answers many.
        single: one such array -> logits, as it answers one image.
        files: paths -> labels, many; ``single_file`` one.
    """

    values: Callable[[int], Any]
    many: Callable[[Any], object]
    single: Callable[[Any], object]
    files: Callable[[Sequence[str]], object]
    single_file: Callable[[str], object]


def classifier(size: str) -> LoadedClassifier:
    """A distilled model with random weights."""
    config = variant_config(f"deit-{size}-distilled-patch16-224").with_classes(CLASSES)
    model = new_classifier(config, torch.Generator().manual_seed(0)).eval()
    return LoadedClassifier(model, DeiTImageProcessor.for_size(224, 224), CLASSES)


def their_model(size: str) -> torch.nn.Module:
    """The same shape in transformers."""
    config = variant_config(f"deit-{size}-distilled-patch16-224").with_classes(CLASSES)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields: dict[str, Any] = {name: getattr(config, name) for name in names}
    theirs = transformers.DeiTConfig(**fields, id2label=dict(enumerate(CLASSES)))
    network: torch.nn.Module = transformers.DeiTForImageClassificationWithTeacher(theirs)
    return network.eval()


def jobs(size: str, device: str, folder: str, files: tuple[str, ...]) -> dict[str, Job]:
    """By name, those that run on the device."""
    ours = operations(Graph(classifier(size)))
    theirs = _operations(their_model(size))
    made = {}
    for name in GPU_CONTENDERS if device == "cuda" else CPU_CONTENDERS:
        precision: Precision = next(value for value in get_args(Precision) if value in name)
        made[name] = Job(name, size, precision, device, ours if name.startswith(OURS) else theirs, folder, files)
    return made


def _operations(model: torch.nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    return int(counter.get_total_flops())


def prepare(size: str, folder: Path, entrants: dict[str, Job]) -> None:
    """Write the graphs that the entrants read. Ours are written without the gate: random weights would not pass it."""
    ours = classifier(size)
    graph = Graph(ours)
    images = [ours.processor.pixels(SampleCrops().load(number)) for number in range(CALIBRATED)]
    pixels = np.stack([np.moveaxis(image, -1, 0) for image in images])
    names = [name.removeprefix(OURS) for name in entrants if name.startswith(OURS) and "torch" not in name]
    network = formats.onnx_model(graph) if names else None
    small = quantization.quantize(network, pixels, ()) if any("int8" in name for name in names) else None
    for name in names:
        runtime, precision = name.split()
        form: Format = "onnx" if runtime == "onnxruntime" else "openvino"
        draft = folder / name
        draft.mkdir()
        model = small if precision == "int8" else network
        if form == "onnx":
            formats.write_onnx(model, draft)
        else:
            formats.write_openvino(model, draft, precision)  # type: ignore[arg-type]
        fields = {"format": form, "precision": precision, "pixels": "uint8", "shape": graph.shape, "heads": graph.heads}
        write_bundle(draft, ours.processor, {**fields, "classes": CLASSES})
    if any(name.startswith("plain") for name in entrants):
        _prepare_plain(size, folder, entrants, ours.processor.normalize(images))


def _prepare_plain(size: str, folder: Path, entrants: dict[str, Job], values: np.ndarray) -> None:
    """The model of transformers, converted as each library's own pages say."""
    openvino = libraries.load("openvino", "A peer")
    nncf = libraries.load("nncf", "A peer")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = their_model(size)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(pixel_values).logits
            return logits

    example = torch.from_numpy(values[:2])
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        if "plain ONNX Runtime fp32" in entrants:
            path = str(folder / "plain.onnx")
            torch.onnx.export(
                Logits(), (example,), path, dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False
            )
        model = openvino.convert_model(Logits(), example_input=example, input=[openvino.PartialShape([-1, 3, 224, 224])])
    openvino.save_model(model, folder / "plain bf16.xml")
    if "plain OpenVINO int8" in entrants:
        dataset = nncf.Dataset([image[None] for image in values])
        small = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(values))
        openvino.save_model(small, folder / "plain int8.xml")


def answerer(job: Job) -> Answerer:
    """A contender, loaded."""
    torch.set_num_threads(cores())
    return _ours(job) if job.name.startswith(OURS) else _theirs(_network(job))


def _ours(job: Job) -> Answerer:
    runtime: RuntimeName = job.name.removeprefix(OURS).split()[0]  # type: ignore[assignment]
    if runtime.startswith("torch"):
        ready = classifier(job.size)
        graph = Graph(ready)
        run = TorchRuntime(graph, job.device, job.precision, compiled=runtime == "torch-compiled")
        single = many = Predictor(run, ready.processor, ready.classes)
    else:
        bundle = f"{job.folder}/{job.name.removeprefix(OURS)}"
        single, many = (
            Predictor.from_pretrained(bundle, job.device, runtime=runtime, work=work) for work in ("latency", "throughput")
        )

    def all_calls(parts: list[np.ndarray]) -> None:
        for _ in ordered_map(many.runtime, parts, many.runtime.calls):
            pass

    def values(count: int) -> list[np.ndarray]:
        return [np.zeros((count, 3, 224, 224), np.uint8)] * 2 * many.runtime.calls

    return Answerer(values, all_calls, single.runtime, many, lambda path: single([path]))


def _network(job: Job) -> Callable[[np.ndarray], Any]:
    """Normalized float32 images -> logits."""
    if job.name.startswith("plain ONNX"):
        onnxruntime = libraries.load("onnxruntime", "A peer")
        session = onnxruntime.InferenceSession(f"{job.folder}/plain.onnx", providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda values: session.run(None, {name: values})[0]
    if job.name.startswith("plain OpenVINO"):
        openvino = libraries.load("openvino", "A peer")
        compiled = openvino.Core().compile_model(f"{job.folder}/plain {job.precision}.xml", "CPU")
        return lambda values: compiled([values])[0]
    if job.name.startswith("timm"):
        network: torch.nn.Module = timm.create_model(f"deit_{job.size}_distilled_patch16_224").eval()
    else:
        network = their_model(job.size)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    network = network.to(job.device, dtype)
    run: Callable[..., Any] = torch.compile(network, mode="max-autotune") if "compiled" in job.name else network

    def answer(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = run(torch.from_numpy(values).to(job.device, dtype))
            logits = getattr(logits, "logits", logits)
            found: np.ndarray = logits.float().cpu().numpy()
        return found

    return answer


def _theirs(network: Callable[[np.ndarray], Any]) -> Answerer:
    processor = transformers.DeiTImageProcessor(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )

    def labels(paths: Sequence[str]) -> list[int]:
        images = [Image.open(path).convert("RGB") for path in paths]
        values = processor(images, return_tensors="pt").pixel_values.numpy()
        return [int(place) for place in np.asarray(network(values)).argmax(axis=1)]

    def files(paths: Sequence[str]) -> list[int]:
        return [label for start in range(0, len(paths), 16) for label in labels(paths[start : start + 16])]

    def values(count: int) -> list[np.ndarray]:
        return [np.zeros((count, 3, 224, 224), np.float32)]

    return Answerer(values, lambda arrays: network(arrays[0]), network, files, lambda path: labels([path]))
