"""Converts checkpoints between the formats of transformers, timm and the authors.

The result is written only after it gives the same logits in the library that the format belongs to.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn

from deit.checkpoints.adapters import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    is_adapter,
    largest_change,
    largest_difference,
    open_adapter,
    rename_adapter,
)
from deit.checkpoints.adapting import DistillationChange, LoadReport
from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.writing import timm_architecture, write_authors, write_timm
from deit.data.image_hashes import copy_data_record
from deit.errors import UserError, WorkError
from deit.hub import fetch, hub_arguments
from deit.images.processor import DeiTImageProcessor
from deit.inference.logits import check_logits
from deit.models.auto import load_processor
from deit.models.modeling import TransformerClassifier, classifier_from_checkpoint, load_model
from deit.models.timm_classifier import timm_preprocessing
from deit.system.files import (
    CARD_NAME,
    CONFIG_NAME,
    IMAGE_HASHES_NAME,
    INDEX_NAME,
    NESTED_PROCESSOR_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    new_directory,
    new_file,
    read_json,
    write_json,
)
from deit.system.replacing import is_empty_directory
from deit.variants import LAYER_NORM_EPS

Format = Literal["transformers", "timm", "authors"]
# Formats of adapters: PEFT's files, with the names and layers of the models of a library.
AdapterFormat = Literal["peft-deit", "peft-transformers-4", "peft-transformers-5"]
TOLERANCE = 1e-5  # of fp32 logits, relative to the largest; libraries differ in the order of their sums
# A directory with any other file is not replaced.
MODEL_FILES = frozenset(
    {
        *(CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME, PROCESSOR_NAME, NESTED_PROCESSOR_NAME),
        *(RECORD_NAME, IMAGE_HASHES_NAME, CARD_NAME, ".gitattributes"),
        *(ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME),
    }
)
NUM_IMAGES = 2
HUGGING_FACE_EPS = 1e-12


@dataclass(frozen=True)
class ConversionResult:
    """A finished conversion.

    Attributes:
        source: path of the checkpoint that was read.
        layout: its format.
        destination: path that was written.
        format: its format.
        architecture: name of the model class.
        report: tensors that were newly initialized, resized or ignored when loading, and notes on how they were selected.
        differences: library that read the result -> largest difference of its logits from ours on a fixed input.
        largest_logit: largest absolute logit on that input.
        epsilon_shift: largest change of the logits due to the layer norm epsilon: 1e-12 in the published Hugging Face files,
            but always 1e-6 in the formats of timm and the authors. 0 if it stayed the same.
    """

    source: Path
    layout: str
    destination: Path
    format: str
    architecture: str
    report: LoadReport
    differences: Mapping[str, float]
    largest_logit: float
    epsilon_shift: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "source": str(self.source),
            "layout": self.layout,
            "destination": str(self.destination),
            "format": self.format,
            "architecture": self.architecture,
            "new": list(self.report.new),
            "resized": list(self.report.resized),
            "ignored": list(self.report.ignored),
            "notes": list(self.report.notes),
            "differences": dict(self.differences),
            "largest_logit": self.largest_logit,
            "epsilon_shift": self.epsilon_shift,
        }


def convert(
    source: str | Path,
    destination: str | Path,
    to: Format | None = None,
    *,
    ema: bool = False,
    distillation: DistillationChange | None = None,
    overwrite: bool = False,
    base: str | Path | None = None,
    **arguments: Any,
) -> ConversionResult:
    """Converts a checkpoint to another format.

    Args:
        source: anything that :func:`deit.load_model` reads.
        destination: a directory, or a file for the authors' format.
        to: ``transformers``, ``timm`` or ``authors``; None infers it from the destination: ``authors`` for ``.pth`` and
            ``.pt``, ``transformers`` for a directory.
        ema: load the exponential moving average of the weights from a training checkpoint.
        distillation: ``drop`` removes the distillation token and head, ``new`` adds newly initialized ones.
        overwrite: replace an existing model.
        base: model that an adapter of PEFT is merged into; None means the one that the adapter names.
        arguments: further arguments of :func:`deit.load_model`.

    Raises:
        UserError: unknown format, existing destination, or a source that is not readable or not expressible in the format.
        WorkError: the result gives other logits, or those of the source are not finite; nothing is written to the destination.
    """
    path = Path(destination)
    path = path.resolve() if path.is_symlink() else path  # replace the target of a symbolic link, not the link
    output_format = to or ("authors" if path.suffix in (".pth", ".pt") else "transformers")
    _check_destination(path, output_format, overwrite)
    if output_format not in get_args(Format):
        raise UserError(f"{output_format} is a format of adapters", "convert the adapter: convert_adapter")
    options, fields = hub_arguments(arguments)
    checkpoint = open_checkpoint(fetch(source, **options), ema=ema, fields=fields, base=base)
    _check_separate(checkpoint.path, path)
    model = classifier_from_checkpoint(checkpoint, fields, distillation=distillation).without_layer_scale()
    processor = load_processor(checkpoint, model.config)
    shift = _set_timm_epsilon(model) if output_format != "transformers" else 0.0
    expected = logits_on_fixed_input(model, model)
    check_logits(expected.numpy(), f"The model {source}")
    largest = expected.abs().max().item()
    with new_file(path) if output_format == "authors" else new_directory(path) as draft:
        _write(draft, output_format, model, processor)
        if draft.is_dir():
            copy_data_record(checkpoint.path, draft)
        differences = {}
        for name, read in _readers(output_format, model).items():
            differences[name] = (read(draft, model) - expected).abs().max().item()
        for name, difference in differences.items():
            if not difference <= TOLERANCE * largest:  # NaN fails
                raise WorkError(
                    f"The logits of the result in {name} differ by up to {difference:.2e}; the largest logit is {largest:.3g}",
                    "nothing was written; please report this with the format of the source",
                )
    return ConversionResult(
        checkpoint.path,
        checkpoint.layout,
        path,
        output_format,
        type(model).__name__,
        model.load_report,
        differences,
        largest,
        shift,
    )


def logits_on_fixed_input(network: Callable[[Tensor], Any], model: TransformerClassifier) -> Tensor:
    """Returns the logits of two noise images.

    Args:
        network: our model, or the same model in another library.
        model: our model, for the shape of the input.

    Returns:
        (2, K), float64.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, config.num_channels, *config.image_hw, generator=generator)
    with torch.inference_mode():
        output = network(images)
    return (output if isinstance(output, Tensor) else output[0]).double()


