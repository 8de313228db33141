"""A checkpoint in one project's format -> the same model in another's, let out only once both give the same logits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn

from deit.checkpoints.adapting import DistillationChange, LoadReport
from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.writing import timm_architecture, write_authors, write_timm
from deit.errors import UserError, WorkError
from deit.hub import fetch, hub_arguments
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import processor_beside, timm_preprocessing
from deit.models.modeling import TransformerClassifier, classifier_of, load_model
from deit.system.files import (
    CARD_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    NESTED_PROCESSOR_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    new_directory,
    read_json,
    write_json,
)
from deit.variants import LAYER_NORM_EPS

Format = Literal["transformers", "timm", "authors"]
TOLERANCE = 1e-5  # of fp32 logits, relative to the largest; another program may order its sums otherwise
# What a model directory holds; one that holds anything else is not ours to replace.
OWN_FILES = frozenset(
    {CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME, PROCESSOR_NAME, NESTED_PROCESSOR_NAME, RECORD_NAME, CARD_NAME, ".gitattributes"}
)
IMAGES = 2
HUGGING_FACE_EPS = 1e-12


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        source: what was read, and in which ``layout``.
        destination: what was written, and in which ``format``.
        architecture: the class of ours that both hold.
        report: what was new, resized or ignored on the way in.
        differences: program that read the result back -> largest difference of its logits from ours on a fixed input.
        largest: the largest logit there, by its size.
        epsilon_shift: how far the logits moved because the format knows one layer norm epsilon only: the published Hugging
            Face files say 1e-12, timm and the authors 1e-6. 0 where it stayed.
    """

    source: Path
    layout: str
    destination: Path
    format: str
    architecture: str
    report: LoadReport
    differences: Mapping[str, float]
    largest: float
    epsilon_shift: float

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            "source": str(self.source),
            "layout": self.layout,
            "destination": str(self.destination),
            "format": self.format,
            "architecture": self.architecture,
            "new": list(self.report.new),
            "resized": list(self.report.resized),
            "ignored": list(self.report.ignored),
            "differences": dict(self.differences),
            "largest_logit": self.largest,
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
    **arguments: Any,
) -> Conversion:
    """Write a checkpoint in another format.

    Args:
        source: anything that :func:`deit.load_model` reads; the arguments not listed here are its.
        destination: a directory; for the authors' format a file.
        to: ``transformers``, ``timm`` or ``authors``; by the destination's ending when None: ``.pth`` and ``.pt`` are the
            authors', a directory is transformers'.
        overwrite: replace what is there.

    Raises:
        UserError: no such format, the destination is there already, or the source cannot be read or written so.
        WorkError: what was written gives other logits; then nothing is left at the destination.
    """
    path = Path(destination)
    path = path.resolve() if path.is_symlink() else path  # what the link leads to is replaced, not the link
    form = to or ("authors" if path.suffix in (".pth", ".pt") else "transformers")
    _check_destination(path, form, overwrite)
    options, fields = hub_arguments(arguments)
    checkpoint = open_checkpoint(fetch(source, **options), ema=ema, fields=fields)
    _check_apart(checkpoint.path, path)
    model = classifier_of(checkpoint, fields, distillation=distillation).without_layer_scale()
    processor = processor_beside(checkpoint, model.config)
    shift = _take_epsilon(model) if form != "transformers" else 0.0
    expected = logits_on_fixed_input(model, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        _write(draft, form, model, processor)
        _copy_record(checkpoint.path, draft)
        differences = {name: (read(draft, model) - expected).abs().max().item() for name, read in _readers(form, model).items()}
        largest = expected.abs().max().item()
        for name, difference in differences.items():
            if not difference <= TOLERANCE * largest:
                raise WorkError(
                    f"{name} answers the written model with logits up to {difference:.2e} from ours, of {largest:.3g} at most",
                    "nothing was kept; please report this with the source's format",
                )
        _publish(draft, path)
    kind, report = type(model).__name__, model.load_report
    return Conversion(checkpoint.path, checkpoint.layout, path, form, kind, report, differences, largest, shift)


def logits_on_fixed_input(network: Callable[[Tensor], Any], model: TransformerClassifier) -> Tensor:
    """What a network, ours or another's of the same input, answers two images of noise, in float64.

    Returns:
        (2, K).
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, config.num_channels, *config.image_hw, generator=generator)
    with torch.inference_mode():
        answer = network(images)
    return (answer if isinstance(answer, Tensor) else answer[0]).double()


def _take_epsilon(model: TransformerClassifier) -> float:
    """Give the layer norms timm's epsilon where they have the one of the Hugging Face files -> how far the logits moved."""
    if model.config.layer_norm_eps != HUGGING_FACE_EPS:
        return 0.0
    before = logits_on_fixed_input(model, model)
    model.config.layer_norm_eps = LAYER_NORM_EPS
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = LAYER_NORM_EPS
    return (logits_on_fixed_input(model, model) - before).abs().max().item()


def _check_destination(path: Path, form: str, overwrite: bool) -> None:
    if form not in get_args(Format):
        raise UserError(f"There is no format {form!r}", f"known are {', '.join(get_args(Format))}")
    if form == "authors" and path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path} has no ending of the authors' files", "give it .pth")
    if form != "authors" and path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
        raise UserError(
            f"{path} looks like a file, and the {form} format is a directory", "name a directory, or pass --to authors"
        )
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already", "choose another destination, or pass --overwrite")
    if path.exists() and path.is_dir() != (form != "authors"):
        raise UserError(f"{path} is {'a directory' if path.is_dir() else 'a file'}", f"the {form} format is the other")
    if path.is_dir():
        foreign = sorted(file.name for file in path.iterdir() if file.name not in OWN_FILES)
        if foreign:
            raise UserError(f"{path} holds {foreign[0]}, which is no part of a model", "choose another destination")


