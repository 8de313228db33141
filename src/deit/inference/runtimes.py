"""Runtimes with one interface: pixels in, the logits of each head out. Does not import torch.

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
from deit.inference import optional_libraries
from deit.inference.bundle import Format, Precision
from deit.system.hardware import cores, has_bf16

RuntimeName = Literal["openvino", "onnxruntime", "torch", "torch-compiled"]
PerformanceHint = Literal["latency", "throughput"]

# The runtimes of each format, usually the fastest first.
FORMAT_RUNTIMES: dict[Format, tuple[RuntimeName, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("openvino", "onnxruntime"),
    "torch": ("torch", "torch-compiled"),
}
RUNTIME_LIBRARIES: dict[RuntimeName, str] = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "torch-compiled": "torch",
}
# Batch sizes for throughput; larger ones are not faster (docs/log.md).
OPENVINO_BATCH_SIZE, ONNX_BATCH_SIZE, TORCH_BATCH_SIZE, GPU_BATCH_SIZE = 8, 4, 16, 256
MAX_CONCURRENT_BYTES = 32 * 2**20  # weights of a graph; larger ones do not fit into the CPU's caches (docs/log.md)

CACHE_VARIABLE = "DEIT_CACHE"
CACHE_KEY = re.compile("[0-9a-f]{32}")
MAX_CACHED_GRAPHS = 16  # compiled graphs, each about as large as its weights
MAX_ERROR_LENGTH = 200

_OPENVINO_LOCK = threading.Lock()


def cache_directory() -> Path:
    """Returns the directory of measurements and compiled graphs: ``$DEIT_CACHE``, or ``deit`` in the user's cache."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit"


class Runtime(Protocol):
    """A loaded classifier.

    Attributes:
        name: name of the runtime.
        device: device that it runs on.
        heads: names of the outputs, which are logits; the last one is the model's prediction.
        concurrency: number of calls, from as many threads, that run in parallel; further calls wait.
        batch_size: recommended number of images per call for throughput.
    """

    name: RuntimeName
    device: str
    heads: tuple[str, ...]
    concurrency: int
    batch_size: int

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(B, C, height, width) -> logits (B, K), float32, by head."""


class OpenVinoRuntime:
    """OpenVINO, usually the fastest runtime on x86 CPUs. Implements :class:`Runtime`.

    Args:
        graph: path of a ``model.xml`` with ``model.bin`` beside it, or of an ONNX file.
        heads: names of the outputs.
        precision: precision of the operators that are not int8 in the graph; int8 graphs run these in bf16 if the CPU has it.
        performance_hint: ``latency`` uses all cores for one call. ``throughput`` runs one call per core in parallel, or one
            call at a time if the weights do not fit into the CPU's caches, since each parallel call reads all of them.
        cache_key: key of the compiled graph in the cache, 32 hexadecimal digits that depend on the content of the graph;
            compiling takes longer than a prediction. None does not cache it.

    Raises:
        CheckpointError: OpenVINO cannot read the graph.
        MissingExtraError: OpenVINO is not installed.
    """

    name: RuntimeName = "openvino"
    device = "cpu"

    def __init__(
        self,
        graph: Path,
        heads: tuple[str, ...],
        precision: Precision,
        performance_hint: PerformanceHint = "latency",
        cache_key: str | None = None,
    ) -> None:
        openvino = _load_openvino()
        self.heads = heads
        parallel = performance_hint == "throughput" and _weight_bytes(graph) <= MAX_CONCURRENT_BYTES
        self.concurrency = cores() if parallel else 1
        self.batch_size = OPENVINO_BATCH_SIZE
        uses_bf16 = precision == "bf16" or (precision == "int8" and has_bf16())
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if uses_bf16 else "f32",
            "INFERENCE_NUM_THREADS": cores(),
            "NUM_STREAMS": str(self.concurrency),
        }
        if cache_key is not None and (directory := _use_cache(cache_directory() / "openvino" / cache_key)):
            settings["CACHE_DIR"] = str(directory)
        try:
            compiled = openvino.Core().compile_model(graph, "CPU", settings)
            if len(compiled.outputs) != len(heads):
                raise CheckpointError(f"{graph} has {len(compiled.outputs)} outputs", f"{len(heads)} heads are expected")
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {graph} ({_last_line(error)})", "export the model again") from error
        self._idle_requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.concurrency):
            self._idle_requests.put(compiled.create_infer_request())

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(B, C, height, width) -> logits (B, K), float32, by head."""
        request = self._idle_requests.get()
        try:
            request.infer([pixels], share_inputs=True)
            # The request reuses its output memory.
            return {head: request.get_output_tensor(index).data.copy() for index, head in enumerate(self.heads)}
        finally:
            self._idle_requests.put(request)


