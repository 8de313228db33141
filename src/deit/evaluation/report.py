"""One training run -> one HTML file that opens anywhere: figures, curves, confusion, calibration, sample images.

The file asks nothing of the network and runs no script. Class names appear in the HTML alone, never in a chart: the browser
has letters for them that matplotlib's font lacks, and there they are escaped.
"""

from __future__ import annotations

import base64
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deit.data.sources import ImageSource
from deit.errors import ImageError, MissingExtraError
from deit.evaluation.evaluate import Evaluation, calibration_bins
from deit.system.files import write_text
from deit.system.progress import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELED_CLASSES = 40  # up to here the confusion matrix is a table with a row a class; beyond, a picture
NUMBERED_CLASSES = 20  # up to here there is room for the count in each cell of that table
NAMED_COLUMNS = 6  # up to here the columns of that table are headed by names of any length
WORST_CLASSES = 20
SAMPLES = 12
SAMPLE_SIDE = 160  # pixels
PIXEL_IMAGE_SIDE = 64  # an image no larger than this is shown as its pixels
HEAT_MAP_SIDE = 500  # pixels
HEAT_MAP_DOTS = 250  # at most, on each side: a smaller dot is lost on a screen
FEW_EPOCHS = 12  # up to here each epoch is a dot on its curve

HEAD_NAMES = {"class": "class head", "distillation": "distillation head", "both": "both heads"}
MEASURED = {
    "test": "Measured on test images that took no part in training nor in choosing among checkpoints.",
    "validation": "Measured on the validation images, by which checkpoints were chosen too: the figure is slightly optimistic.",
}

# Charts are drawn in colors that nobody would choose, each of which then becomes a variable of the page's style sheet: so
# one drawing serves light and dark screens.
GRID, MUTED, TRAIN, MODEL, WRONG = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {GRID: "--line", MUTED: "--muted", TRAIN: "--train", MODEL: "--model", WRONG: "--wrong"}
MODEL_RGB, WRONG_RGB = (47, 111, 208), (214, 69, 48)  # for the picture of a large confusion matrix; legible on both grounds

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deit",
    "font.size": 10,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "lines.linewidth": 1.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class ReportData:
    """What a report tells.

    Attributes:
        title: the data set's name, or whatever the run is known by.
        facts: label -> text, such as the model, the recipe and the device.
        history: rows of ``log.jsonl``, one an epoch, with ``epoch`` from 1, ``loss``, ``lr``, ``seconds``,
            ``images_per_second`` and ``validation`` (``top1`` in 0..1, ``loss``). A value that is missing or not finite leaves
            a gap in its curve.
        part: ``test`` or ``validation``: what ``evaluation`` was measured on.
        evaluation: how the model did.
        others: further models on the same images, such as the teacher.
        source: what ``evaluation.indices`` index, for the sample images.
    """

    title: str
    facts: dict[str, str]
    history: list[dict[str, Any]]
    part: str
    evaluation: Evaluation
    others: dict[str, Evaluation]
    source: ImageSource


def write_report(path: Path, data: ReportData) -> None:
    """Write the report. Equal data gives an equal file.

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
        html = environment.get_template("report.html").render(_context(data))
    # A file name that is no valid text leaves half characters in a class name, which UTF-8 cannot hold.
    write_text(path, html.encode(errors="replace").decode())


def _context(data: ReportData) -> dict[str, Any]:
    evaluation = data.evaluation
    right = int(np.trace(evaluation.confusion))
    return {
        "run": data,
        "measured": MEASURED[data.part],
        "right": right,
        "interval": _interval(right, evaluation.images),
        "heads": _head_rows(data),
        "training": _training(data.history),
        "confusion": _confusion(evaluation),
        "calibration": _calibration(evaluation),
        "per_class": _class_rows(evaluation),
        "samples": _samples(data),
    }


def _interval(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share: what chance in the choice of images alone leaves open."""
    z = 1.96
    share, scale = right / images, 1 + z**2 / images
    middle = (share + z**2 / (2 * images)) / scale
    reach = z / scale * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def _head_rows(data: ReportData) -> list[dict[str, Any]]:
    others = [{"name": name, "result": other.answer} for name, other in data.others.items()]
    own = [{"name": HEAD_NAMES.get(name, name), "result": head} for name, head in data.evaluation.heads.items()]
    return [*others, *own]


