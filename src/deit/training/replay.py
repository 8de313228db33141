"""Repeats a step of a run: its images, losses and gradients, equal bit by bit to those of the run.

Training continues from the newest checkpoint before the step, or from the initial weights, and changes nothing in the run
directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from deit.data.loader import Batch, Loader
from deit.errors import UserError
from deit.recipes.run_settings import RunSettings
from deit.system.devices import choose_device
from deit.system.progress import Progress, print_status
from deit.system.signals import check_stop, stop_on_signals
from deit.training.assembly import assemble, reopen_data
from deit.training.loop import CHECKPOINTS_NAME, Trainer
from deit.training.optimization import trainable_modules
from deit.training.run_directory import read_run
from deit.training.state import Resumable, newest_checkpoint
from deit.training.step import accumulate_gradients

SHEET_COLUMNS = 8
SHEET_GAP = 4  # pixels between two images
CAPTION_HEIGHT = 12  # pixels


@dataclass(frozen=True)
class ReplayedSample:
    """A sample of a step.

    Attributes:
        index: index of the image in the training set.
        repeat: repeat of the image in its epoch, with repeated augmentation.
        position: in the batch.
        name: path of the image.
        label: class name.
    """

    index: int
    repeat: int
    position: int
    name: str
    label: str


@dataclass(frozen=True)
class ReplayedStep:
    """A step that was repeated.

    Attributes:
        epoch: counted from 1.
        step: within the epoch, counted from 1.
        lr: learning rate.
        losses: means over the batch: the total ``loss`` and its unweighted terms.
        gradient_norm: norm of all gradients together, before clipping.
        gradient_norms: norm of the gradient of each parameter.
        samples: the samples, in the order of the batch.
        sheet: the images as the model sees them, each above the index of its image.
    """

    epoch: int
    step: int
    lr: float
    losses: dict[str, float]
    gradient_norm: float
    gradient_norms: dict[str, float]
    samples: list[ReplayedSample]
    sheet: Image.Image

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the sheet as JSON values."""
        content = {name: value for name, value in vars(self).items() if name != "sheet"}
        return {**content, "samples": [asdict(sample) for sample in self.samples]}


