"""Training checkpoints: everything needed to resume, written atomically and verified when read.

Every random draw is keyed by integers, so this is little: weights, their EMA, optimizer state and training progress.
A checkpoint is a directory of safetensors and JSON files with a manifest of SHA-256 sums; nothing is pickled.

:func:`take_snapshot` copies all of it into the memory of the CPU, from which :func:`write_checkpoint` writes it while training
goes on (:mod:`deit.training.checkpoint_writer`).
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from deit.checkpoints.weights import copied_tensors, load_into, read_tensors, serialized_parts
from deit.config import ViTConfig
from deit.errors import CheckpointError, NonFiniteLossError
from deit.system.distributed import divided_like
from deit.system.files import BEST_NAME, CONFIG_NAME, EMA_NAME, WEIGHTS_NAME, json_text, new_directory, read_json, sha256
from deit.system.uncached_file import UncachedFile
from deit.training.optimization import ModelEma, trainable_modules
from deit.training.step import TOTAL

FORMAT = 1
FEATURES_NAME = "feature_distillation.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "train_state.json"
MANIFEST_NAME = "manifest.json"
KEPT_CHECKPOINTS = 2  # an older one is removed once a newer one is complete
_NAME = re.compile(r"epoch-(\d{6})-step-(\d{8})")


@dataclass
class TrainState:
    """Training progress.

    Attributes:
        epoch: current epoch, counted from 0.
        step: next step of that epoch, counted from 0.
        steps_taken: steps over all epochs.
        loss_sums: sums over the images of the current epoch, by name of the loss.
        images: images of the current epoch so far.
        skipped: unreadable images of the current epoch so far.
        seconds: training time of the current epoch so far.
        best: ``epoch``, ``top1`` and ``loss`` of the best epoch so far; empty before the first.
        data: fingerprint of the data set.
        evaluated: whether the weights after the last step were evaluated and logged, in a run that ends within an epoch.
        non_finite_steps: steps so far that changed no weights, since their loss or gradients were not finite.
    """

    epoch: int = 0
    step: int = 0
    steps_taken: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    skipped: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    data: str = ""
    evaluated: bool = False
    non_finite_steps: int = 0

    def add_step(self, losses: Mapping[str, float], images: int, skipped: int) -> None:
        """Counts a step with the mean losses of its images."""
        self.step, self.steps_taken, self.evaluated = self.step + 1, self.steps_taken + 1, False
        for name, loss in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + loss * images
        self.images, self.skipped = self.images + images, self.skipped + skipped

    def add_non_finite_step(self) -> None:
        """Counts a step that changed no weights. Its losses and images are not counted."""
        self.step, self.steps_taken, self.evaluated = self.step + 1, self.steps_taken + 1, False
        self.non_finite_steps += 1

    @property
    def mean_losses(self) -> dict[str, float]:
        """Mean losses of the current epoch so far; NaN before the first step."""
        return {name: total / self.images for name, total in self.loss_sums.items()} or {TOTAL: math.nan}

    def start_epoch(self, epoch: int) -> None:
        """Resets the counters for a new epoch."""
        self.epoch, self.step, self.evaluated = epoch, 0, False
        self.loss_sums, self.images, self.skipped, self.seconds = {}, 0, 0, 0.0


@dataclass(frozen=True)
class Resumable:
    """A checkpoint that was verified, and its training progress."""

    path: Path
    state: TrainState


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint, in the memory of the CPU.

    Attributes:
        state: training progress.
        tensors: tensors by file name.
        files: content of all other files by name.
    """

    state: TrainState
    tensors: dict[str, dict[str, Tensor]]
    files: dict[str, bytes]


def take_snapshot(
    state: TrainState,
    model: nn.Module,
    ema: ModelEma[Any] | None,
    optimizer: torch.optim.Optimizer,
    files: Mapping[str, bytes] | None = None,
    features: nn.Module | None = None,
) -> Snapshot:
    """Copies everything that a checkpoint holds.

    Args:
        state: training progress.
        model: the model.
        ema: the EMA of its weights, if any.
        optimizer: the optimizer.
        files: further files of a model directory, name -> content.
        features: feature distillation heads, if any.

    Raises:
        NonFiniteLossError: a weight is NaN or infinite.
    """
    tensors = {WEIGHTS_NAME: copied_tensors(model.state_dict())}
    if ema is not None:
        tensors[EMA_NAME] = copied_tensors(ema.model.state_dict())
    if features is not None:
        tensors[FEATURES_NAME] = copied_tensors(features.state_dict())
    _check_finite(tensors)
    tensors[OPTIMIZER_NAME] = copied_tensors(optimizer_state(trainable_modules(model, features), optimizer))
    contents = dict(files or {})
    if isinstance(config := getattr(model, "config", None), ViTConfig):  # so that the checkpoint loads as a model
        contents[CONFIG_NAME] = json_text({**config.to_dict(), "architectures": [type(model).__name__]}).encode()
    return Snapshot(copy.deepcopy(state), tensors, contents)


