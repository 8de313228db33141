"""Quantizes an ONNX model to int8, and keeps the most sensitive operators in higher precision if the accuracy requires it.

NNCF quantizes: one range per activation, calibrated on images, one per output channel of the weights, and SmoothQuant (Xiao et
al., arXiv 2211.10438), which moves outliers from activations into weights. This module chooses the operators to leave out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from deit.errors import WorkError
from deit.export.parity import LIMITS, Limit, batches, compare_logits
from deit.inference import optional_libraries
from deit.inference.runtimes import openvino_core
from deit.system.hardware import cores, has_bf16
from deit.system.progress import Progress, print_status

MATMUL_OPERATORS = ("Conv", "Gemm", "MatMul")
# Stricter than the parity check, which runs on other images than these.
TARGET = Limit(error=0.8 * LIMITS["int8"].error, agreement=0.99)
COMPARED_IMAGES = 64
BATCH_SIZE = 16
NAME_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def quantize(model: Any, calibration: np.ndarray) -> tuple[Any, tuple[str, ...]]:
    """Quantizes an ONNX model to int8.

    If its logits for the calibration images are too far from the fp32 logits, each operator is restored to fp32 in turn to
    measure how much that reduces the error. The operators with the largest effect are then excluded: one, two, four and so on,
    until the logits are within :data:`TARGET`.

    Args:
        model: ONNX model in fp32.
        calibration: (n, C, height, width), as the model takes it.

    Returns:
        The int8 model, and the names of the operators that were excluded.

    Raises:
        WorkError: the logits are too far off even with half of the operators excluded.
        MissingExtraError: a library is not installed.
    """
    compared = calibration[:: max(1, len(calibration) // COMPARED_IMAGES)][:COMPARED_IMAGES]
    expected = _run(model, compared)
    quantized = run_nncf(model, calibration, ())
    parity = compare_logits(expected, _run(quantized, compared))
    if parity.within(TARGET):
        return quantized, ()
    print_status(
        f"Entirely in int8: logit error {parity.error:.2g}, agreement {parity.agreement:.1%}; searching for sensitive operators"
    )
    names = _rank_by_sensitivity(model, quantized, compared, expected)
    count = 1
    while count <= len(names) // 2:
        excluded = names[:count]
        candidate = run_nncf(model, calibration, excluded)
        parity = compare_logits(expected, _run(candidate, compared))
        print_status(f"{count} in higher precision: logit error {parity.error:.2g}, agreement {parity.agreement:.1%}")
        if parity.within(TARGET):
            return candidate, tuple(module_name(model, name) for name in excluded)
        count *= 2
    raise WorkError(
        f"With half of its operators in int8, the model has a logit error of {parity.error:.2g} and an agreement of "
        f"{parity.agreement:.1%}",
        "export in bf16, or calibrate on images like the training data",
    )


def module_name(model: Any, node_name: str) -> str:
    """Returns the module that a node of an ONNX model was exported from, and the name of the node.

    Example: ``model.deit.layers.3.mlp.fc2 (node_linear_15)``. Without the exporter's metadata, only the name of the node.
    """
    node = next(node for node in model.graph.node if node.name == node_name)
    metadata = {entry.key: entry.value for entry in node.metadata_props}.get(NAME_SCOPES_KEY, "")
    scopes = [scope for scope in metadata.strip("[]").replace("'", "").split(", ") if "." in scope]
    return f"{scopes[-1]} ({node_name})" if scopes else node_name


def run_nncf(model: Any, calibration: np.ndarray, excluded: Collection[str]) -> Any:
    """Quantizes an ONNX model with NNCF, except for the excluded nodes."""
    nncf = optional_libraries.load("nncf", "int8")
    input_name = model.graph.input[0].name
    dataset = nncf.Dataset([{input_name: image[None]} for image in calibration])
    with _silent_nncf(nncf):
        return nncf.quantize(
            copy.deepcopy(model),
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=sorted(excluded)),
        )


def _rank_by_sensitivity(model: Any, quantized: Any, compared: np.ndarray, expected: np.ndarray) -> list[str]:
    """Returns the names of the matrix products, the one whose restoration to fp32 reduces the error most first."""
    originals = {node.name: node for node in model.graph.node}
    names = [node.name for node in quantized.graph.node if node.op_type in MATMUL_OPERATORS and node.name in originals]
    errors = {}
    with Progress("Trying operators in higher precision", len(names), "operators") as progress:
        for name in names:
            candidate = copy.deepcopy(quantized)
            node = next(node for node in candidate.graph.node if node.name == name)
            present = {tensor.name for tensor in candidate.graph.initializer}
            required = set(originals[name].input)
            candidate.graph.initializer.extend(
                tensor for tensor in model.graph.initializer if tensor.name in required and tensor.name not in present
            )
            node.input[:] = originals[name].input
            errors[name] = compare_logits(expected, _run(candidate, compared)).error
            progress.advance(1)
    return sorted(names, key=lambda name: errors[name])


def _run(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Runs an ONNX model in OpenVINO, in bf16 where the hardware has it, and returns the logits (n, K) of its last head."""
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16() else "f32", "INFERENCE_NUM_THREADS": cores()}
    core = openvino_core("int8")
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return np.concatenate([compiled([batch])[len(compiled.outputs) - 1] for batch in batches(pixels, BATCH_SIZE)])


@contextlib.contextmanager
def _silent_nncf(nncf: Any) -> Iterator[None]:
    """Silences NNCF's log and progress bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
