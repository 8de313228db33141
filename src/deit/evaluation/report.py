"""Training report: one HTML file with metrics, learning curves, confusion matrix, calibration and sample images.

The file loads nothing from the network and runs no script.
"""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from deit.checkpoints.selection import best_epoch
from deit.data.sources import ImageSource
from deit.errors import ImageError, MissingExtraError
from deit.evaluation.agreement import agreements, voter_predictions
from deit.evaluation.charts import (
    MODEL,
    STYLE,
    TRAIN,
    accuracy_chart,
    accuracy_histogram,
    calibration_chart,
    curve_chart,
    stacked_chart,
)
from deit.evaluation.confusion import Confusion
from deit.evaluation.explanation import Explanation
from deit.evaluation.explanation_figure import overlay
from deit.evaluation.metrics import Evaluation, calibration_bins
from deit.models.losses import Distillation
from deit.system.files import write_text
from deit.system.progress import duration, plural

MAX_TABLE_CLASSES = 40  # up to this number of classes the confusion matrix is a table; beyond, an image
MAX_NUMBERED_CLASSES = 20  # up to this number, the cells of that table have room for counts
MAX_NAMED_COLUMNS = 6  # up to this number, its columns have room for names of any length
WORST_CLASSES = 20
SAMPLES = 12
SAMPLE_SIDE = 160  # pixels
PIXEL_ART_SIDE = 64  # images up to this side are enlarged without interpolation
CONFUSION_IMAGE_SIDE = 500  # pixels
MAX_CONFUSION_CELLS = 250  # per side; smaller cells are invisible on a screen
MODEL_RGB, WRONG_RGB = (47, 111, 208), (214, 69, 48)  # of the confusion image; legible on light and dark pages

HEAD_NAMES = {"class": "class head", "distillation": "distillation head", "both": "both heads"}
SPLIT_NOTES = {
    "test": "Measured on test images, which were used neither for training nor for selecting the checkpoint.",
    "validation": "Measured on the validation images, which also selected the checkpoint: the accuracy is slightly optimistic.",
}
LOSS_NOTES = {
    "cross-entropy": "Both are cross-entropies with the labels, in nats. The training loss is that of the class head on "
    "augmented and mixed images with smoothed labels, as the recipe sets them, so it can be higher than the validation loss.",
    "binary": "The training loss is a binary cross-entropy per class, on augmented images, and the validation loss a "
    "cross-entropy, in nats: compare their trends, not their values.",
}
DISTILLATION_NOTES = {
    "none": "",
    "hard": "The distillation loss is the cross-entropy of the distillation head with the teacher's most likely class. ",
    "soft": "The distillation loss is the KL divergence of the distillation head from the teacher, both softened by the "
    "temperature, times the squared temperature. ",
}
TIMES = "\N{MULTIPLICATION SIGN}"
FEATURE_NOTE = "The feature loss is the mean squared error of predicting the teacher's standardized feature maps. "


@dataclass(frozen=True)
class ReportData:
    """Content of a report.

    Attributes:
        title: heading, such as recipe and data set.
        facts: label -> text, such as the model, the recipe and the device.
        history: rows of ``log.jsonl``, one per epoch: ``epoch`` from 1, ``loss`` (the objective), ``label_loss``,
            ``distillation_loss``, ``feature_loss``, ``lr``, ``seconds``, ``images_per_second`` and ``validation`` (``top1`` in
            0..1, ``loss``). A value that is missing or not finite leaves a gap in its curve.
        split: ``test`` or ``validation``: the split of ``evaluation``.
        evaluation: of the model.
        teacher: evaluation of the teacher on the same images; None without a teacher.
        source: the images that ``evaluation.indices`` refer to, for the samples.
        distillation: weights of the training objective.
        label_loss: kind of the training loss on the labels.
        explanations: of some of the images, with the class of each; empty if the model is not a DeiT or ViT.
    """

    title: str
    facts: dict[str, str]
    history: list[dict[str, Any]]
    split: str
    evaluation: Evaluation
    teacher: Evaluation | None
    source: ImageSource
    distillation: Distillation
    label_loss: Literal["cross-entropy", "binary"]
    explanations: Sequence[tuple[Explanation, str]] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Writes the report. Equal data gives an identical file.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    render_page(path, "report.html", lambda: _context(data))


