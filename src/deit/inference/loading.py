"""Loads a bundle into a runtime."""

from __future__ import annotations

import hashlib

from deit.errors import UserError
from deit.inference.bundle import Bundle
from deit.inference.runtimes import (
    FORMAT_RUNTIMES,
    OnnxRuntime,
    OpenVinoRuntime,
    PerformanceHint,
    Runtime,
    RuntimeName,
)


def load_runtime(
    bundle: Bundle, name: RuntimeName, device: str = "cpu", performance_hint: PerformanceHint = "latency"
) -> Runtime:
    """Loads the graph of a bundle.

    Raises:
        UserError: the runtime does not support the format or the device.
        CheckpointError: the runtime cannot read the graph.
        MissingExtraError: the runtime is not installed.
    """
    metadata = bundle.metadata
    classes = len(metadata.classes)
    if name not in FORMAT_RUNTIMES[metadata.format]:
        supported = " or ".join(FORMAT_RUNTIMES[metadata.format])
        raise UserError(f"{name} does not run {metadata.format} bundles", f"pass --runtime {supported}")
    if name == "openvino":
        if device != "cpu":
            raise UserError(f"OpenVINO is supported on CPUs only, not on {device}", "pass --device cpu")
        cache_key = hashlib.sha256("".join(metadata.files.values()).encode()).hexdigest()[:32]
        return OpenVinoRuntime(bundle.graph, metadata.heads, metadata.precision, performance_hint, cache_key, classes)
    if name == "onnxruntime":
        return OnnxRuntime(bundle.graph, metadata.heads, device, performance_hint, classes)
    from deit.inference.torch_runtime import load_torch_runtime

    return load_torch_runtime(bundle, device, name == "torch-compiled", performance_hint)
