"""torch as a runtime, plain or compiled, on a processor or a GPU."""

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
from deit.inference.graph import Graph
from deit.inference.runtimes import GPU_BATCH, TORCH_BATCH, RuntimeName
from deit.models.auto import load_classifier
from deit.system.devices import choose_device

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchRuntime:
    """Runs a graph in torch.

    Args:
        graph: what is run; it is left as it is.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: of the weights and of all that is computed.
        compiled: by ``torch.compile``, which takes a minute at first; on a GPU its launches are then recorded once and
            replayed (CUDA graphs). Batches are filled up to a power of two, so that few shapes are compiled.

    Raises:
        UserError: no such device, or int8, which torch does not run here.
    """

    def __init__(self, graph: Graph, device: str = "auto", precision: Precision = "fp32", compiled: bool = False) -> None:
        if precision not in DTYPES:
            raise UserError("torch runs no int8 here", "export to openvino or onnx")
        place = choose_device(device)
        self.name: RuntimeName = "torch-compiled" if compiled else "torch"
        self.device, self.heads, self.calls = str(place), graph.heads, 1
        self.batch = GPU_BATCH if place.type == "cuda" else TORCH_BATCH
        if precision != "fp32" or place.type != "cpu":
            graph = copy.deepcopy(graph).to(place, DTYPES[precision])
        self._pixels = getattr(torch, graph.pixels)
        self._place, self._compiled = place, compiled
        mode = "max-autotune" if place.type == "cuda" else "default"
        self._run: Callable[[Tensor], Any] = torch.compile(graph, mode=mode, dynamic=False) if compiled else graph
        # One thread answers all but the main one: torch starts processor threads for each that it is called from. On a GPU it
        # answers the main one too, since recorded CUDA graphs belong to the thread that recorded them.
        self._thread = ThreadPoolExecutor(1, "deit-torch")

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """As :class:`deit.inference.runtimes.Runtime` says."""
        if self._place.type == "cpu" and threading.current_thread() is threading.main_thread():
            return self._answers(pixels)
        return self._thread.submit(self._answers, pixels).result()

    def _answers(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        count = len(pixels)
        values = torch.from_numpy(pixels)
        if self._compiled:
            values = torch.cat([values, values.new_zeros(_power_of_two(count) - count, *values.shape[1:])])
        if self._place.type == "cuda":
            values = values.pin_memory()
        with torch.inference_mode():
            logits = torch.stack(self._run(values.to(self._place, non_blocking=True)))  # (heads, B, K)
            answers = logits[:, :count].float().cpu().numpy()
        return dict(zip(self.heads, answers, strict=True))


def torch_runtime_of_bundle(bundle: Bundle, compiled: bool, device: str) -> TorchRuntime:
    """Load a torch bundle.

    Raises:
        CheckpointError: the weights are no model's.
        UserError: no such device.
    """
    classifier = load_classifier(bundle.path)
    classifier.processor = bundle.processor
    return TorchRuntime(Graph(classifier), device, bundle.facts.precision, compiled)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
