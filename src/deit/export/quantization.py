"""A graph in 8-bit integers: ranges from real images, and the products that suffer most left as they were.

NNCF does the quantization: a range for each activation from what the images make of it, one for each output channel of the
weights, and SmoothQuant (Xiao et al., arXiv 2211.10438), which moves what is large in a few channels from activations into
weights. Here it is decided which products are left out of it.
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
from deit.export.parity import LIMITS, Limit, compare, parts
from deit.inference import libraries
from deit.system.hardware import cores, has_bf16
from deit.system.progress import Progress, print_status

PRODUCTS = ("Conv", "Gemm", "MatMul")
# Stricter than the gate, since other images than these pass that.
TARGET = Limit(error=0.8 * LIMITS["int8"].error, agreement=0.99)
JUDGED_IMAGES = 64
BATCH = 16
SCOPES = "pkg.torch.onnx.name_scopes"


def quantized(model: Any, calibration: np.ndarray) -> tuple[Any, tuple[str, ...]]:
    """An ONNX model in int8.

    Where its answers to the calibration images are too far from the model's, each product is put back in turn, and those
    whose absence gains most stay out: one, then two, then four of them, until the answers are near enough.

    Args:
        model: in fp32.
        calibration: (n, C, height, width), as the model takes it.

    Returns:
        The int8 model, and the names of the parts that were left as they were.

    Raises:
        WorkError: with half of the products left out the answers are still too far.
        MissingExtraError: a library is not installed.
    """
    judged = calibration[:: max(1, len(calibration) // JUDGED_IMAGES)][:JUDGED_IMAGES]
    expected = _answers(model, judged)
    whole = quantize(model, calibration, ())
    parity = compare(expected, _answers(whole, judged))
    if parity.within(TARGET):
        return whole, ()
    print_status(f"All in int8 is {parity.error:.2g} off, {parity.agreement:.1%} agree: looking for what suffers most")
    worst = _by_gain(model, whole, judged, expected)
    count = 1
    while count <= len(worst) // 2:
        kept = worst[:count]
        tried = quantize(model, calibration, kept)
        parity = compare(expected, _answers(tried, judged))
        print_status(f"With {count} in higher precision it is {parity.error:.2g} off, {parity.agreement:.1%} agree")
        if parity.within(TARGET):
            return tried, tuple(part_name(model, name) for name in kept)
        count *= 2
    raise WorkError(
        f"With half of its products in int8 the model is still {parity.error:.2g} off, and {parity.agreement:.1%} agree",
        "export in bf16, or calibrate on images like those that the model was trained on",
    )


def part_name(model: Any, node_name: str) -> str:
    """The part of the network that a node of an ONNX model comes from, as its exporter noted it; else the node's own name.

    Example: ``model.deit.layers.3.mlp.fc2``.
    """
    node = next(node for node in model.graph.node if node.name == node_name)
    noted = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "")
    scopes = [scope for scope in noted.strip("[]").replace("'", "").split(", ") if "." in scope]
    return f"{scopes[-1]} ({node_name})" if scopes else node_name


def _by_gain(model: Any, whole: Any, judged: np.ndarray, expected: np.ndarray) -> list[str]:
    """The products of a model by how much nearer its int8 answers come when that product alone is put back."""
    originals = {node.name: node for node in model.graph.node}
    names = [node.name for node in whole.graph.node if node.op_type in PRODUCTS and node.name in originals]
    errors = {}
    with Progress("Trying products in higher precision", len(names), "products") as progress:
        for name in names:
            trial = copy.deepcopy(whole)
            node = next(node for node in trial.graph.node if node.name == name)
            present = {tensor.name for tensor in trial.graph.initializer}
            wanted = set(originals[name].input)
            trial.graph.initializer.extend(
                tensor for tensor in model.graph.initializer if tensor.name in wanted and tensor.name not in present
            )
            node.input[:] = originals[name].input
            errors[name] = compare(expected, _answers(trial, judged)).error
            progress.advance(1)
    return sorted(names, key=lambda name: errors[name])


def quantize(model: Any, calibration: np.ndarray, ignored: Collection[str]) -> Any:
    nncf = libraries.load("nncf", "int8")
    name = model.graph.input[0].name
    dataset = nncf.Dataset([{name: image[None]} for image in calibration])
    with _quietly(nncf):
        return nncf.quantize(
            copy.deepcopy(model),
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=sorted(ignored)),
        )


def _answers(model: Any, pixels: np.ndarray) -> np.ndarray:
    """The last head's logits, (n, K), as the fastest runtime gives them."""
    openvino = libraries.load("openvino", "int8")
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16() else "f32", "INFERENCE_NUM_THREADS": cores()}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return np.concatenate([compiled([part])[len(compiled.outputs) - 1] for part in parts(pixels, BATCH)])


@contextlib.contextmanager
def _quietly(nncf: Any) -> Iterator[None]:
    """Without NNCF's own progress bars, which are for a person who calls it by hand."""
    logger = logging.getLogger("nncf")
    level = logger.level
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
