"""Finishes a run: evaluates the best model and the teacher, writes model cards and the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deit.checkpoints.model_card import model_card
from deit.checkpoints.run_log import read_log
from deit.data.image_hashes import SeenImages, content_hashes, leave_out_seen, read_image_hashes
from deit.data.loader import EvaluationSamples
from deit.data.opening import short_name
from deit.data.sources import ImageSource
from deit.data.splits import Splits
from deit.distillation.protocol import DistillationTeacher
from deit.errors import ImageError, MissingExtraError
from deit.evaluation.evaluate import evaluate_source
from deit.evaluation.explanation import Explainer, Explanation
from deit.evaluation.metrics import Evaluation
from deit.evaluation.report import ReportData, write_report
from deit.evaluation.runs import write_predictions
from deit.models.auto import LoadedClassifier, load_classifier
from deit.models.modeling import TransformerClassifier
from deit.recipes.run_settings import RunSettings
from deit.system.files import BEST_NAME, CARD_NAME, EVALUATION_NAME, LAST_NAME, write_json, write_text
from deit.system.progress import print_status
from deit.system.torchrun import is_main
from deit.training.loop import Trainer
from deit.training.summary import image_counts, run_summary

REPORT_NAME = "report.html"
EXPLAINED = 2  # wrong predictions, and as many correct ones


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        directory: the run directory; ``best`` in it is the model.
        split: the split that was evaluated: ``test``, or ``validation`` if the data set has no test split.
        evaluation: evaluation of the best model on that split.
        teacher: evaluation of the teacher on the same images; None without a teacher.
    """

    directory: Path
    split: str
    evaluation: Evaluation
    teacher: Evaluation | None


@dataclass(frozen=True)
class PretrainResult:
    """A finished pretraining run.

    Attributes:
        directory: the run directory; pass it as ``init`` to :func:`deit.train`.
        epoch: epoch of the best model, counted from 1.
        loss: its validation loss: mean absolute error of the masked pixels, in units of the normalized images.
    """

    directory: Path
    epoch: int
    loss: float


def finish_training(
    trainer: Trainer, splits: Splits, teacher: DistillationTeacher | None, settings: RunSettings
) -> TrainResult:
    """Evaluates the best model and the teacher on the held-out split; writes ``evaluation.json``, model cards and the report.

    The evaluation runs in fp32, whatever the precision of training, so that ``deit evaluate`` gives the same metrics. Copies of
    training images are left out, unless there are no others. All processes of a run evaluate; the first one writes.
    """
    directory, recipe = trainer.directory, trainer.context.recipe
    best = load_classifier(directory / BEST_NAME)
    classifier = None if teacher is None else teacher.for_evaluation()
    split, held_out = splits.held_out
    source, seen, teacher_seen = _leave_out_copies(held_out, best, classifier)

    def evaluate(classifier: LoadedClassifier, seen: SeenImages | None) -> Evaluation:
        samples = EvaluationSamples(source, classifier.processor, settings.skip_unreadable)
        evaluation = evaluate_source(classifier.model.to(trainer.device), samples, workers=trainer.workers)
        return replace(evaluation, seen=seen)

    evaluation = evaluate(best, seen)
    teacher_evaluation = None if classifier is None else evaluate(classifier, teacher_seen)
    result = TrainResult(directory, split, evaluation, teacher_evaluation)
    if not is_main():
        return result
    content: dict[str, Any] = {"split": split, "best_epoch": trainer.state.best["epoch"], **evaluation.to_dict()}
    content["data"] = {"images": image_counts(splits), "origin": splits.origin}
    if teacher_evaluation is not None:
        content["teacher"] = teacher_evaluation.summary()
    write_json(directory / EVALUATION_NAME, content)
    write_predictions(directory, _prediction_rows(evaluation, source))
    for model in (directory / BEST_NAME, directory / LAST_NAME):
        write_text(model / CARD_NAME, model_card(model))
    report = ReportData(
        title=f"{recipe.name} on {short_name(settings.data)}",
        facts=run_summary(trainer, splits, settings, teacher),
        history=read_log(directory),
        split=split,
        evaluation=evaluation,
        teacher=teacher_evaluation,
        source=source,
        distillation=recipe.distillation,
        label_loss=recipe.loss,
        explanations=_explanations(best, evaluation, source),
    )
    try:
        write_report(directory / REPORT_NAME, report)
    except MissingExtraError as error:
        print_status(str(error))
    return result


def _prediction_rows(evaluation: Evaluation, source: ImageSource) -> Iterator[dict[str, Any]]:
    """Yields the prediction for each image."""
    columns = (evaluation.indices, evaluation.labels, evaluation.predictions, evaluation.confidence)
    for index, label, prediction, confidence in zip(*(column.tolist() for column in columns), strict=True):
        yield {
            "image": source.name(index),
            "label": evaluation.classes[label],
            "prediction": evaluation.classes[prediction],
            "probability": confidence,
        }


def _explanations(best: LoadedClassifier, evaluation: Evaluation, source: ImageSource) -> list[tuple[Explanation, str]]:
    """Explains the most confident wrong predictions, and correct ones, each with the class of the image.

    None for a model without attention.
    """
    if not isinstance(best.model, TransformerClassifier):
        return []
    explainer = Explainer(best, str(next(best.model.parameters()).device))
    order = np.argsort(-evaluation.confidence, kind="stable")
    is_correct = evaluation.scores.correct[order]
    chosen = [*order[~is_correct][:EXPLAINED], *order[is_correct][:EXPLAINED]][: 2 * EXPLAINED]
    explanations = []
    for row in chosen:
        index = int(evaluation.indices[row])
        with suppress(ImageError):  # it was readable during evaluation
            explanation = explainer(source.load(index), source.name(index))
            explanations.append((explanation, evaluation.classes[int(evaluation.labels[row])]))
    return explanations


def _leave_out_copies(
    source: ImageSource, model: LoadedClassifier, teacher: LoadedClassifier | None
) -> tuple[ImageSource, SeenImages | None, SeenImages | None]:
    """Leaves out the images that the model was trained on, unless there are no others.

    Returns:
        The images to evaluate on, and how many the model and the teacher saw; None if unknown.
    """
    hashes, teacher_hashes = (
        read_image_hashes(classifier.path) if classifier is not None and classifier.path is not None else None
        for classifier in (model, teacher)
    )
    if hashes is None:
        return source, None, None
    found = content_hashes(source)
    images, seen = leave_out_seen(source, found, hashes)
    if not len(images.labels):
        images, seen = leave_out_seen(source, found, hashes, keep=True)
    if teacher_hashes is None:
        return images, seen, None
    kept = found if seen.measured else found[~np.isin(found, hashes.train)]
    return images, seen, leave_out_seen(images, kept, teacher_hashes, keep=True)[1]


def finish_pretraining(trainer: Trainer) -> PretrainResult:
    """Writes ``evaluation.json`` of a pretraining run."""
    best = trainer.state.best
    if is_main():
        content = {"split": "validation", "best_epoch": best["epoch"], "loss": best["loss"]}
        write_json(trainer.directory / EVALUATION_NAME, content)
    return PretrainResult(trainer.directory, int(best["epoch"]), best["loss"])
