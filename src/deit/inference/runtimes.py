"""Runtimes with one interface: pixels in, the logits of each head out. Does not import torch.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import re
import shutil
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np

from deit.errors import CheckpointError, DeiTError, UserError
from deit.inference import optional_libraries
from deit.inference.bundle import Format, Precision
from deit.system.files import read_json, write_json
from deit.system.hardware import cores, has_bf16
from deit.system.home import cache_directory

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
OPENVINO_BATCH_SIZE, ONNX_BATCH_SIZE, TORCH_BATCH_SIZE, GPU_BATCH_SIZE = 8, 4, 8, 256
MAX_CONCURRENT_BYTES = 32 * 2**20  # weights of a graph; larger ones do not fit into the CPU's caches (docs/log.md)

CACHE_KEY = re.compile("[0-9a-f]{32}")
CHECKSUMS_NAME = "checksums.json"  # beside compiled graphs, name -> CRC-32
MAX_CACHED_GRAPHS = 16  # compiled graphs, each about as large as its weights
MAX_ERROR_LENGTH = 200
EXTERNAL_LOCATION = b"\x0a\x08location\x12"  # entry of a tensor in ONNX that names the file of its values

R = TypeVar("R", bound="GraphRuntime")

_OPENVINO_LOCK = threading.Lock()
_openvino_cores: list[Any] = []  # none before the first graph, then one until the process ends


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

    def with_performance_hint(self, performance_hint: PerformanceHint) -> Runtime:
        """Returns a second runtime of the same model.

        Raises:
            CheckpointError: the graph was replaced.
        """


class GraphRuntime:
    """Base of the runtimes that open a graph file. A pickled one holds the path, and opens the same file again.

    Args:
        graph: path of the graph.
        arguments: further arguments of the class, by name.
    """

    def __init__(self, graph: Path, **arguments: Any) -> None:
        self._graph, self._arguments = graph.absolute(), arguments
        self._files = _file_versions(graph)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._graph, self._arguments, self._files)

    def with_performance_hint(self, performance_hint: PerformanceHint) -> Self:
        """Opens the graph once more, with another hint. It has weights of its own.

        Raises:
            CheckpointError: the graph was replaced.
        """
        return _reopen(type(self), self._graph, {**self._arguments, "performance_hint": performance_hint}, self._files)


class OpenVinoRuntime(GraphRuntime):
    """OpenVINO, usually the fastest runtime on x86 CPUs. Implements :class:`Runtime`.

    Args:
        graph: path of a ``model.xml`` with ``model.bin`` beside it, or of an ONNX file.
        heads: names of the outputs.
        precision: precision of the operators that are not int8 in the graph; int8 graphs run these in bf16 if the CPU has it.
        performance_hint: ``latency`` uses all cores for one call. ``throughput`` runs one call per core in parallel, or one
            call at a time if the weights do not fit into the CPU's caches, since each parallel call reads all of them.
        cache_key: key of the compiled graph in the cache, 32 hexadecimal digits that depend on the content of the graph;
            compiling takes longer than a prediction. None does not cache it.
        num_classes: number of classes that each output must have; None does not check it.

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
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            graph,
            heads=heads,
            precision=precision,
            performance_hint=performance_hint,
            cache_key=cache_key,
            num_classes=num_classes,
        )
        core = openvino_core("This graph")
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
        cache = None if cache_key is None else _use_cache(cache_directory() / "openvino" / cache_key)
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        with _as_checkpoint_error(f"OpenVINO cannot run {graph}"):
            _check_self_contained(graph)
            compiled = core.compile_model(graph, "CPU", settings)
            _check_outputs(graph, [output.partial_shape[-1] for output in compiled.outputs], heads, num_classes)
        if cache is not None:
            _record_checksums(cache)
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


class OnnxRuntime(GraphRuntime):
    """ONNX Runtime, for every platform and CPU. Implements :class:`Runtime`.

    Args:
        graph: path of an ONNX file.
        heads: names of the outputs.
        device: ``cpu``, or ``cuda`` if a build with CUDA is installed.
        performance_hint: ``latency`` uses all cores for one call, ``throughput`` runs one call per core in parallel.
        num_classes: number of classes that each output must have; None does not check it.

    Raises:
        CheckpointError: ONNX Runtime cannot read the graph.
        MissingExtraError: ONNX Runtime is not installed.
        UserError: the installed build does not support the device.
    """

    name: RuntimeName = "onnxruntime"

    def __init__(
        self,
        graph: Path,
        heads: tuple[str, ...],
        device: str = "cpu",
        performance_hint: PerformanceHint = "latency",
        num_classes: int | None = None,
    ) -> None:
        super().__init__(graph, heads=heads, device=device, performance_hint=performance_hint, num_classes=num_classes)
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
        with _as_checkpoint_error(f"ONNX Runtime cannot run {graph}"):
            _check_self_contained(graph)
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
            _check_outputs(graph, [output.shape[-1] for output in self._session.get_outputs()], heads, num_classes)
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