def render_page(path: Path, template: str, context: Callable[[], dict[str, Any]]) -> None:
    """Writes a page.

    Args:
        path: the page.
        template: its name.
        context: returns the variables of the template; charts are drawn in the style of the page.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    try:
        for library in ("matplotlib", "jinja2"):
            importlib.import_module(library)
    except ImportError as error:
        raise MissingExtraError("The report", "report") from error
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from matplotlib import style

    environment = Environment(
        loader=PackageLoader("deit.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share, digits=2: f"{share:.{digits}%}",
        "thousands": "{:,}".format,
        "fixed": "{:.4f}".format,
    }
    with style.context(STYLE, after_reset=True):
        html = environment.get_template(template).render(context())
    # A file name that is not valid text puts lone surrogates into a class name, which UTF-8 cannot encode.
    write_text(path, html.encode(errors="replace").decode())


def _context(data: ReportData) -> dict[str, Any]:
    evaluation = data.evaluation
    return {
        "data": data,
        "split_note": SPLIT_NOTES[data.split],
        "seen_note": _seen_note(data),
        "correct": evaluation.correct,
        "interval": evaluation.top1_interval,
        "heads": _head_rows(data),
        "training": _training(data),
        "confusion": _confusion(evaluation),
        "calibration": _calibration(evaluation),
        "per_class": _class_rows(evaluation),
        "samples": _samples(data),
        "agreement": _agreement(data),
        "explanations": [_explanation_panels(explanation, truth) for explanation, truth in data.explanations],
    }


def _agreement(data: ReportData) -> dict[str, Any]:
    """Returns how often heads and teacher agree, with the images on which the heads differ; empty with one head alone."""
    groups, evaluation = agreements(data.evaluation, data.teacher), data.evaluation
    if not groups:
        return {}
    voters = voter_predictions(evaluation, data.teacher)
    differing = np.concatenate([group.rows for group in groups[1:]])
    order = differing[np.argsort(-evaluation.confidence[differing], kind="stable")][:SAMPLES]
    cards = _cards(data, order)
    for card in cards:
        votes = {name: evaluation.classes[int(predictions[card["row"]])] for name, predictions in voters.items()}
        card["votes"] = votes
    return {
        "voters": list(voters),
        "groups": groups,
        "images": len(evaluation.indices),
        "cards": cards,
        "total": len(differing),
    }


def _explanation_panels(explanation: Explanation, truth: str) -> dict[str, Any]:
    """Returns an image, and the map of each head over it."""
    maps = [
        {
            "image": _thumbnail(overlay(explanation, head.relevance)),
            "head": HEAD_NAMES[head.head],
            "label": head.labels[0],
            "probability": head.probabilities[0],
        }
        for head in explanation.heads
    ]
    image = _thumbnail(Image.fromarray(explanation.pixels))
    return {"image": image, "file": explanation.image, "truth": truth, "target": explanation.label, "maps": maps}


def _seen_note(data: ReportData) -> str:
    """Returns sentences on images that training saw; empty if there are none."""
    seen, teacher, sentences = data.evaluation.seen, None if data.teacher is None else data.teacher.seen, []
    if seen is not None and seen.left_out:
        sentences.append(f"{plural(seen.left_out, f'{data.split} image')} left out: the model was trained on the same files.")
    if seen is not None and seen.measured:
        sentences.append(f"The model was trained on {seen.measured:,} of these images.")
    if teacher is not None and teacher.measured:
        sentences.append(f"The teacher was trained on {teacher.measured:,} of these images: its accuracy is optimistic.")
    return " ".join(sentences)


def _head_rows(data: ReportData) -> list[dict[str, Any]]:
    teacher = [] if data.teacher is None else [{"name": "teacher", "metrics": data.teacher.main}]
    student = [{"name": HEAD_NAMES.get(name, name), "metrics": head} for name, head in data.evaluation.heads.items()]
    return [*teacher, *student]


def _training(data: ReportData) -> dict[str, Any]:
    history = data.history
    if not history:
        return {}
    epochs = _series(history, "epoch")
    label_loss = _series(history, "label_loss")
    has_label_loss = bool(np.isfinite(label_loss).any())
    training_loss = label_loss if has_label_loss else _series(history, "loss")
    terms = {name: _series(history, f"{name}_loss") for name in ("distillation", "feature")}
    terms = {f"{name} loss": values for name, values in terms.items() if np.isfinite(values).any()}
    best = best_epoch(history)
    return {
        "facts": _training_facts(history, best),
        "loss": curve_chart(
            "Training and validation loss by epoch",
            epochs,
            (training_loss, TRAIN),
            (_series(history, "validation", "loss"), MODEL),
        ),
        "loss_name": "Label loss" if has_label_loss else "Loss",
        "loss_note": LOSS_NOTES[data.label_loss] if has_label_loss else "The training loss is measured on augmented images.",
        "terms": stacked_chart("Other terms of the training objective by epoch", epochs, terms, TRAIN) if terms else "",
        "objective": _objective(data.distillation, list(terms)),
        "accuracy": accuracy_chart(
            "Validation accuracy by epoch",
            epochs,
            _series(history, "validation", "top1"),
            best,
        ),
        "learning_rate": curve_chart("Learning rate by epoch", epochs, (_series(history, "lr"), MODEL)),
    }


def _training_facts(history: list[dict[str, Any]], best: int | None) -> dict[str, str]:
    facts = {"Epochs": f"{len(history):,}", "Time": duration(float(np.nansum(_series(history, "seconds"))))}
    speeds = _series(history, "images_per_second")
    if np.isfinite(speeds).any():
        facts["Speed"] = f"{np.nanmedian(speeds):,.0f} images/s"
    if best is not None and (top1 := history[best]["validation"].get("top1")) is not None:
        facts["Best epoch"] = f"{history[best]['epoch']:,} ({top1:.2%} top-1)"
    return facts


def _objective(distillation: Distillation, terms: Sequence[str]) -> str:
    """Returns a sentence on how the training objective adds up; empty if it is the label loss alone."""
    if not terms:
        return ""
    weight = distillation.teacher_weight if "distillation loss" in terms else 0.0
    weights = {"label loss": 1 - weight, "distillation loss": weight, "feature loss": distillation.features}
    total = " + ".join(f"{weights[name]:g} {TIMES} {name}" for name in ("label loss", *terms))
    feature_note = FEATURE_NOTE if "feature loss" in terms else ""
    return f"{DISTILLATION_NOTES[distillation.mode]}{feature_note}The training objective is {total}."


def _series(history: list[dict[str, Any]], *keys: str) -> np.ndarray:
    """Returns one value per epoch; NaN where it is missing or infinite."""
    values = []
    for row in history:
        value: Any = row
        for key in keys:
            value = (value or {}).get(key)
        values.append(np.nan if value is None else value)
    series = np.asarray(values, np.float64)
    return np.where(np.isfinite(series), series, np.nan)


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    confidence = float(evaluation.confidence.mean(dtype=np.float64))
    return {
        "chart": calibration_chart(calibration_bins(evaluation.confidence, evaluation.scores.correct)),
        "error": evaluation.main.calibration_error,
        "confidence": confidence,
        "gap": confidence - evaluation.main.top1,
    }


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    names = evaluation.classes
    is_table = len(names) <= MAX_TABLE_CLASSES
    named = len(names) <= MAX_NAMED_COLUMNS or all(len(name) <= 3 for name in names)
    block = -(-len(names) // MAX_CONFUSION_CELLS)  # classes per cell of the image, in each direction
    return {
        "classes": len(names),
        "named": named,
        "numbered": len(names) <= MAX_NUMBERED_CLASSES,
        "columns": list(names) if named else [str(i + 1) for i in range(len(names))],
        "rows": _confusion_rows(evaluation) if is_table else [],
        "image": "" if is_table else _confusion_image(evaluation.confusion, block),
        "block": block,
        "pairs": _confused_pairs(evaluation, 8 if is_table else 12),
    }


def _confusion_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    confusion = evaluation.confusion.to_array()
    shades = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))  # a share of 1% is visible
    return [
        {
            "name": name,
            "cells": [
                {"count": int(count), "shade": f"{shade:.3f}", "dark": shade > 0.6, "correct": row == column}
                for column, (count, shade) in enumerate(zip(confusion[row], shades[row], strict=True))
            ],
        }
        for row, name in enumerate(evaluation.classes)
    ]


def _confusion_image(confusion: Confusion, block: int) -> str:
    """Renders the shares of the rows as an image, transparent at zero; a pixel is the maximum of block x block cells.

    Pixels on the diagonal show correct predictions only, the others mistakes.
    """
    side = -(-confusion.num_classes // block)
    rows, columns, shares = confusion.truth // block, confusion.predicted // block, confusion.shares
    shown = (rows != columns) | (confusion.truth == confusion.predicted)
    largest = np.zeros((side, side))
    np.maximum.at(largest, (rows[shown], columns[shown]), shares[shown])
    pixels = np.empty((side, side, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(side, dtype=bool)[..., None], MODEL_RGB, WRONG_RGB)
    pixels[..., 3] = np.rint(255 * np.sqrt(largest))
    scale = max(CONFUSION_IMAGE_SIDE // side, 1)
    return _data_uri(Image.fromarray(pixels).resize((side * scale, side * scale), Image.Resampling.NEAREST), "PNG")


def _confused_pairs(evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """Returns the most frequent mistakes, by number of images, then by share of the class."""
    confusion, names = evaluation.confusion, evaluation.classes
    return [
        {
            "truth": names[confusion.truth[cell]],
            "predicted": names[confusion.predicted[cell]],
            "count": int(confusion.counts[cell]),
            "total": int(confusion.totals[confusion.truth[cell]]),
        }
        for cell in confusion.mistakes(count)
    ]


def _class_rows(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the classes that have images, worst first. If there are many, ``rows`` are only the worst."""
    confusion, names = evaluation.confusion, evaluation.classes
    totals, correct = confusion.totals, confusion.correct
    with_images = np.flatnonzero(totals)
    order = with_images[np.argsort(correct[with_images] / totals[with_images], kind="stable")].tolist()
    mistaken_for: dict[int, str] = {}
    for cell in confusion.mistakes():  # the most frequent one of a class comes first
        mistaken_for.setdefault(int(confusion.truth[cell]), names[confusion.predicted[cell]])
    rows = [
        {"name": names[i], "correct": int(correct[i]), "total": int(totals[i]), "mistaken_for": mistaken_for.get(i, "")}
        for i in order
    ]
    is_complete = len(names) <= MAX_TABLE_CLASSES
    listed = rows if is_complete else rows[:WORST_CLASSES]
    return {
        "rows": listed,
        "longest": max(len(row["name"]) for row in listed),
        "complete": is_complete,
        "all": [] if is_complete else rows,
        "accuracies": "" if is_complete else accuracy_histogram(correct[with_images] / totals[with_images]),
        "empty": len(totals) - len(with_images),
    }


