"""Epochs: train, evaluate, log, checkpoint; stop cleanly when asked to."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deit.data.loader import EvaluationSamples, Loader, TrainSamples
from deit.data.sampler import steps_per_epoch
from deit.errors import InterruptedWorkError, NonFiniteLossError
from deit.evaluation.evaluate import evaluate_source
from deit.evaluation.metrics import rank
from deit.models.modeling import DeiTForMaskedImageModeling
from deit.recipes.samples import view_steps
from deit.recipes.schema import Transformer
from deit.system.files import BEST_NAME, LAST_NAME, LOG_NAME, PROCESSOR_NAME, new_directory, write_json, write_text
from deit.system.malloc import retained_memory
from deit.system.progress import Progress
from deit.system.signals import stop_on_signals
from deit.training.masking import masked_loss
from deit.training.model_building import Trained
from deit.training.optimization import ModelEma, learning_rate
from deit.training.state import TrainState, save_checkpoint
from deit.training.step import StepContext, train_step

CHECKPOINTS_NAME = "checkpoints"


@dataclass
class Training:
    """A run in progress: everything that changes, and what it is done with.

    Attributes:
        directory: of the run.
        model: in training mode; likewise ``average``, None where the recipe keeps none.
        place: where training stands.
        samples: makes the training batches; ``validation`` those by which checkpoints are chosen.
        extras: further files of ``best``, ``last`` and each checkpoint: name -> JSON object.
    """

    directory: Path
    model: Trained
    average: ModelEma[Trained] | None
    optimizer: torch.optim.Optimizer
    place: TrainState
    context: StepContext
    samples: TrainSamples
    validation: EvaluationSamples
    extras: dict[str, dict[str, Any]]
    workers: int | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.samples.source.labels), self.context.recipe.batch_size)

    @property
    def images_an_epoch(self) -> int:
        """Samples that an epoch learns from."""
        count = len(self.samples.source.labels)
        return min(self.steps * self.context.recipe.batch_size, count)

    def fit(self) -> None:
        """Train from where training stands to the recipe's last epoch.

        Raises:
            NonFiniteLossError: training diverged.
            InterruptedWorkError: Ctrl-C or a termination signal came; a checkpoint of this very step is left.
            ImageError: an unreadable image, unless they are skipped.
        """
        recipe, place = self.context.recipe, self.place
        on_gpu = self.context.device.type == "cuda"
        loader = Loader(self.samples, self.workers, pin=on_gpu)
        judge = Loader(self.validation, self.workers, pin=on_gpu)
        remaining = (recipe.epochs - place.epoch) * self.images_an_epoch - place.images
        with retained_memory(self.context.device), stop_on_signals() as stop, Progress("Training", remaining) as progress:
            for epoch in range(place.epoch, recipe.epochs):
                self._train_epoch(epoch, loader, progress, stop)
                row = self._finish_epoch(epoch, judge)
                progress.advance(0, _words(row["validation"]))

    def _train_epoch(self, epoch: int, loader: Loader, progress: Progress, stop: threading.Event) -> None:
        recipe, place = self.context.recipe, self.place
        count = len(self.samples.source.labels)
        pieces = view_steps(recipe, count, recipe.view(epoch))[place.step :]
        chosen = recipe.model
        self.model.train(not (isinstance(chosen, Transformer) and chosen.evaluation_mode))
        start = time.perf_counter()
        batches = loader.run([piece for step in pieces for piece in step])
        for step, plan in enumerate(pieces, place.step):
            group = [next(batches) for _ in plan]
            lr = learning_rate(recipe.optimizer, recipe.peak_lr, recipe.epochs, epoch + step / self.steps)
            loss = train_step(self.model, self.optimizer, group, self.context, epoch, step, lr).item()
            if not abs(loss) < float("inf"):
                raise _diverged(epoch, step, lr, recipe.optimizer.clip_norm)
            if self.average is not None:
                self.average.update(self.model, place.steps_taken)
            images = sum(len(batch.labels) for batch in group)
            place.step, place.steps_taken = step + 1, place.steps_taken + 1
            place.loss_sum, place.images = place.loss_sum + loss * images, place.images + images
            place.skipped += sum(batch.skipped for batch in group)
            progress.advance(images, f"epoch {epoch + 1}/{recipe.epochs}, loss {place.loss_sum / place.images:.3f}")
            if stop.is_set():
                place.seconds += time.perf_counter() - start
                path = self._checkpoint()
                verb = "pretrain" if recipe.masked else "train"
                raise InterruptedWorkError(
                    f"Stopped in epoch {epoch + 1}, with a checkpoint at {path}",
                    f'go on with: deit {verb} --resume "{self.directory}"',
                )
        place.seconds += time.perf_counter() - start

    def _finish_epoch(self, epoch: int, judge: Loader) -> dict[str, Any]:
        """Evaluate, log, save, and move on to the next epoch."""
        recipe, place = self.context.recipe, self.place
        chosen = self.average.model if self.average is not None and recipe.average.evaluate else self.model
        result = self._judged(chosen, judge)
        last_step = epoch + (self.steps - 1) / self.steps
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": place.loss_sum / place.images,
            "lr": learning_rate(recipe.optimizer, recipe.peak_lr, recipe.epochs, last_step),
            "seconds": place.seconds,
            "images_per_second": place.images / place.seconds,
            "skipped": place.skipped,
            "validation": result,
        }
        if not place.best or rank(result) > rank(place.best):
            place.best = {"epoch": epoch + 1, **result}
            self._save_model(BEST_NAME, chosen)
        place.epoch, place.step = epoch + 1, 0
        place.loss_sum, place.images, place.skipped, place.seconds = 0.0, 0, 0, 0.0
        write_log(self.directory, [*read_log(self.directory)[:epoch], row])
        self._save_model(LAST_NAME, chosen)
        self._checkpoint()
        return row

    def _judged(self, model: Trained, judge: Loader) -> dict[str, float]:
        """The loss on the validation part, and the accuracy where labels are learned."""
        recipe, precision = self.context.recipe, self.context.precision
        if isinstance(model, DeiTForMaskedImageModeling):
            size = recipe.micro_batch_size
            settings = recipe.masking
            loss = masked_loss(
                model, self.validation, settings, recipe.seed, loader=judge, batch_size=size, precision=precision
            )
            return {"loss": loss}
        answer = evaluate_source(model, self.validation, loader=judge, precision=precision, quiet=True).main
        return {"top1": answer.top1, "loss": answer.loss}

    def _checkpoint(self) -> Path:
        beside = {**self.extras, PROCESSOR_NAME: self.validation.processor.to_dict()}
        folder = self.directory / CHECKPOINTS_NAME
        return save_checkpoint(folder, self.place, self.model, self.average, self.optimizer, beside, self.context.hints)

    def _save_model(self, name: str, model: Trained) -> None:
        with new_directory(self.directory / name) as draft:
            model.save_pretrained(draft)
            self.validation.processor.save_pretrained(draft)
            for file, content in self.extras.items():
                write_json(draft / file, content)


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl``, one an epoch; empty where there is none yet."""
    path = directory / LOG_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def write_log(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``log.jsonl`` whole."""
    write_text(directory / LOG_NAME, "".join(json.dumps(row) + "\n" for row in rows))


def _words(result: dict[str, float]) -> str:
    return f"validation {result['top1']:.1%}" if "top1" in result else f"validation loss {result['loss']:.4f}"


def _diverged(epoch: int, step: int, lr: float, clip_norm: float | None) -> NonFiniteLossError:
    tries = ["a lower optimizer.lr", "more optimizer.warmup_epochs", "precision=fp32"]
    if clip_norm is None:
        tries.append("optimizer.clip_norm=1")
    return NonFiniteLossError(
        f"The loss is not finite in epoch {epoch + 1}, step {step + 1}, at learning rate {lr:.3g}",
        f"try {', '.join(tries)} (each by --set); the checkpoints before it are kept",
    )