def openvino_core(feature: str) -> Any:
    """Returns the ``openvino.Core`` of this process, which all graphs share.

    A core gives the thread that first compiles a graph a stack for signal handlers, and takes it away with the core. Of several
    cores, the last one to be removed would restore the stack of another, and the next Ctrl-C would crash the process.

    OpenVINO fills its type tables at the first tensor, under a lock that it holds while it waits for the GIL: two threads that
    create their first tensors at the same time deadlock.

    Args:
        feature: what needs OpenVINO, for the message where it is not installed.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    openvino = optional_libraries.load("openvino", feature)
    with _OPENVINO_LOCK:
        if not _openvino_cores:
            _ = openvino.Tensor(np.zeros(1, np.uint8)).data
            _openvino_cores.append(openvino.Core())
        return _openvino_cores[0]


def _weight_bytes(graph: Path) -> int:
    """Returns the approximate size of a graph's weights."""
    return max((size for size, _ in _file_versions(graph)), default=0)


def _file_versions(graph: Path) -> list[tuple[int, int]]:
    """Returns size and modification time of a graph's files; empty if there is none."""
    if not graph.is_file():
        return []
    stats = [file.stat() for file in (graph, graph.with_suffix(".bin")) if file.is_file()]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _reopen(kind: type[R], graph: Path, arguments: dict[str, Any], files: list[tuple[int, int]]) -> R:
    """Opens the graph of a runtime again: of one that was pickled, or with other arguments.

    Raises:
        CheckpointError: the file is missing, or it was replaced, so that its classes may have another order.
    """
    if _file_versions(graph) != files:
        what = "was replaced after the predictor was loaded" if graph.is_file() else "does not exist"
        raise CheckpointError(f"{graph} {what}", "call Predictor.from_pretrained again")
    return kind(graph, **arguments)


def _use_cache(directory: Path) -> Path | None:
    """Creates the cache directory of a compiled graph or marks it as used; returns None if it is not writable.

    Removes damaged graphs, from which OpenVINO computes other logits without an error, and the least recently used ones.
    Directories whose name is not a cache key are not touched.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_damaged(directory)
        os.utime(directory)
        cached = (path for path in directory.parent.iterdir() if CACHE_KEY.fullmatch(path.name))
        latest_first = sorted(cached, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return None
    for path in latest_first[MAX_CACHED_GRAPHS:]:
        shutil.rmtree(path, ignore_errors=True)
    return directory if os.access(directory, os.W_OK) else None


def _checksums(directory: Path) -> dict[str, int]:
    """Returns the checksum of each compiled graph in a directory."""
    return {path.name: zlib.crc32(path.read_bytes()) for path in directory.iterdir() if path.suffix == ".blob"}


def _remove_damaged(directory: Path) -> None:
    """Removes compiled graphs that are not as they were written."""
    try:
        recorded = read_json(directory / CHECKSUMS_NAME) if (directory / CHECKSUMS_NAME).is_file() else {}
    except CheckpointError:
        recorded = {}
    for name, checksum in _checksums(directory).items():
        if recorded.get(name) != checksum:
            (directory / name).unlink()
            (directory / CHECKSUMS_NAME).unlink(missing_ok=True)  # written again with the new graph


def _record_checksums(directory: Path) -> None:
    """Writes the checksums of the compiled graphs, if there is a new one."""
    with contextlib.suppress(OSError, CheckpointError):
        names = {path.name for path in directory.glob("*.blob")}
        known = directory / CHECKSUMS_NAME
        if not known.is_file() or names != read_json(known).keys():
            write_json(known, _checksums(directory))


@contextmanager
def _as_checkpoint_error(problem: str) -> Iterator[None]:
    """Turns any exception of a runtime that reads a damaged graph into a :class:`CheckpointError`.

    These are of many kinds: ONNX Runtime's exceptions have no common base class, and the text of a message may be damaged, too.
    """
    try:
        yield
    except DeiTError:
        raise
    except Exception as error:
        raise CheckpointError(f"{problem} ({_last_line(error)})", "copy or export the model again") from error


def _check_self_contained(graph: Path) -> None:
    """Refuses an ONNX graph whose weights are in other files, which could be any file on this machine."""
    if graph.suffix != ".onnx" or not graph.is_file() or not graph.stat().st_size:
        return
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(EXTERNAL_LOCATION) >= 0:
            raise CheckpointError(f"{graph} refers to other files", "export the model again, into one file")


def _check_outputs(graph: Path, sizes: Sequence[Any], heads: Sequence[str], num_classes: int | None) -> None:
    """Compares the outputs of a graph with the metadata of its bundle. A size that is not known is not an integer."""
    if len(sizes) != len(heads):
        raise CheckpointError(f"{graph} has {len(sizes)} outputs", f"{len(heads)} heads are expected")
    for size in sizes:
        size = getattr(size, "get_length", lambda size=size: size)() if getattr(size, "is_static", True) else None
        if num_classes is not None and isinstance(size, int) and size != num_classes:
            raise CheckpointError(f"{graph} has {size} classes", f"{num_classes} are expected: export the model again")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:MAX_ERROR_LENGTH] if lines else type(error).__name__
