"""An exported model on disk: a graph, how images become its input, its classes, and the report that let it out.

A directory of ``bundle.json``, ``preprocessor_config.json`` and the graph's own files, whose hashes stand in the first.
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
PixelType = Literal["uint8", "float32"]

# What each format consists of; nothing else in a bundle's directory is ever opened.
GRAPH_FILES: dict[Format, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "onnx": ("model.onnx",),
    "torch": (CONFIG_NAME, WEIGHTS_NAME),
}
MAX_GRAPH_BYTES = 8 * 2**30

Side = Annotated[int, Field(ge=1, le=16_384)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class Facts(BaseModel):
    """What ``bundle.json`` says.

    Attributes:
        version: of this layout.
        format: whose graph it is.
        precision: of its matrix products.
        files: name -> SHA-256.
        pixels: the type of what goes in: ``uint8``, as decoded and resized, where the graph rescales and normalizes;
            ``float32`` where that is done before.
        shape: (C, height, width) of it.
        heads: names of the logits that come out; the last is the model's answer.
        classes: in the order of the logits.
        kept: parts of an int8 graph that were left in higher precision, since they need it.
        report: what the parity gate measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    format: Format
    precision: Precision
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    pixels: PixelType
    shape: tuple[Side, Side, Side]
    heads: Annotated[tuple[Name, ...], Field(min_length=1, max_length=3)]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    kept: tuple[Name, ...] = ()
    report: dict[str, Any] = {}


@dataclass(frozen=True)
class Bundle:
    """An exported model that was opened and whose files are whole."""

    path: Path
    facts: Facts
    processor: DeiTImageProcessor

    @property
    def graph(self) -> Path:
        """The graph's own file; a torch bundle's directory."""
        return self.path if self.facts.format == "torch" else self.path / GRAPH_FILES[self.facts.format][0]

    @property
    def graph_bytes(self) -> int:
        """Size of the graph's files."""
        return sum((self.path / name).stat().st_size for name in self.facts.files)


def is_bundle(path: str | Path) -> bool:
    """Whether a path holds an exported model."""
    return (Path(path) / BUNDLE_NAME).is_file()


def open_bundle(path: str | Path) -> Bundle:
    """Read an exported model's description and check its files.

    Raises:
        CheckpointError: a file is missing, changed, too large, or says what cannot be.
    """
    path = Path(path)
    try:
        facts = Facts.model_validate(read_json(path / BUNDLE_NAME))
    except ValidationError as error:
        raise CheckpointError(f"{path / BUNDLE_NAME}: {validation_problem(error)}", "export the model again") from error
    if set(facts.files) != set(GRAPH_FILES[facts.format]):
        raise CheckpointError(f"{path / BUNDLE_NAME} lists files of no {facts.format} graph", "export the model again")
    for name, expected in facts.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} has no {name}", "copy or export the model again")
        if file.stat().st_size > MAX_GRAPH_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_GRAPH_BYTES >> 30} GiB", "export the model again")
        if sha256(file) != expected:
            raise CheckpointError(f"{file} is not the file that was exported", "copy or export the model again")
    return Bundle(path, facts, DeiTImageProcessor.from_pretrained(path / PROCESSOR_NAME))


def write_bundle(draft: Path, processor: DeiTImageProcessor, fields: Mapping[str, Any]) -> Bundle:
    """Describe the graph whose files stand in ``draft``; ``fields`` are those of :class:`Facts` but for ``files``."""
    names = GRAPH_FILES[fields["format"]]
    facts = Facts(**fields, files={name: sha256(draft / name) for name in names})
    processor.save_pretrained(draft)
    write_json(draft / BUNDLE_NAME, facts.model_dump(mode="json"))
    return Bundle(draft, facts, processor)
