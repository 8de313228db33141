"""torch as a runtime, eager or compiled, on a CPU or a GPU.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deit.errors import UserError
from deit.inference.bundle import Bundle, Precision
from deit.inference.inference_model import InferenceModel, use_matmul_attention
from deit.inference.runtimes import GPU_BATCH_SIZE, TORCH_BATCH_SIZE, PerformanceHint, RuntimeName
from deit.models.auto import load_classifier
from deit.system.devices import choose_device
from deit.system.torch_threads import torch_thread_pool

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchRuntime:
    """Runs an inference model in torch. Implements :class:`deit.inference.runtimes.Runtime`.

    Args:
        model: the model to run; it is not changed.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: precision of the weights and of all computation.
        compiled: use ``torch.compile``, which takes about a minute at first; on a GPU it records the kernel launches once and
            replays them (CUDA graphs). Batches are padded to a power of two, so that few shapes are compiled.
        performance_hint: on a CPU, ``throughput`` runs one call per compute thread of torch in parallel, if the calls come from
            other threads than the main one; ``latency`` uses all of them for one call. Compiled models and other devices run
            one call at a time.

    Raises:
        UserError: the device does not exist, or the precision is int8, which this runtime does not support.
    """

    def __init__(
        self,
        model: InferenceModel,
        device: str = "auto",
        precision: Precision = "fp32",
        compiled: bool = False,
        performance_hint: PerformanceHint = "throughput",
    ) -> None:
        if precision not in DTYPES:
            raise UserError("The torch runtime does not support int8", "export to openvino or onnx")
        torch_device = choose_device(device)
        self.name: RuntimeName = "torch-compiled" if compiled else "torch"
        on_cpu = torch_device.type == "cpu"
        self.device, self.heads = str(torch_device), model.heads
        self.concurrency = torch.get_num_threads() if on_cpu and not compiled and performance_hint == "throughput" else 1
        self.batch_size = GPU_BATCH_SIZE if torch_device.type == "cuda" else TORCH_BATCH_SIZE
        if precision != "fp32" or not on_cpu:
            model = copy.deepcopy(model).to(torch_device, DTYPES[precision])
        self._arguments = (model, self.device, precision, compiled, performance_hint)
        self._device, self._compiled = torch_device, compiled
        if on_cpu and precision == "bf16" and not compiled:
            model = use_matmul_attention(model)
        mode = "max-autotune" if torch_device.type == "cuda" else "default"
        self._forward: Callable[[Tensor], Any] = torch.compile(model, mode=mode, dynamic=False) if compiled else model
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchRuntime, self._arguments  # threads and compiled code cannot be pickled

    def with_performance_hint(self, performance_hint: PerformanceHint) -> TorchRuntime:
        """Returns a second runtime of the same model, which shares its weights in fp32 on a CPU."""
        model, device, precision, compiled, _ = self._arguments
        return TorchRuntime(model, device, precision, compiled, performance_hint)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(B, C, height, width) -> logits (B, K), float32, by head."""
        if self._device.type == "cpu" and threading.current_thread() is threading.main_thread():
            return self._run(pixels)
        return self._pool().submit(self._run, pixels).result()

    def _pool(self) -> ThreadPoolExecutor:
        """Returns the threads that run the model for other threads than the main one.

        torch starts a pool of compute threads for each thread that calls it; with more of them than cores they would compete.
        So either one thread calls it, or several that compute by themselves. On a GPU, calls from the main thread run here too:
        recorded CUDA graphs belong to one thread.
        """
        with self._lock:
            if self._threads is None:
                self._threads = (
                    ThreadPoolExecutor(1, "deit-torch") if self.concurrency == 1 else torch_thread_pool(self.concurrency)
                )
            return self._threads

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        count = len(pixels)
        batch = torch.from_numpy(pixels)
        if self._compiled:
            batch = torch.cat([batch, batch.new_zeros(_next_power_of_two(count) - count, *batch.shape[1:])])
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            outputs = torch.stack(self._forward(batch.to(self._device, non_blocking=True)))  # (heads, B, K)
            logits = outputs[:, :count].float().cpu().numpy()
        return dict(zip(self.heads, logits, strict=True))


def load_torch_runtime(bundle: Bundle, device: str, compiled: bool, performance_hint: PerformanceHint) -> TorchRuntime:
    """Loads a torch bundle.

    Raises:
        CheckpointError: the files are not a readable model.
        UserError: the device does not exist.
    """
    classifier = load_classifier(bundle.path)
    classifier.processor = bundle.processor
    return TorchRuntime(InferenceModel(classifier), device, bundle.metadata.precision, compiled, performance_hint)


def _next_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
