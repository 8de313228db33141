"""What runs a graph, all behind one face: pixels in, each head's logits out. Nothing here needs torch.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import shutil
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from deit.errors import CheckpointError, UserError
from deit.inference import libraries
from deit.inference.bundle import Format, Precision
from deit.system.hardware import cores, has_bf16

RuntimeName = Literal["openvino", "onnxruntime", "torch", "torch-compiled"]
Work = Literal["latency", "throughput"]

# What can run a graph of each format, the one that is usually fastest first.
RUNTIMES: dict[Format, tuple[RuntimeName, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("openvino", "onnxruntime"),
    "torch": ("torch", "torch-compiled"),
}
# Images of a call where there are many: with more, nothing is faster (docs/log.md).
OPENVINO_BATCH, ONNX_BATCH, TORCH_BATCH, GPU_BATCH = 8, 4, 16, 256
CACHED_BYTES = 32 * 2**20
KEPT_GRAPHS = 16  # compiled ones, each about the size of its weights
KEY = re.compile("[0-9a-f]{32}")
LIBRARIES: dict[RuntimeName, str] = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "torch-compiled": "torch",
}

FIRST_TENSOR = threading.Lock()
CACHE_VARIABLE = "DEIT_CACHE"


def cache_directory() -> Path:
    """Where this machine's measurements and compiled graphs are kept: ``DEIT_CACHE``, or below the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit"


class Runtime(Protocol):
    """A classifier that is ready to answer.

    Attributes:
        name: which one it is.
        device: where it runs.
        heads: the names of the logits; the last is the model's answer.
        calls: how many calls, from as many threads, it works on at the same time; more wait.
        batch: how many images a call should have where there are many.
    """

    name: RuntimeName
    device: str
    heads: tuple[str, ...]
    calls: int
    batch: int

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(B, C, height, width) -> logits (B, K), float32, by head."""


class OpenVinoRuntime:
    """Intel's runtime: on x86 processors usually the fastest.

    Args:
        graph: a ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        heads: as in :class:`Runtime`.
        precision: of the products that are not int8 by the graph itself: int8 graphs run the rest in bf16 where the processor
            has it.
        work: ``latency`` puts all cores on one call, ``throughput`` works on as many calls as there are cores, but on one where
            the weights are too large for the caches: calls side by side would each fetch all of them.
        key: of the graph's content, 32 hexadecimal digits; by it the compiled graph is kept, since compiling takes longer than
            an answer. None keeps nothing.

    Raises:
        CheckpointError: a graph that it cannot read.
        MissingExtraError: it is not installed.
    """

    name: RuntimeName = "openvino"
    device = "cpu"

    def __init__(
        self, graph: Path, heads: tuple[str, ...], precision: Precision, work: Work = "latency", key: str | None = None
    ) -> None:
        openvino = _openvino()
        self.heads = heads
        self.calls = cores() if work == "throughput" and _weight_bytes(graph) <= CACHED_BYTES else 1
        self.batch = OPENVINO_BATCH
        low = precision == "bf16" or (precision == "int8" and has_bf16())
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
            "INFERENCE_NUM_THREADS": cores(),
            "NUM_STREAMS": str(self.calls),
        }
        if key is not None and (kept := _kept(cache_directory() / "openvino" / key)):
            settings["CACHE_DIR"] = str(kept)
        try:
            compiled = openvino.Core().compile_model(graph, "CPU", settings)
            if len(compiled.outputs) != len(heads):
                raise CheckpointError(f"{graph} has {len(compiled.outputs)} outputs", f"{len(heads)} heads are expected")
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {graph} ({_first_line(error)})", "export the model again") from error
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.calls):
            self._free.put(compiled.create_infer_request())

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """As :class:`Runtime` says."""
        request = self._free.get()
        try:
            request.infer([pixels], share_inputs=True)
            return {head: request.get_output_tensor(place).data.copy() for place, head in enumerate(self.heads)}
        finally:
            self._free.put(request)


class OnnxRuntime:
    """ONNX Runtime: on every platform and processor.

    Args:
        graph: an ONNX file.
        heads: as in :class:`Runtime`.
        device: ``cpu``, or ``cuda`` where a build with CUDA is installed.
        work: as in :class:`OpenVinoRuntime`.

    Raises:
        CheckpointError: a graph that it cannot read.
        MissingExtraError: it is not installed.
        UserError: it has no such device.
    """

    name: RuntimeName = "onnxruntime"

    def __init__(self, graph: Path, heads: tuple[str, ...], device: str = "cpu", work: Work = "latency") -> None:
        onnxruntime = libraries.load("onnxruntime", "This graph")
        self.heads, self.device = heads, device
        on_gpu = device.startswith("cuda")
        provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"This ONNX Runtime has no {provider}", "install onnxruntime-gpu, or pass --device cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.calls = cores() if work == "throughput" and not on_gpu else 1
        self.batch = GPU_BATCH if on_gpu else ONNX_BATCH
        options.intra_op_num_threads = 1 if self.calls > 1 else cores()
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
        except _own_errors() as error:
            raise CheckpointError(f"ONNX Runtime cannot run {graph} ({_first_line(error)})", "export it again") from error
        self._input = self._session.get_inputs()[0].name
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.calls):
            self._free.put(None)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """As :class:`Runtime` says."""
        self._free.get()
        try:
            return dict(zip(self.heads, self._session.run(None, {self._input: pixels}), strict=True))
        finally:
            self._free.put(None)


def usable(format: Format, device: str = "cpu") -> tuple[RuntimeName, ...]:
    """What is installed here and can run a graph of that format on that device, best guess first.

    Not what compiles for a minute before its first answer: that is for whoever asks for it by name.
    """
    unfit = {"torch-compiled"} if device == "cpu" else {"torch-compiled", "openvino"}
    return tuple(name for name in RUNTIMES[format] if name not in unfit and libraries.version(LIBRARIES[name]) is not None)


def _openvino() -> ModuleType:
    """OpenVINO, with its tables of types filled.

    It fills them at its first tensor, under a lock of its own that it keeps while it waits for Python's: two threads whose
    first tensors meet would wait for each other for good.
    """
    openvino = libraries.load("openvino", "This graph")
    with FIRST_TENSOR:
        _ = openvino.Tensor(np.zeros(1, np.uint8)).data
    return openvino


def _weight_bytes(graph: Path) -> int:
    """About the size of a graph's weights."""
    beside = graph.with_suffix(".bin")
    return max(file.stat().st_size for file in (graph, beside) if file.is_file()) if graph.is_file() else 0


def _kept(directory: Path) -> Path | None:
    """Where a compiled graph is kept, marked as used now; None where nothing can be written.

    Of all kept graphs those that were used last stay, the others go. What has another name than a key was not put there by us.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        ours = (place for place in directory.parent.iterdir() if KEY.fullmatch(place.name))
        by_use = sorted(ours, key=lambda place: place.stat().st_mtime_ns, reverse=True)
    except OSError:
        return None
    for old in by_use[KEPT_GRAPHS:]:
        shutil.rmtree(old, ignore_errors=True)
    return directory if os.access(directory, os.W_OK) else None


def _own_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which have no common base."""
    kinds = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
