"""The training loop: train an epoch, evaluate, log, checkpoint; stop cleanly on a signal.

A step whose loss or gradients are not finite changes no weights. It stops training, or is skipped
(``optimizer.max_skipped_steps``), and is recorded with its samples in ``non_finite_steps.jsonl``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.run_log import add_non_finite_step, read_log, write_log
from deit.checkpoints.selection import best_epoch
from deit.data.loader import Batch, EvaluationSamples, Loader, TrainSamples
from deit.data.sampler import steps_per_epoch
from deit.errors import (
    DeiTError,
    ImageError,
    InterruptedWorkError,
    LoadingError,
    NonFiniteLossError,
    NonFiniteOutputError,
    PeerError,
    WorkError,
)
from deit.evaluation.evaluate import evaluate_source
from deit.inference.logits import check_logits
from deit.models.modeling import DeiTForMaskedImageModeling
from deit.recipes.run_settings import CHECKPOINT_MINUTES
from deit.recipes.samples import view_steps
from deit.recipes.schedule import correct_steps, schedule_progress
from deit.recipes.schema import Transformer
from deit.system.devices import autocast
from deit.system.distributed import from_main, gathered, group_rank, group_size, is_distributed, together, totals
from deit.system.files import (
    BEST_NAME,
    LAST_NAME,
    PROCESSOR_NAME,
    RECIPE_NAME,
    new_directory,
    write_bytes,
)
from deit.system.malloc import retained_memory
from deit.system.progress import Progress, plural, print_status
from deit.system.signals import check_stop, stop_on_signals
from deit.system.torchrun import is_main
from deit.training.checkpoint_writer import CheckpointWriter
from deit.training.compilation import compile_model
from deit.training.data_parallel import DataParallel, copy_from_main
from deit.training.masking import masked_loss
from deit.training.model_building import TrainableModel
from deit.training.optimization import ModelEma, learning_rate, make_optimizer, trainable_modules
from deit.training.sharding import Sharding
from deit.training.state import Snapshot, TrainState, load_optimizer_state, optimizer_state, take_snapshot
from deit.training.step import TOTAL, NonFiniteStepError, StepContext, readable_batches, train_step
from deit.training.time_limit import StepBudget
from deit.training.tracking import Tracker

CHECKPOINTS_NAME = "checkpoints"
LOSS_LABELS = {"label_loss": "label", "distillation_loss": "distillation", "feature_loss": "feature"}


@dataclass
class Trainer:
    """Everything that a run trains and trains with.

    Attributes:
        directory: the run directory.
        model: the model.
        ema: the EMA of its weights; None if the recipe has none.
        optimizer: over the model and the feature distillation heads.
        state: training progress.
        context: recipe, precision and teacher.
        samples: makes training batches.
        validation: makes the batches that checkpoints are selected on.
        files: further files of ``best``, ``last`` and every checkpoint, name -> content.
        workers: worker processes of the data loader; None chooses by the number of cores.
        budget: corrects the number of steps while a run for a given time trains; None keeps it.
        checkpoint_minutes: a checkpoint is written after this time at the latest, also within an epoch.
        track: write event files for TensorBoard.
        compiled: compile the model.
        shard: divide the model among the processes of the run, instead of a copy in each.
        resume_command: the command that resumes the run; None is that of the run alone.
    """

    directory: Path
    model: TrainableModel
    ema: ModelEma[TrainableModel] | None
    optimizer: torch.optim.Optimizer
    state: TrainState
    context: StepContext
    samples: TrainSamples
    validation: EvaluationSamples
    files: dict[str, bytes]
    workers: int | None = None
    budget: StepBudget | None = None
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    track: bool = False
    compiled: bool = False
    shard: bool = False
    resume_command: str | None = None
    _sharding: Sharding | None = field(default=None, init=False)
    _gathered: Snapshot | None = field(default=None, init=False)  # of a divided model, before the processes part

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return steps_per_epoch(len(self.samples.source.labels), self.context.recipe.images_per_batch)

    @property
    def images_per_epoch(self) -> int:
        """Training samples per epoch."""
        return min(self.steps_per_epoch * self.context.recipe.images_per_batch, len(self.samples.source.labels))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        recipe = self.context.recipe
        return recipe.epochs * self.steps_per_epoch if recipe.total_steps is None else recipe.total_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are taken and the last weights are evaluated and saved."""
        at_evaluation = self.state.step == 0 or self.state.evaluated
        return self.state.steps_taken >= self.total_steps and at_evaluation

    @property
    def remaining_images(self) -> int:
        """Training samples from the current state to the last step."""
        steps_before = self.state.epoch * self.steps_per_epoch  # of finished epochs
        images_per_step = self.images_per_epoch // self.steps_per_epoch
        return (self.total_steps - steps_before) * images_per_step - self.state.images

    def progress(self, epoch: int, step: int) -> tuple[float, float]:
        """Returns the position of a step in the schedule, and the length of the schedule, both in epochs.

        The step is counted from 0 within its epoch. Without corrections, the position is the number of finished epochs.
        """
        recipe = self.context.recipe
        if recipe.steps is None:
            return epoch + step / self.steps_per_epoch, recipe.epochs
        epochs = recipe.steps / self.steps_per_epoch
        return epochs * schedule_progress(recipe, epoch * self.steps_per_epoch + step), epochs

    def learning_rate(self, epoch: int, step: int) -> float:
        """Returns the learning rate of a step, counted from 0 within its epoch."""
        recipe = self.context.recipe
        position, epochs = self.progress(epoch, step)
        return learning_rate(recipe.optimizer, recipe.peak_lr, epochs, position)

    def fit(self, epochs: int | None = None) -> None:
        """Trains from the current state to the recipe's last step.

        Args:
            epochs: stop after this many epochs of the run, with the checkpoint from which it resumes; None does not stop.

        Raises:
            NonFiniteLossError: training diverged.
            InterruptedWorkError: SIGINT, SIGTERM or SIGHUP was received; a checkpoint of the current step was written.
            WorkError: a worker process failed, and a checkpoint of the current step was written; or the run directory cannot be
                written to, such as for lack of space, and the checkpoint before is kept.
            PeerError: another process of the run has ended; the first one wrote a checkpoint of the current step.
            ImageError: an image is unreadable, unless unreadable images are skipped; a checkpoint of the current step was
                written.
        """
        self.prepare_steps()
        pin = self.device.type == "cuda"
        loader = Loader(self.samples, self.workers, pin=pin)
        validation_loader = Loader(self.validation, self.workers, pin=pin)
        checkpoints, interval = self.directory / CHECKPOINTS_NAME, 60 * self.checkpoint_minutes
        with (
            retained_memory(self.device),
            stop_on_signals(),
            Progress("Training", self.remaining_images) as progress,
            CheckpointWriter(checkpoints, interval, self.resume_remedy) as writer,
            Tracker(self.directory, self.state.epoch + 1) if self.track and is_main() else nullcontext() as tracker,
        ):
            while not self.finished and (epochs is None or self.state.epoch < epochs):
                epoch = self.state.epoch
                try:
                    self._train_epoch(epoch, loader, progress, writer)
                    row = self._finish_epoch(epoch, validation_loader, writer)
                except InterruptedWorkError as error:
                    problem = f"Stopped in epoch {epoch + 1}, with a checkpoint at {writer.write(self._snapshot())}"
                    raise InterruptedWorkError(problem, self.resume_remedy, error.exit_code) from None
                except PeerError as error:
                    if not is_main():
                        raise
                    problem = f"{error.problem}, in epoch {epoch + 1}"
                    if self._sharding is None:
                        problem += f"; a checkpoint is at {writer.write(self._snapshot())}"
                    raise PeerError(problem, f"{error.remedy}; {self.resume_remedy}") from None
                except LoadingError as error:
                    problem = f"{error.problem}, in epoch {epoch + 1}; a checkpoint is at {writer.write(self._snapshot())}"
                    raise WorkError(problem, f"{error.remedy}; {self.resume_remedy}") from None
                except ImageError as error:  # its header was readable
                    problem = f"{error.problem}, in epoch {epoch + 1}; a checkpoint is at {writer.write(self._snapshot())}"
                    remedy = f"replace it, or leave it out with --skip-unreadable; {self.resume_remedy}"
                    raise type(error)(problem, remedy) from None
                except OSError as error:
                    if isinstance(error, DeiTError):
                        raise
                    problem = f"Training stopped in epoch {epoch + 1}: {error.strerror or error}"
                    raise WorkError(f"{problem}: {error.filename}" if error.filename else problem, writer.remedy) from error
                progress.advance(0, _format_validation(row["validation"]))
                if tracker is not None:
                    tracker.add(row)
        with together():  # what is saved is on the disk when the other processes read it
            pass

    @property
    def resume_remedy(self) -> str:
        """The command that resumes the run."""
        if self.resume_command is not None:
            return f"resume with: {self.resume_command}"
        recipe = self.context.recipe
        command = "pretrain" if recipe.masked else "train" if isinstance(recipe.model, Transformer) else "teacher train"
        return f'resume with: deit {command} --resume "{self.directory}"'

    def _train_epoch(self, epoch: int, loader: Loader, progress: Progress, writer: CheckpointWriter) -> None:
        """Trains to the end of an epoch, or to the last step within it."""
        state, start = self.state, time.perf_counter()
        for step, batches in self.steps(epoch, loader):
            share, images = self.advance(epoch, step, batches)
            seconds = time.perf_counter() - start
            state.seconds += seconds
            if self.budget is not None:
                self._correct_steps(self.budget, seconds, share, progress)
            progress.advance(images, f"epoch {epoch + 1}/{self.context.recipe.epochs}, {format_losses(state.mean_losses)}")
            self._save_if_due(writer)
            start = time.perf_counter()

    def prepare_steps(self) -> None:
        """Prepares compiled training and several processes, where there are any, before the first step."""
        if self.compiled:
            compile_model(self.model)
            self.context = replace(self.context, parallel=None)
        if not is_distributed():
            return
        context = self.context
        if not self.shard:
            self.context = replace(context, parallel=None, data_parallel=DataParallel(self.model, context.features))
            if self.ema is not None:
                copy_from_main(self.ema.model)
        elif self._sharding is None:
            trained = trainable_modules(self.model, context.features)
            state = optimizer_state(trained, self.optimizer)
            self._sharding = Sharding(self.model, context.features, self.ema, self.device)
            self.optimizer = make_optimizer(trained, context.recipe.optimizer, context.precision)
            load_optimizer_state(trained, self.optimizer, state)
            self.context = replace(context, parallel=None, data_parallel=self._sharding)

    def _save_if_due(self, writer: CheckpointWriter) -> None:
        """Starts writing a checkpoint, if the last one is old enough."""
        if self._sharding is None:
            if writer.is_due and is_main():
                writer.start(self._snapshot())
        elif from_main(writer.is_due):
            snapshot = self._snapshot()
            if is_main():
                writer.start(snapshot)

    def _gather(self) -> None:
        """Keeps the snapshot of a divided model, while all processes take part."""
        if self._sharding is not None:
            self._gathered = self._snapshot()

    def steps(self, epoch: int, loader: Loader) -> Iterator[tuple[int, list[Batch]]]:
        """Yields the steps of an epoch that are left, each with its micro-batches, or those of this process."""
        recipe, state = self.context.recipe, self.state
        count, view = len(self.samples.source.labels), recipe.view(epoch)
        steps = view_steps(recipe, count, view, group_rank(), group_size())[state.step :]
        eval_mode = isinstance(recipe.model, Transformer) and recipe.model.eval_mode
        self.model.train(not eval_mode)
        batches = loader.run([plan for step in steps for plan in step])
        for step, plans in enumerate(steps, state.step):
            if state.steps_taken >= self.total_steps:
                loader.close()  # it has made batches ahead of time
                break
            with together(self._gather):
                check_stop()
                loaded = [next(batches) for _ in plans]
                readable_batches(loaded)
            yield step, loaded

    def advance(self, epoch: int, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
        """Takes a step and counts it.

        Returns:
            The fraction of the training that preceded it, and its number of images.
        """
        position, length = self.progress(epoch, step)
        images, skipped = totals([sum(len(batch.labels) for batch in batches), sum(batch.skipped for batch in batches)])
        losses = self._take_step(batches, epoch, step, self.learning_rate(epoch, step), position / length, images)
        if losses is None:
            self.state.add_non_finite_step()
        else:
            if self.ema is not None:
                self.ema.update(self.model, self.state.steps_taken)
            self.state.add_step(losses, images, skipped)
        return position / length, images

    def _take_step(
        self, batches: Sequence[Batch], epoch: int, step: int, lr: float, share: float, images: int
    ) -> dict[str, float] | None:
        """Takes an optimizer step. Returns its losses; None if it is skipped, since they or the gradients are not finite.

        Raises:
            NonFiniteLossError: no more steps may be skipped.
            NonFiniteOutputError: the teacher is the cause.
        """
        try:
            return _to_floats(train_step(self.model, self.optimizer, batches, self.context, epoch, step, lr, share, images))
        except NonFiniteStepError as error:
            with together():
                self._check_teacher(batches)
            what = "gradients are" if math.isfinite(error.loss) else "loss is"
            problem = f"The {what} not finite in epoch {epoch + 1}, step {step + 1}, at learning rate {lr:.3g}"
            values = {"lr": lr, "loss": error.loss, "gradient_norm": error.gradient_norm}
            samples = gathered([sample for batch in batches for sample in batch.samples.tolist()])
            if is_main():
                add_non_finite_step(self.directory, epoch + 1, step + 1, values, [row for rows in samples for row in rows])
            settings = self.context.recipe.optimizer
            if self.state.non_finite_steps >= settings.max_skipped_steps:
                raise _diverged(problem, settings.clip_norm) from None
            print_status(f"Note:      {problem}: skipped, {self.state.non_finite_steps + 1} of {settings.max_skipped_steps}.")
            return None

    def _correct_steps(self, budget: StepBudget, seconds: float, share: float, progress: Progress) -> None:
        """Changes the number of steps if the run would miss its time, and writes the recipe before the next step."""
        budget.add_step(seconds, share)
        finished, total = self.state.steps_taken, self.total_steps
        corrected = from_main(budget.correction(finished, total, share)) if finished < total else None
        if corrected is None:
            return
        recipe = correct_steps(self.context.recipe, finished, corrected, self.steps_per_epoch)
        if is_main():
            recipe.save(self.directory / RECIPE_NAME)
        self.context = replace(self.context, recipe=recipe)
        progress.extend((self.total_steps - total) * (self.images_per_epoch // self.steps_per_epoch))
        print_status(f"Note:      {self.total_steps:,} instead of {plural(total, 'step')}, to end in time.")

    def _finish_epoch(self, epoch: int, validation_loader: Loader, writer: CheckpointWriter) -> dict[str, Any]:
        """Evaluates, logs and saves, and advances the state to the next epoch. Returns the row of the log.

        All processes evaluate; the first one logs and saves.
        """
        start = time.perf_counter()
        recipe, state = self.context.recipe, self.state
        model = self.ema.model if self.ema is not None and recipe.ema.evaluate else self.model
        if self._sharding is not None:
            self._gather()  # for a stop during the evaluation
            model = self._sharding.gather(model)
        elif is_distributed():
            copy_from_main(model)
        validation = self._validate(model, validation_loader, epoch)
        self._gathered = None
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            **state.mean_losses,
            "lr": self.learning_rate(epoch, state.step - 1),
            "seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            "skipped": state.skipped,
            "validation": validation,
        }
        logged = read_log(self.directory) if is_main() else []
        rows = [*(old for old in logged if old["epoch"] <= epoch), row]
        before = [{"validation": state.best}]  # also if the log was removed
        is_best = from_main(best_epoch([*before, *rows]) == len(rows))
        if is_best:
            state.best = {"epoch": epoch + 1, **validation}
        if is_best and is_main():
            self._save_model(BEST_NAME, model)
        if state.step == self.steps_per_epoch:
            state.start_epoch(epoch + 1)
        else:
            state.evaluated = True
        snapshot = self._snapshot() if is_main() or self._sharding is not None else None
        if is_main():
            assert snapshot is not None
            write_log(self.directory, rows)
            self._save_model(LAST_NAME, model)
            writer.start(snapshot)
        if self.budget is not None:
            self.budget.add_evaluation(time.perf_counter() - start)
        return row

    def _validate(self, model: TrainableModel, loader: Loader, epoch: int) -> dict[str, float]:
        """Returns the validation loss, and the accuracy of a classifier.

        Raises:
            NonFiniteLossError: the loss is not finite.
        """
        try:
            validation = self._validation_metrics(model, loader)
        except NonFiniteOutputError:
            validation = {"loss": math.nan}
        if not math.isfinite(validation["loss"]):
            problem = f"The validation loss is not finite after epoch {epoch + 1}"
            raise _diverged(problem, self.context.recipe.optimizer.clip_norm)
        return validation

    def _validation_metrics(self, model: TrainableModel, loader: Loader) -> dict[str, float]:
        recipe, precision = self.context.recipe, self.context.precision
        if isinstance(model, DeiTForMaskedImageModeling):
            loss = masked_loss(
                model,
                self.validation,
                recipe.masking,
                recipe.seed,
                loader=loader,
                batch_size=recipe.images_per_micro_batch,
                precision=precision,
            )
            return {"loss": loss}
        metrics = evaluate_source(model, self.validation, loader=loader, precision=precision, quiet=True).main
        return {"top1": metrics.top1, "loss": metrics.loss, "images": len(self.validation.source.labels)}

    @torch.no_grad()
    def _check_teacher(self, batches: Sequence[Batch]) -> None:
        """Checks whether the teacher is why a loss or a gradient is not finite.

        Raises:
            NonFiniteOutputError: it is.
        """
        teacher = self.context.teacher
        if teacher is None:
            return
        for batch in batches:
            if not len(batch.labels):
                continue
            with autocast(self.device, self.context.precision):
                taught = teacher.targets(batch.to(self.device), features=self.context.features is not None)
            for values in (taught.targets, *taught.feature_maps):
                if values.is_floating_point():
                    check_logits(values.float().cpu().numpy(), f"The teacher {teacher.name}", "pass another teacher")

    def _snapshot(self) -> Snapshot:
        """Copies everything that a checkpoint holds; of a divided model, with the help of all processes.

        Raises:
            NonFiniteLossError: a weight is not finite.
        """
        if self._gathered is not None:
            return self._gathered
        files = {**self.files, PROCESSOR_NAME: self.validation.processor.to_json_string().encode()}
        return take_snapshot(self.state, self.model, self.ema, self.optimizer, files, self.context.features)

    def _save_model(self, name: str, model: TrainableModel) -> None:
        with new_directory(self.directory / name) as draft:
            model.save_pretrained(draft)
            self.validation.processor.save_pretrained(draft)
            for file, content in self.files.items():
                write_bytes(draft / file, content)


def format_losses(losses: Mapping[str, float]) -> str:
    """Formats the losses of a step for the progress line: the unweighted terms, or the total of a single one.

    Example:
        >>> format_losses({"loss": 21.5, "label_loss": 1.5, "distillation_loss": 1.0, "feature_loss": 0.5})
        'label loss 1.500, distillation loss 1.000, feature loss 0.500'
        >>> format_losses({"loss": 1.5, "label_loss": 1.5})
        'loss 1.500'
    """
    terms = {label: losses[name] for name, label in LOSS_LABELS.items() if name in losses}
    if len(terms) < 2:
        return f"loss {losses[TOTAL]:.3f}"
    return ", ".join(f"{label} loss {value:.3f}" for label, value in terms.items())


def _to_floats(losses: dict[str, Tensor]) -> dict[str, float]:
    """Reads scalars from the device in one transfer."""
    return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))


def _format_validation(validation: dict[str, float]) -> str:
    if "top1" in validation:
        return f"validation top-1 {validation['top1']:.1%}, loss {validation['loss']:.3f}"
    return f"validation loss {validation['loss']:.4f}"


def _diverged(problem: str, clip_norm: float | None) -> NonFiniteLossError:
    remedies = ["a lower optimizer.lr", "more optimizer.warmup_epochs", "precision=fp32"]
    if clip_norm is None:
        remedies.append("optimizer.clip_norm=1")
    return NonFiniteLossError(problem, f"try {', '.join(remedies)} (each by --set); earlier checkpoints are kept")