def _set_timm_epsilon(model: TransformerClassifier) -> float:
    """Replaces the layer norm epsilon of the Hugging Face files by timm's and returns how much that changes the logits."""
    if model.config.layer_norm_eps != HUGGING_FACE_EPS:
        return 0.0
    before = logits_on_fixed_input(model, model)
    model.config.layer_norm_eps = LAYER_NORM_EPS
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = LAYER_NORM_EPS
    return (logits_on_fixed_input(model, model) - before).abs().max().item()


@dataclass(frozen=True)
class AdapterConversionResult:
    """A finished conversion of an adapter.

    Attributes:
        source: directory of the adapter that was read.
        destination: directory that was written.
        format: its format.
        difference: largest difference of what the two add to a weight.
    """

    source: Path
    destination: Path
    format: AdapterFormat
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {**asdict(self), "source": str(self.source), "destination": str(self.destination)}


def convert_adapter(
    source: str | Path, destination: str | Path, to: AdapterFormat, *, overwrite: bool = False
) -> AdapterConversionResult:
    """Renames a LoRA adapter of PEFT for the models of another library, without its base model.

    Args:
        source: directory of the adapter, trained on a model of transformers 4 or 5, of timm, or of this package.
        destination: directory to write.
        to: ``peft-deit`` for the models here, whose queries, keys and values are one layer; ``peft-transformers-4`` or ``-5``.
        overwrite: replace an existing adapter.

    Raises:
        UserError: existing destination, or an adapter that is not readable or not expressible with these layers.
        WorkError: the result adds something else to a weight; then nothing is written to the destination.
    """
    adapter_path, path = fetch(source), Path(destination)
    path = path.resolve() if path.is_symlink() else path
    if not is_adapter(adapter_path):
        raise UserError(f"{adapter_path} is not the directory of an adapter", f"it has no {ADAPTER_CONFIG_NAME}")
    _check_destination(path, to, overwrite)
    _check_separate(adapter_path, path)
    adapter = open_adapter(adapter_path)
    with new_directory(path) as draft:
        rename_adapter(adapter, draft, to.removeprefix("peft-"))
        difference, largest = largest_difference(adapter, open_adapter(draft)), largest_change(adapter)
        if not difference <= TOLERANCE * largest:  # NaN fails
            raise WorkError(f"The result differs by up to {difference:.2e}", "nothing was written; please report this")
    return AdapterConversionResult(adapter_path, path, to, difference)