def _check_apart(source: Path, destination: Path) -> None:
    one, other = source.resolve(), destination.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise UserError(f"{destination} and the source {source} hold each other", "choose another destination")


def _copy_record(source: Path, draft: Path) -> None:
    """The record of the training data goes along, so that an evaluation still knows which images were learned from."""
    record = (source if source.is_dir() else source.parent) / RECORD_NAME
    if draft.is_dir() and record.is_file():
        write_json(draft / RECORD_NAME, read_json(record))


def _write(draft: Path, form: str, model: TransformerClassifier, processor: DeiTImageProcessor) -> None:
    if form == "authors":
        write_authors(draft, model.config, model.canonical_state())
        return
    draft.mkdir()
    if form == "timm":
        settings = timm_preprocessing(processor)
        write_timm(draft, model.config, model.canonical_state(), settings)
    else:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)


Reader = Callable[[Path, TransformerClassifier], Tensor]


def _readers(form: str, model: TransformerClassifier) -> dict[str, Reader]:
    """The programs that must agree: this one, and the one whose format it is, where it is installed."""
    readers: dict[str, Reader] = {"deit": _read_ourselves}
    if form == "transformers":
        if importlib.util.find_spec("transformers") and not model.config.pruned_heads:
            readers[f"transformers {importlib.metadata.version('transformers')}"] = _read_by_transformers
    else:
        readers[f"timm {timm.__version__}"] = _read_by_timm
    return readers


def _read_ourselves(draft: Path, model: TransformerClassifier) -> Tensor:
    told = {name: getattr(model.config, name) for name in ("num_attention_heads", "image_size", "layer_norm_eps")}
    return logits_on_fixed_input(load_model(draft, **told), model)


def _read_by_timm(draft: Path, model: TransformerClassifier) -> Tensor:
    try:
        if draft.is_dir():
            network = timm.create_model(f"local-dir:{draft}", pretrained=True)
        else:
            architecture, arguments = timm_architecture(model.config)
            network = timm.create_model(architecture, checkpoint_path=str(draft), num_classes=model.num_labels, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WorkError(f"timm does not open what was written ({error})", "please report this") from error
    return logits_on_fixed_input(network.eval(), model)


def _read_by_transformers(draft: Path, model: TransformerClassifier) -> Tensor:
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network, info = AutoModelForImageClassification.from_pretrained(draft, output_loading_info=True)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if odd := [name for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[part]]:
        raise WorkError(f"transformers does not take {odd[0]} as it was written", "please report this")
    network.config.return_dict = True  # it cannot be asked at all where its file says otherwise
    return logits_on_fixed_input(network.eval(), model)


def _publish(draft: Path, path: Path) -> None:
    """Put what was checked in its place; what stood there goes only then."""
    if draft.is_file():
        draft.replace(path)
        return
    with new_directory(path) as place:
        for file in draft.iterdir():
            file.replace(place / file.name)