def _training(history: list[dict[str, Any]]) -> dict[str, Any]:
    if not history:
        return {}
    epochs = _series(history, "epoch")
    top1 = _series(history, "validation", "top1")
    facts = {"Epochs": f"{len(history):,}", "Time": duration(float(np.nansum(_series(history, "seconds"))))}
    speeds = _series(history, "images_per_second")
    if np.isfinite(speeds).any():
        facts["Speed"] = f"{np.nanmedian(speeds):,.0f} images/s"
    if np.isfinite(top1).any():
        best = int(np.nanargmax(top1))
        facts["Highest validation accuracy"] = f"{top1[best]:.2%}, in epoch {epochs[best]:.0f}"
    return {
        "facts": facts,
        "loss": _curve_chart(
            "Training and validation loss by epoch",
            epochs,
            (_series(history, "loss"), TRAIN),
            (_series(history, "validation", "loss"), MODEL),
        ),
        "accuracy": _curve_chart("Validation accuracy by epoch", epochs, (top1, MODEL), shares=True),
        "rate": _curve_chart("Learning rate by epoch", epochs, (_series(history, "lr"), MODEL)),
    }


def _series(history: list[dict[str, Any]], *keys: str) -> np.ndarray:
    """One value an epoch, NaN where the row lacks it or it is infinite."""
    values = []
    for row in history:
        value: Any = row
        for key in keys:
            value = (value or {}).get(key)
        values.append(np.nan if value is None else value)
    series = np.asarray(values, np.float64)
    return np.where(np.isfinite(series), series, np.nan)


