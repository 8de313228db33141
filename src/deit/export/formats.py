"""Writes the graph files of each format."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deit.inference import optional_libraries
from deit.inference.bundle import GRAPH_FILES, Precision
from deit.inference.inference_model import InferenceModel, unfuse_attention
from deit.inference.runtimes import openvino_core
from deit.models.auto import LoadedClassifier
from deit.models.modeling import TransformerClassifier

INPUT_NAME = "pixels"
OPSET = 20  # the first with a Gelu operator
MAX_BATCH_SIZE = 4096


def onnx_model(model: InferenceModel) -> Any:
    """Returns the model as an ONNX model in fp32, with a dynamic batch size."""
    optional_libraries.load("onnx", "Export to ONNX")
    optional_libraries.load("onnxscript", "Export to ONNX")
    batch = torch.export.Dim("images", min=1, max=MAX_BATCH_SIZE)
    with _silent_exporter(), torch.no_grad():
        program = torch.onnx.export(
            unfuse_attention(model),
            # Two images: torch specializes a dimension of size one.
            (model.example_input(2),),
            dynamic_shapes=({0: batch},),
            input_names=[INPUT_NAME],
            output_names=list(model.heads),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def write_onnx(model: Any, draft: Path) -> None:
    """Writes an ONNX model."""
    (draft / GRAPH_FILES["onnx"][0]).write_bytes(model.SerializeToString())


def remove_metadata(model: Any) -> None:
    """Removes what the exporter notes for developers, such as stack traces, from an ONNX model. No runtime reads it."""
    for item in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def write_openvino(model: Any, draft: Path, precision: Precision) -> None:
    """Writes an ONNX model as an OpenVINO model; for bf16 with weights in fp16, which is more accurate than bf16."""
    openvino = optional_libraries.load("openvino", "Export to OpenVINO")
    graph = openvino_core("Export to OpenVINO").read_model(model.SerializeToString())
    openvino.save_model(graph, draft / GRAPH_FILES["openvino"][0], compress_to_fp16=precision == "bf16")


def write_torch(classifier: LoadedClassifier, draft: Path, precision: Precision) -> None:
    """Writes a model directory with the weights in fp32 or bf16."""
    assert isinstance(classifier.model, TransformerClassifier)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    copy.deepcopy(classifier.model).to(dtype).save_pretrained(draft)


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """Silences the exporters, whose output is meant for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
