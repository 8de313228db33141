"""Bundle: an exported model on disk.

A directory with ``bundle.json``, ``preprocessor_config.json`` and the files of the graph. ``bundle.json`` has the hashes of all
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deit.config import MAX_CLASSES
from deit.errors import CheckpointError, validation_problem
from deit.images.processor import DeiTImageProcessor
from deit.system.files import BUNDLE_NAME, CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_NAME, read_json, sha256, write_json

Format = Literal["openvino", "onnx", "torch"]
Precision = Literal["fp32", "bf16", "int8"]
InputDtype = Literal["uint8", "float32"]

# The files of each format. No other file in the directory of a bundle is opened.
GRAPH_FILES: dict[Format, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "onnx": ("model.onnx",),
    "torch": (CONFIG_NAME, WEIGHTS_NAME),
}
MAX_GRAPH_BYTES = 8 * 2**30

Dimension = Annotated[int, Field(ge=1, le=16_384)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class BundleMetadata(BaseModel):
    """The content of ``bundle.json``.

    Attributes:
        version: version of this format.
        format: format of the graph.
        precision: precision of its matrix products.
        files: file name -> SHA-256.
        input_dtype: type of the input: ``uint8`` if the graph rescales and normalizes, ``float32`` if the processor does.
        input_shape: shape (C, height, width) of one input image.
        heads: names of the outputs, which are logits; the last one is the model's prediction.
        classes: class names in the order of the logits.
        kept: operators of an int8 graph that were kept in higher precision.
        report: measurements of the parity check.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    format: Format
    precision: Precision
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    input_dtype: InputDtype
    input_shape: tuple[Dimension, Dimension, Dimension]
    heads: Annotated[tuple[Name, ...], Field(min_length=1, max_length=3)]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    kept: tuple[Name, ...] = ()
    report: dict[str, Any] = {}


@dataclass(frozen=True)
class Bundle:
    """An exported model whose files were verified.

    Attributes:
        path: its directory.
        metadata: content of ``bundle.json``.
        processor: image processor for its input.
    """

    path: Path
    metadata: BundleMetadata
    processor: DeiTImageProcessor

    @property
    def graph(self) -> Path:
        """Path of the graph: a file, or the directory of a torch bundle."""
        return self.path if self.metadata.format == "torch" else self.path / GRAPH_FILES[self.metadata.format][0]

    @property
    def graph_bytes(self) -> int:
        """Total size of the graph's files."""
        return sum((self.path / name).stat().st_size for name in GRAPH_FILES[self.metadata.format])


def is_bundle(path: str | Path) -> bool:
    """Returns whether a path is an exported model."""
    return (Path(path) / BUNDLE_NAME).is_file()


def open_bundle(path: str | Path) -> Bundle:
    """Reads the metadata of an exported model and verifies its files.

    Raises:
        CheckpointError: a file is missing, modified or too large, or the metadata is invalid.
    """
    path = Path(path)
    try:
        metadata = BundleMetadata.model_validate(read_json(path / BUNDLE_NAME))
    except ValidationError as error:
        raise CheckpointError(f"{path / BUNDLE_NAME}: {validation_problem(error)}", "export the model again") from error
    if set(metadata.files) != {*GRAPH_FILES[metadata.format], PROCESSOR_NAME}:
        raise CheckpointError(
            f"{path / BUNDLE_NAME} does not list the files of the format {metadata.format}", "export the model again"
        )
    for name, expected in metadata.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} has no {name}", "copy or export the model again")
        if file.stat().st_size > MAX_GRAPH_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_GRAPH_BYTES >> 30} GiB", "export the model again")
        if sha256(file) != expected:
            raise CheckpointError(f"{file} is not the file that was exported", "copy or export the model again")
    return Bundle(path, metadata, DeiTImageProcessor.from_pretrained(path / PROCESSOR_NAME))


def write_bundle(draft: Path, processor: DeiTImageProcessor, fields: Mapping[str, Any]) -> Bundle:
    """Writes the metadata and the image processor of a graph.

    Args:
        draft: directory that contains the files of the graph.
        processor: image processor for the input of the graph.
        fields: the fields of :class:`BundleMetadata` except ``files``.
    """
    processor.save_pretrained(draft)
    names = (*GRAPH_FILES[fields["format"]], PROCESSOR_NAME)
    metadata = BundleMetadata(**fields, files={name: sha256(draft / name) for name in names})
    write_json(draft / BUNDLE_NAME, metadata.model_dump(mode="json"))
    return Bundle(draft, metadata, processor)