def _curve_chart(label: str, epochs: np.ndarray, *curves: tuple[np.ndarray, str], shares: bool = False) -> str:
    """Curves, each with its color, over epochs. Shares are shown in percent, with a dot on the highest; others from zero."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(400 / 72, 230 / 72))
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.79))
    for values, color in curves:
        dashes = (0, (4, 1.5)) if color == TRAIN else "solid"
        marker = "o" if len(epochs) <= FEW_EPOCHS else ""
        axes.plot(epochs, values, color=color, linestyle=dashes, marker=marker, markersize=4, clip_on=False)
        if shares and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axes.plot(epochs[best], values[best], "o", color=color, markersize=7, clip_on=False)
    low, high = axes.get_ylim()
    if shares:
        axes.set_ylim(max(low, 0.0), min(high, 1.0))
    elif not any((values < 0).any() for values, _ in curves):
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:.4g}%") if shares else "{x:g}")
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + max(0.02 * len(epochs), 0.5))  # no tick at an epoch 0 that never was
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    return _svg(figure, label)


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    confidence = float(evaluation.probabilities.max(axis=1).mean(dtype=np.float64))
    return {
        "chart": _calibration_chart(calibration_bins(evaluation.probabilities, evaluation.labels)),
        "error": evaluation.answer.calibration_error,
        "confidence": confidence,
        "gap": confidence - evaluation.answer.top1,
    }


def _calibration_chart(bins: np.ndarray) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 340 / 72))
    upper = figure.add_axes((0.13, 0.38, 0.84, 0.6))
    lower = figure.add_axes((0.13, 0.13, 0.84, 0.2), sharex=upper)
    centers = (np.arange(len(bins)) + 0.5) / len(bins)
    filled = bins[:, 0] > 0
    counts, confidence, accuracy = bins[filled].T
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    upper.vlines(confidence, confidence, accuracy, color=WRONG, linewidth=2)
    # A dot's area goes with its images, so that a bin of two images does not shout.
    upper.scatter(confidence, accuracy, s=20 + 130 * counts / counts.max(), color=MODEL, linewidths=0, zorder=3, clip_on=False)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.bar(centers[filled], counts, width=0.8 / len(bins), color=MODEL)
    for place, count in zip(centers[filled], counts, strict=True):
        lower.text(place, count, f"{count:,.0f}", ha="center", va="bottom", fontsize=8)
    lower.set(ylim=(0, 1.3 * counts.max()), xlabel="confidence", ylabel="images", yticks=[])
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter("{x:.0%}")
    upper.yaxis.set_major_formatter("{x:.0%}")
    upper.tick_params(labelbottom=False)
    return _svg(figure, "Accuracy against confidence, and the number of images by confidence")


def _svg(figure: Figure, label: str) -> str:
    """An ``svg`` element for the inside of a page, in the page's colors and letters."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    # The view box remains, by which the drawing takes the width that the page gives it.
    opening = re.search(r'viewBox="[^"]+"', text)
    assert opening is not None
    body = text[text.index(">", opening.end()) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]+"', "<g", body)
    body = re.sub(r"font-family: [^;\"]+;? ?", "", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return f'<svg role="img" aria-label="{label}" {opening[0]}>{body.rstrip()}'


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    names, confusion = evaluation.classes, evaluation.confusion
    labeled = len(names) <= LABELED_CLASSES
    named = len(names) <= NAMED_COLUMNS or all(len(name) <= 3 for name in names)
    block = -(-len(names) // HEAT_MAP_DOTS)  # classes, each way, that one dot of the picture stands for
    return {
        "classes": len(names),
        "named": named,
        "numbered": len(names) <= NUMBERED_CLASSES,
        "columns": list(names) if named else [str(i + 1) for i in range(len(names))],
        "rows": _confusion_rows(evaluation) if labeled else [],
        "picture": "" if labeled else _heat_map(_row_shares(confusion), block),
        "block": block,
        "pairs": _confused_pairs(evaluation, 8 if labeled else 12),
    }


def _row_shares(confusion: np.ndarray) -> np.ndarray:
    shares: np.ndarray = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return shares


def _confusion_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    # The root lets one mistake in a hundred be seen.
    shades = np.sqrt(_row_shares(evaluation.confusion))
    return [
        {
            "name": name,
            "cells": [
                {"count": int(count), "shade": f"{shade:.3f}", "deep": shade > 0.6, "hit": row == column}
                for column, (count, shade) in enumerate(zip(evaluation.confusion[row], shades[row], strict=True))
            ],
        }
        for row, name in enumerate(evaluation.classes)
    ]


def _heat_map(shares: np.ndarray, block: int) -> str:
    """(K, K) shares of each row -> a picture, transparent where there is nothing; a dot is the largest of block x block."""
    side = -(-len(shares) // block)
    hits = np.diag(np.diag(shares))
    padded = np.zeros((2, side * block, side * block))
    padded[:, : len(shares), : len(shares)] = shares - hits, hits
    misses, hits = padded.reshape(2, side, block, side, block).max(axis=(2, 4))
    diagonal = np.eye(side, dtype=bool)
    pixels = np.empty((side, side, 4), np.uint8)
    pixels[..., :3] = np.where(diagonal[..., None], MODEL_RGB, WRONG_RGB)
    pixels[..., 3] = np.rint(255 * np.sqrt(np.where(diagonal, hits, misses)))
    scale = max(HEAT_MAP_SIDE // side, 1)
    return _data_uri(Image.fromarray(pixels).resize((side * scale, side * scale), Image.Resampling.NEAREST), "PNG")


def _confused_pairs(evaluation: Evaluation, most: int) -> list[dict[str, Any]]:
    confusion, names = evaluation.confusion, evaluation.classes
    mistakes = confusion - np.diag(np.diag(confusion))
    pairs = []
    order = np.lexsort((-_row_shares(confusion).ravel(), -mistakes.ravel()))  # by images, then by share of the class
    for place in order[:most]:
        row, column = divmod(int(place), len(names))
        if count := int(mistakes[row, column]):
            total = int(confusion[row].sum())
            pairs.append({"truth": names[row], "answer": names[column], "count": count, "total": total})
    return pairs


def _class_rows(evaluation: Evaluation) -> dict[str, Any]:
    """Classes that have images, worst first; of many classes the worst alone."""
    totals = evaluation.confusion.sum(axis=1)
    hits = np.diag(evaluation.confusion)
    filled = np.flatnonzero(totals)
    order = filled[np.argsort(hits[filled] / totals[filled], kind="stable")]
    shown = order if len(evaluation.classes) <= LABELED_CLASSES else order[:WORST_CLASSES]
    rows = [{"name": evaluation.classes[i], "right": int(hits[i]), "total": int(totals[i])} for i in shown]
    return {
        "rows": rows,
        "longest": max(len(row["name"]) for row in rows),
        "all": len(shown) == len(order),
        "empty": len(totals) - len(filled),
    }


def _samples(data: ReportData) -> dict[str, Any]:
    probabilities = data.evaluation.probabilities
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = (probabilities.argmax(axis=1) == data.evaluation.labels)[order]
    wrong_order, right_order = order[~right], order[right]
    spread = np.linspace(0, len(right_order) - 1, min(SAMPLES, len(right_order)))
    return {
        "wrong_total": len(wrong_order),
        "wrong": _cards(data, wrong_order[:SAMPLES]),
        "right": _cards(data, right_order[np.rint(spread).astype(np.int64)]),
    }


def _cards(data: ReportData, places: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    evaluation, cards = data.evaluation, []
    for place in places:
        index, probabilities = int(evaluation.indices[place]), evaluation.probabilities[place]
        try:
            image = data.source.load(index)
        except ImageError:
            continue  # readable when it was classified and gone since: the figures stand without its picture
        cards.append(
            {
                "picture": _picture(image),
                "file": data.source.name(index),
                "truth": evaluation.classes[int(evaluation.labels[place])],
                "answer": evaluation.classes[int(probabilities.argmax())],
                "confidence": float(probabilities.max()),
            }
        )
    return cards


def _picture(image: Image.Image) -> str:
    longer = max(image.size)
    pixels = longer <= PIXEL_IMAGE_SIDE
    scale = SAMPLE_SIDE // longer if pixels else min(SAMPLE_SIDE / longer, 1)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    method = Image.Resampling.NEAREST if pixels else Image.Resampling.LANCZOS
    return _data_uri(image.resize(size, method), "PNG" if pixels else "JPEG")


def _data_uri(image: Image.Image, kind: str) -> str:
    image.info.clear()  # comments and profiles of the file, which would be saved along
    file = io.BytesIO()
    image.save(file, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