class OnnxRuntime:
    """ONNX Runtime, for every platform and CPU. Implements :class:`Runtime`.

    Args:
        graph: path of an ONNX file.
        heads: names of the outputs.
        device: ``cpu``, or ``cuda`` if a build with CUDA is installed.
        performance_hint: ``latency`` uses all cores for one call, ``throughput`` runs one call per core in parallel.

    Raises:
        CheckpointError: ONNX Runtime cannot read the graph.
        MissingExtraError: ONNX Runtime is not installed.
        UserError: the installed build does not support the device.
    """

    name: RuntimeName = "onnxruntime"

    def __init__(
        self, graph: Path, heads: tuple[str, ...], device: str = "cpu", performance_hint: PerformanceHint = "latency"
    ) -> None:
        onnxruntime = optional_libraries.load("onnxruntime", "This graph")
        self.heads, self.device = heads, device
        on_gpu = device.startswith("cuda")
        provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"This ONNX Runtime has no {provider}", "install onnxruntime-gpu, or pass --device cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.concurrency = cores() if performance_hint == "throughput" and not on_gpu else 1
        self.batch_size = GPU_BATCH_SIZE if on_gpu else ONNX_BATCH_SIZE
        options.intra_op_num_threads = 1 if self.concurrency > 1 else cores()
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
        except _onnxruntime_errors() as error:
            raise CheckpointError(f"ONNX Runtime cannot run {graph} ({_last_line(error)})", "export it again") from error
        self._input_name = self._session.get_inputs()[0].name
        self._idle_slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.concurrency):
            self._idle_slots.put(None)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(B, C, height, width) -> logits (B, K), float32, by head."""
        self._idle_slots.get()
        try:
            return dict(zip(self.heads, self._session.run(None, {self._input_name: pixels}), strict=True))
        finally:
            self._idle_slots.put(None)


def available_runtimes(format: Format, device: str = "cpu") -> tuple[RuntimeName, ...]:
    """Returns the installed runtimes that support a format and a device, usually the fastest first.

    Excludes ``torch-compiled``, which compiles for about a minute before the first prediction: it is used only on request.
    """
    excluded = {"torch-compiled"} if device == "cpu" else {"torch-compiled", "openvino"}
    return tuple(
        name
        for name in FORMAT_RUNTIMES[format]
        if name not in excluded and optional_libraries.version(RUNTIME_LIBRARIES[name]) is not None
    )


def _load_openvino() -> ModuleType:
    """Imports OpenVINO and initializes its type tables.

    OpenVINO fills them at the first tensor, under a lock that it holds while it waits for the GIL: two threads that create
    their first tensors at the same time deadlock.
    """
    openvino = optional_libraries.load("openvino", "This graph")
    with _OPENVINO_LOCK:
        _ = openvino.Tensor(np.zeros(1, np.uint8)).data
    return openvino


def _weight_bytes(graph: Path) -> int:
    """Returns the approximate size of a graph's weights."""
    weights = graph.with_suffix(".bin")
    return max(file.stat().st_size for file in (graph, weights) if file.is_file()) if graph.is_file() else 0


def _use_cache(directory: Path) -> Path | None:
    """Creates the cache directory of a compiled graph or marks it as used; returns None if it is not writable.

    Removes the least recently used compiled graphs. Directories whose name is not a cache key are not touched.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        cached = (path for path in directory.parent.iterdir() if CACHE_KEY.fullmatch(path.name))
        latest_first = sorted(cached, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return None
    for path in latest_first[MAX_CACHED_GRAPHS:]:
        shutil.rmtree(path, ignore_errors=True)
    return directory if os.access(directory, os.W_OK) else None


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Returns the exception classes of ONNX Runtime, which have no common base class."""
    values = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    return tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:MAX_ERROR_LENGTH] if lines else type(error).__name__