def write_checkpoint(directory: Path, snapshot: Snapshot) -> Path:
    """Writes a checkpoint below ``directory``, and then removes all but the last two.

    Args:
        directory: the run's checkpoints.
        snapshot: the content.

    Returns:
        The checkpoint's directory.
    """
    state = snapshot.state
    path = directory / f"epoch-{state.epoch:06d}-step-{state.step:08d}"
    with new_directory(path) as draft:
        sums = {}
        for name, parts in _contents(snapshot):
            sums[name] = _write(draft / name, parts)
        (draft / MANIFEST_NAME).write_text(json_text({"format": FORMAT, "sha256": sums}))
    for old in _checkpoints(directory)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)  # network file systems keep what another program has open; tried again later
    return path


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """Yields the name and the content of every file, in parts."""
    for name, content in snapshot.files.items():
        yield name, [content]
    for name, tensors in snapshot.tensors.items():
        yield name, serialized_parts(tensors)
    yield STATE_NAME, [json_text(asdict(snapshot.state)).encode()]


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes a file, and returns the SHA-256 of what was to be written."""
    digest = hashlib.sha256()
    with UncachedFile(path) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _check_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group in tensors.values():
        for name, tensor in group.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLossError(f"The weights of {name} are not finite", "earlier checkpoints are kept")


def newest_checkpoint(directory: Path, before: tuple[int, int] | None = None) -> tuple[Resumable | None, list[str]]:
    """Finds the newest checkpoint that is not damaged.

    Args:
        directory: the run's checkpoints.
        before: an epoch and a step in it, both counted from 0, that the checkpoint must not be after; None allows all.

    Returns:
        The checkpoint, None if there is none; and a sentence about each damaged one that is newer.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    damaged: list[CheckpointError] = []
    for path in reversed(_checkpoints(directory)):
        if before is not None and _position(path) > before:
            continue
        try:
            return Resumable(path, read_train_state(path)), [f"Not used: {error.problem}" for error in damaged]
        except CheckpointError as error:
            damaged.append(error)
    if damaged:
        raise CheckpointError(
            f"No checkpoint below {directory} is intact: {damaged[0].problem}",
            f"start a new run from the best model so far, with --init {directory.parent / BEST_NAME}",
        )
    return None, []


def read_train_state(path: Path) -> TrainState:
    """Verifies a checkpoint against its manifest and returns its training progress.

    Raises:
        CheckpointError: a file is missing or changed, or the checkpoint is of another version of the format.
    """
    manifest = read_json(path / MANIFEST_NAME)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {manifest.get('format')!r}", f"this version reads {FORMAT}")
    sums = manifest.get("sha256")
    sums = sums if isinstance(sums, dict) else {}
    for name in (WEIGHTS_NAME, OPTIMIZER_NAME, STATE_NAME):
        if name not in sums:
            raise CheckpointError(f"The manifest of {path} lacks {name}", "resume from another checkpoint")
    for name, expected in sums.items():
        file = path / Path(name).name
        if not file.is_file() or sha256(file) != expected:
            raise CheckpointError(f"{file} is missing or damaged", "resume from another checkpoint")
    try:
        return TypeAdapter(TrainState).validate_python(read_json(path / STATE_NAME))
    except ValidationError as error:
        raise CheckpointError(f"{path / STATE_NAME} is corrupt", "resume from another checkpoint") from error


def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: ModelEma[Any] | None,
    optimizer: torch.optim.Optimizer,
    steps_taken: int,
    features: nn.Module | None = None,
) -> None:
    """Loads the weights, the EMA and the optimizer state of a checkpoint.

    Args:
        path: the checkpoint, verified by :func:`newest_checkpoint`.
        model: receives the weights.
        ema: receives the EMA, if any.
        optimizer: receives its state.
        steps_taken: steps over all epochs, from its :class:`TrainState`.
        features: feature distillation heads, if any.

    Raises:
        CheckpointError: the checkpoint is of another model or recipe.
    """
    load_into(model, read_tensors(path / WEIGHTS_NAME))
    if ema is not None:
        load_into(ema.model, read_tensors(path / EMA_NAME))
    if features is not None:
        load_into(features, read_tensors(path / FEATURES_NAME))
    load_optimizer_state(trainable_modules(model, features), optimizer, read_tensors(path / OPTIMIZER_NAME))
    if isinstance(optimizer, Lamb):  # counts its steps per group, not per parameter
        for group in optimizer.param_groups:
            group["step"] = torch.tensor(float(steps_taken))


def _position(path: Path) -> tuple[int, int]:
    """Returns the epoch of a checkpoint and the step in it, both counted from 0."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2])


def _checkpoints(directory: Path) -> list[Path]:
    """Returns the checkpoints below a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer state as ``parameter name/state name`` -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads what :func:`optimizer_state` returned.

    Raises:
        CheckpointError: it is of another model or recipe.
    """
    parameters = dict(model.named_parameters())
    for full_key, value in tensors.items():
        name, _, key = full_key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"The optimizer has no parameter for {full_key}", "resume with the run's own recipe")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            value = divided_like(value.to(parameter.device), parameter)
        # Moments need the memory format of their parameter: the fused AdamW kernel addresses both alike. Step counters are
        # scalars; for the fused kernel they are on the parameter's device.
        target = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][key] = target.copy_(value).to(parameter.device)
