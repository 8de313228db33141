"""A bundle and the name of a runtime -> that runtime, ready to answer."""

from __future__ import annotations

import hashlib

from deit.errors import UserError
from deit.inference.bundle import Bundle
from deit.inference.runtimes import RUNTIMES, OnnxRuntime, OpenVinoRuntime, Runtime, RuntimeName, Work


def open_runtime(bundle: Bundle, name: RuntimeName, device: str = "cpu", work: Work = "latency") -> Runtime:
    """Load a bundle's graph.

    Raises:
        UserError: that runtime cannot run this format, or not on this device.
        CheckpointError: it cannot read the graph.
        MissingExtraError: it is not installed.
    """
    facts = bundle.facts
    if name not in RUNTIMES[facts.format]:
        known = " or ".join(RUNTIMES[facts.format])
        raise UserError(f"{name} runs no {facts.format} bundle", f"pass --runtime {known}")
    if name == "openvino":
        if device != "cpu":
            raise UserError(f"OpenVINO runs on the processor here, not on {device}", "pass --device cpu")
        key = hashlib.sha256("".join(facts.files.values()).encode()).hexdigest()[:32]
        return OpenVinoRuntime(bundle.graph, facts.heads, facts.precision, work, key)
    if name == "onnxruntime":
        return OnnxRuntime(bundle.graph, facts.heads, device, work)
    from deit.inference.torch_runtime import torch_runtime_of_bundle

    return torch_runtime_of_bundle(bundle, compiled=name == "torch-compiled", device=device)