def _check_destination(path: Path, output_format: str, overwrite: bool) -> None:
    if output_format not in (formats := (*get_args(Format), *get_args(AdapterFormat))):
        raise UserError(f"There is no format {output_format!r}", f"choose from {', '.join(formats)}")
    if output_format == "authors" and path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path} does not end like a file of the authors' format", "name it .pth")
    if output_format != "authors" and path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
        raise UserError(
            f"{path} looks like a file, but the {output_format} format is a directory", "name a directory, or pass --to authors"
        )
    if path.exists() and not overwrite and not is_empty_directory(path):
        raise UserError(f"{path} already exists", "choose another destination, or pass --overwrite")
    if path.exists() and path.is_dir() and output_format == "authors":
        raise UserError(f"{path} is a directory, but the authors format is a file", "choose another destination")
    if path.exists() and not path.is_dir() and output_format != "authors":
        raise UserError(f"{path} is a file, but the {output_format} format is a directory", "choose another destination")
    if path.is_dir():
        other_files = sorted(file.name for file in path.iterdir() if file.name not in MODEL_FILES)
        if other_files:
            raise UserError(f"{path} contains {other_files[0]}, which is not part of a model", "choose another destination")


def _check_separate(source: Path, destination: Path) -> None:
    first, second = source.resolve(), destination.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise UserError(f"{destination} and the source {source} contain each other", "choose another destination")


def _write(draft: Path, output_format: str, model: TransformerClassifier, processor: DeiTImageProcessor) -> None:
    if output_format == "authors":
        write_authors(draft, model.config, model.canonical_state())
        return
    if output_format == "timm":
        settings = timm_preprocessing(processor)
        write_timm(draft, model.config, model.canonical_state(), settings)
        if processor.value_range is not None:
            write_json(draft / CONFIG_NAME, {**read_json(draft / CONFIG_NAME), "value_range": processor.value_range})
    else:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)


Reader = Callable[[Path, TransformerClassifier], Tensor]


def _readers(output_format: str, model: TransformerClassifier) -> dict[str, Reader]:
    """Returns the libraries to compare: this one, and the one that the format belongs to if it is installed."""
    readers: dict[str, Reader] = {"deit": _read_with_deit}
    if output_format == "transformers":
        if importlib.util.find_spec("transformers") and not model.config.pruned_heads:
            readers[f"transformers {importlib.metadata.version('transformers')}"] = _read_with_transformers
    else:
        readers[f"timm {timm.__version__}"] = _read_with_timm
    return readers


def _read_with_deit(draft: Path, model: TransformerClassifier) -> Tensor:
    fields = {name: getattr(model.config, name) for name in ("num_attention_heads", "image_size", "layer_norm_eps")}
    return logits_on_fixed_input(load_model(draft, **fields), model)


def _read_with_timm(draft: Path, model: TransformerClassifier) -> Tensor:
    try:
        if draft.is_dir():
            network = timm.create_model(f"local-dir:{draft}", pretrained=True)
        else:
            architecture, arguments = timm_architecture(model.config)
            network = timm.create_model(architecture, checkpoint_path=str(draft), num_classes=model.num_labels, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WorkError(f"timm cannot load the result ({error})", "please report this") from error
    return logits_on_fixed_input(network.eval(), model)


def _read_with_transformers(draft: Path, model: TransformerClassifier) -> Tensor:
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    show_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network, info = AutoModelForImageClassification.from_pretrained(draft, output_loading_info=True)
    finally:
        if show_progress:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if problems := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        raise WorkError(f"transformers does not load {problems[0]} from the result", "please report this")
    network.config.return_dict = True  # transformers' forward fails if the configuration says False
    return logits_on_fixed_input(network.eval(), model)