def replay(
    run: str | Path,
    epoch: int,
    step: int,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> ReplayedStep:
    """Repeats a step of a run, without changing its weights.

    Args:
        run: the run directory.
        epoch: counted from 1, as in the log.
        step: within the epoch, counted from 1.
        data: location of the data set, if it has moved.
        device: ``auto``, ``cpu``, ``cuda``, ...; results are equal bit by bit on the device of the run.
        workers: worker processes of the data loader; None chooses by the number of cores.

    Raises:
        UserError: there is no such step, or the run, its data or its teacher cannot be read.
    """
    directory = Path(run)
    recipe, settings = read_run(directory, data)
    torch_device = choose_device(device)
    splits, record, settings = reopen_data(recipe, settings)
    checkpoint, notes = newest_checkpoint(directory / CHECKPOINTS_NAME, before=(epoch - 1, step - 1))
    _check_schedule(settings, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:  # instead of the run directory
        trainer = assemble(Path(scratch), recipe, splits, record, settings, torch_device, workers, checkpoint).trainer
        _check_step(trainer, epoch, step)
        trainer.prepare_steps()
        for note in notes:
            print_status(f"Note:      {note}.")
        source = "the initial weights" if checkpoint is None else checkpoint.path
        print_status(f"Replaying epoch {epoch}, step {step}, from {source}")
        with stop_on_signals():
            return _repeat(trainer, _advance(trainer, epoch - 1, step - 1), epoch - 1, step - 1)


def _check_schedule(settings: RunSettings, checkpoint: Resumable | None) -> None:
    """Checks that no step from the checkpoint on was taken before the run was extended, when its learning rates were others.

    Raises:
        UserError: one was.
    """
    extended = settings.extended[-1][0] if settings.extended else 0  # finished epochs
    if (0 if checkpoint is None else checkpoint.state.epoch) < extended:
        raise UserError(
            f"The run was extended after epoch {extended}, and there is no checkpoint between that and the step",
            "replay a step that is after the oldest checkpoint",
        )


def _check_step(trainer: Trainer, epoch: int, step: int) -> None:
    """Checks that the run has a step, counted from 1.

    Raises:
        UserError: it has not.
    """
    number = (epoch - 1) * trainer.steps_per_epoch + step
    if epoch < 1 or not 1 <= step <= trainer.steps_per_epoch or number > trainer.total_steps:
        raise UserError(
            f"The run has no epoch {epoch}, step {step}",
            f"it has {trainer.total_steps:,} steps, {trainer.steps_per_epoch:,} in an epoch, counted from 1",
        )


def _advance(trainer: Trainer, epoch: int, step: int) -> list[Batch]:
    """Trains up to a step, counted from 0, and returns its micro-batches."""
    loader, state = Loader(trainer.samples, trainer.workers), trainer.state
    with closing(loader), Progress("Replaying", trainer.remaining_images) as progress:
        while True:
            for number, batches in trainer.steps(state.epoch, loader):
                if (state.epoch, number) == (epoch, step):
                    return batches
                check_stop()
                trainer.advance(state.epoch, number, batches)
                progress.advance(sum(len(batch.labels) for batch in batches), f"epoch {state.epoch + 1}")
            state.start_epoch(state.epoch + 1)


def _repeat(trainer: Trainer, batches: Sequence[Batch], epoch: int, step: int) -> ReplayedStep:
    """Computes losses and gradients of a step, counted from 0."""
    context, position = trainer.context, trainer.progress(epoch, step)
    readable = [batch for batch in batches if len(batch.labels)]
    trainer.optimizer.zero_grad(set_to_none=True)
    losses = accumulate_gradients(trainer.model, readable, context, epoch, step, position[0] / position[1])
    parameters = trainable_modules(trainer.model, context.features).named_parameters()
    gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    source = trainer.samples.source
    return ReplayedStep(
        epoch=epoch + 1,
        step=step + 1,
        lr=trainer.learning_rate(epoch, step),
        losses={name: loss.item() for name, loss in losses.items()},
        gradient_norm=torch.nn.utils.get_total_norm(list(gradients.values())).item(),
        gradient_norms={name: gradient.norm().item() for name, gradient in gradients.items()},
        samples=[
            ReplayedSample(index, repeat, place, source.name(index), source.classes[source.labels[index]])
            for batch in readable
            for index, repeat, place in batch.samples.tolist()
        ],
        sheet=contact_sheet(readable, *context.recipe.processor().rgb_statistics),
    )


def contact_sheet(batches: Sequence[Batch], mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Returns the images of a batch side by side, each above the index of its image.

    Args:
        batches: the micro-batches.
        mean: per channel, of the normalization.
        std: per channel, of the normalization.
    """
    pixels = np.concatenate([batch.pixel_values.numpy() for batch in batches]).transpose(0, 2, 3, 1)  # (B, height, width, 3)
    indices = [index for batch in batches for index in batch.samples[:, 0].tolist()]
    images = np.nan_to_num((pixels * np.asarray(std) + np.asarray(mean)) * 255).clip(0, 255).round().astype(np.uint8)
    count, height, width, _ = images.shape
    row_height, column_width = height + CAPTION_HEIGHT + SHEET_GAP, width + SHEET_GAP
    columns = min(count, SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * column_width + SHEET_GAP, -(-count // columns) * row_height + SHEET_GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, index) in enumerate(zip(images, indices, strict=True)):
        row, column = divmod(place, columns)
        left, top = SHEET_GAP + column * column_width, SHEET_GAP + row * row_height
        sheet.paste(Image.fromarray(image), (left, top))
        draw.text((left, top + height), str(index), fill="black")
    return sheet
