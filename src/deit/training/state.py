"""Checkpoints: all that a resume needs, written whole and checked when read.

Because every draw is keyed by integers, that is little: weights, their average, the optimizer's moments, and where training
stood. A checkpoint is a directory of safetensors and JSON with a manifest of SHA-256 sums; nothing in it is pickled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from deit.checkpoints.weights import load_into, read_tensors, write_tensors
from deit.config import ViTConfig
from deit.errors import CheckpointError
from deit.system.files import CONFIG_NAME, EMA_NAME, WEIGHTS_NAME, new_directory, read_json, sha256, write_json
from deit.training.optimization import ModelEma, trainable_modules

FORMAT = 1
HINTS_NAME = "hints.safetensors"
KEPT = 2  # checkpoints that stay; an older one goes once a newer one is whole
_NAME = re.compile(r"epoch-(\d{6})-step-(\d{8})")


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        epoch: the one to go on in, counted from 0.
        step: of that epoch, the next to take.
        steps_taken: in all epochs together.
        loss_sum: over the images of the epoch so far, of their losses; likewise ``images``, ``skipped`` and ``seconds``.
        best: of the best epoch so far: ``epoch``, ``top1``, ``loss``; empty before the first.
        data: fingerprint of the data set.
    """

    epoch: int = 0
    step: int = 0
    steps_taken: int = 0
    loss_sum: float = 0.0
    images: int = 0
    skipped: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    data: str = ""


def save_checkpoint(
    directory: Path,
    place: TrainState,
    model: nn.Module,
    average: ModelEma[Any] | None,
    optimizer: torch.optim.Optimizer,
    beside: Mapping[str, dict[str, Any]] | None = None,
    hints: nn.Module | None = None,
) -> Path:
    """Write a checkpoint below ``directory`` and remove those older than the last two.

    Args:
        hints: what learns beside the model.
        beside: further JSON files, name -> content: what a model directory has besides weights and configuration.
    """
    path = directory / f"epoch-{place.epoch:06d}-step-{place.step:08d}"
    with new_directory(path) as draft:
        write_tensors(draft / WEIGHTS_NAME, model.state_dict())
        if average is not None:
            write_tensors(draft / EMA_NAME, average.model.state_dict())
        if isinstance(config := getattr(model, "config", None), ViTConfig):  # so that it opens as a model, too
            write_json(draft / CONFIG_NAME, {**config.to_dict(), "architectures": [type(model).__name__]})
        for name, content in (beside or {}).items():
            write_json(draft / name, content)
        if hints is not None:
            write_tensors(draft / HINTS_NAME, hints.state_dict())
        write_tensors(draft / "optimizer.safetensors", _moments(trainable_modules(model, hints), optimizer))
        write_json(draft / "train_state.json", asdict(place))
        sums = {file.name: sha256(file) for file in sorted(draft.iterdir())}
        write_json(draft / "manifest.json", {"format": FORMAT, "sha256": sums})
    for old in _checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old)
    return path


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint below ``directory``; None where there is none."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def read_train_state(path: Path) -> TrainState:
    """Where a checkpoint stands, after its files were checked against the manifest.

    Raises:
        CheckpointError: a file is missing, changed, or of a newer version of this package.
    """
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {manifest.get('format')!r}", f"this version reads {FORMAT}")
    sums = manifest.get("sha256")
    sums = sums if isinstance(sums, dict) else {}
    for name in (WEIGHTS_NAME, "optimizer.safetensors", "train_state.json"):
        if name not in sums:
            raise CheckpointError(f"The manifest of {path} lacks {name}", "resume from another checkpoint")
    for name, expected in sums.items():
        file = path / Path(name).name
        if not file.is_file() or sha256(file) != expected:
            raise CheckpointError(f"{file} is missing or damaged", f"remove {path} to resume from the one before it")
    try:
        return TrainState(**read_json(path / "train_state.json"))
    except TypeError as error:
        raise CheckpointError(f"{path / 'place.json'} is garbled", "resume from another checkpoint") from error


def load_checkpoint(
    path: Path,
    model: nn.Module,
    average: ModelEma[Any] | None,
    optimizer: torch.optim.Optimizer,
    steps_taken: int,
    hints: nn.Module | None = None,
) -> None:
    """Put a checkpoint's weights, average and moments into place.

    Args:
        steps_taken: in all epochs together, as its :class:`Place` says.

    Raises:
        CheckpointError: the checkpoint is of another model or recipe.
    """
    load_into(model, read_tensors(path / WEIGHTS_NAME))
    if average is not None:
        load_into(average.model, read_tensors(path / EMA_NAME))
    if hints is not None:
        load_into(hints, read_tensors(path / HINTS_NAME))
    _load_moments(trainable_modules(model, hints), optimizer, read_tensors(path / "optimizer.safetensors"))
    if isinstance(optimizer, Lamb):  # which counts its steps beside the moments
        for group in optimizer.param_groups:
            group["step"] = torch.tensor(float(steps_taken))


def _checkpoints(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``parameter's name/moment's name`` -> tensor."""
    return {
        f"{name}/{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # Muon also notes what kind a parameter is, and finds it out again
    }


def _load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"The optimizer's state has no place for {key}", "resume with the run's own recipe")
        parameter = parameters[name]
        # AdamW's step counter stays where its own constructor puts it: beside the parameter for the fused kernel. A moment
        # lies in memory as its parameter does: that kernel goes through both by address.
        like = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][moment] = like.copy_(value).to(parameter.device)