def _samples(data: ReportData) -> dict[str, Any]:
    evaluation = data.evaluation
    order = np.argsort(-evaluation.confidence, kind="stable")
    is_correct = evaluation.scores.correct[order]
    wrong, correct = order[~is_correct], order[is_correct]
    spread = np.linspace(0, len(correct) - 1, min(SAMPLES, len(correct)))
    return {
        "wrong_total": len(wrong),
        "wrong": _cards(data, wrong[:SAMPLES]),
        "correct": _cards(data, correct[np.rint(spread).astype(np.int64)]),
    }


def _cards(data: ReportData, rows: np.ndarray) -> list[dict[str, Any]]:
    evaluation, cards = data.evaluation, []
    for row in rows:
        index = int(evaluation.indices[row])
        try:
            image = data.source.load(index)
        except ImageError:
            continue  # it was readable during evaluation; the metrics stand without its sample
        cards.append(
            {
                "row": int(row),
                "image": _thumbnail(image),
                "file": data.source.name(index),
                "truth": evaluation.classes[int(evaluation.labels[row])],
                "predicted": evaluation.classes[int(evaluation.predictions[row])],
                "confidence": float(evaluation.confidence[row]),
            }
        )
    return cards


def _thumbnail(image: Image.Image) -> str:
    longer = max(image.size)
    pixel_art = longer <= PIXEL_ART_SIDE
    scale = SAMPLE_SIDE // longer if pixel_art else min(SAMPLE_SIDE / longer, 1)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    method = Image.Resampling.NEAREST if pixel_art else Image.Resampling.LANCZOS
    return _data_uri(image.resize(size, method), "PNG" if pixel_art else "JPEG")


def _data_uri(image: Image.Image, image_format: str) -> str:
    image.info.clear()  # comments and profiles of the file would be saved too
    file = io.BytesIO()
    image.save(file, image_format, optimize=True)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
