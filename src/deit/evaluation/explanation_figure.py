"""Draws explanations: the image, the map of each token over it, and how alike the two tokens are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deit.errors import MissingExtraError
from deit.evaluation.explanation import TOKENS, Explanation, HeadExplanation
from deit.system.replacing import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "viridis"  # legible with all kinds of color vision, and in gray
OPACITY = 0.65  # of the map over the image
PANEL = 2.6  # inches, of the longer side of an image
DPI = 120
METHOD_NAMES = {
    "gradient": "attention of all layers, heads weighted by the gradient",
    "rollout": "attention rollout",
    "attention": "attention of the last layer",
}


def check_drawing() -> None:
    """Checks that figures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("Drawing explanations", "report")


def overlay(explanation: Explanation, relevance: np.ndarray) -> Image.Image:
    """Returns the image in gray with a map in color over it.

    Args:
        explanation: whose image is shown.
        relevance: (h, w), in 0..1.
    """
    from matplotlib import colormaps

    height, width = explanation.pixels.shape[:2]
    smooth = Image.fromarray(relevance.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    colors = colormaps[COLORS](np.asarray(smooth))[..., :3] * 255  # (height, width, 3)
    gray = explanation.pixels.mean(axis=2, keepdims=True)
    return Image.fromarray(np.rint(OPACITY * colors + (1 - OPACITY) * gray).astype(np.uint8))


def write_explanation(path: Path, explanation: Explanation) -> None:
    """Writes a figure: the image, a map per head, and the similarity of the tokens if there are two.

    Args:
        path: a PNG, SVG or PDF file.
        explanation: what is drawn.
    """
    columns = 1 + len(explanation.heads) + bool(explanation.similarity)
    figure, panels = _figure(1, columns, explanation.pixels.shape[:2], extra=0.9)
    _show_image(panels[0][0], explanation, f"the image\nprediction: {_short(explanation.label)}")
    maps = panels[0][1 : 1 + len(explanation.heads)]
    for axes, head in zip(maps, explanation.heads, strict=True):
        colors = _show_map(axes, explanation, head.relevance, _head_title(head))
    if explanation.similarity:
        _show_similarity(panels[0][-1], explanation.similarity)
    bar = figure.colorbar(colors, ax=maps, shrink=0.7, pad=0.02)
    bar.set_label("relevance, largest = 1", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    agree = "both heads agree" if explanation.heads_agree else "the heads disagree"
    heads = f"; {agree}" if len(explanation.heads) > 1 else ""
    figure.suptitle(f"{_short(Path(explanation.image).name, 60)}: {METHOD_NAMES[explanation.method]}{heads}", fontsize=9)
    figure.savefig(path, dpi=DPI)


def write_attention(path: Path, explanation: Explanation, token: str = TOKENS[0]) -> None:
    """Writes a figure of the attention weights of a token to the patches: a row per layer, a column per head.

    Args:
        path: a PNG, SVG or PDF file.
        explanation: what is drawn.
        token: ``class`` or ``distillation``.
    """
    index, layers = TOKENS.index(token), explanation.attention
    figure, panels = _figure(len(layers), max(len(layer) for layer in layers), explanation.pixels.shape[:2], side=1.1)
    for number, (row, layer) in enumerate(zip(panels, layers, strict=True), 1):
        for axes, head in zip(row[: len(layer)], layer, strict=True):  # fewer, if some are pruned
            axes.imshow(head[index], cmap=COLORS)
        row[0].set_ylabel(f"layer {number}", fontsize=7)
    caption = "a column per head; colors from the smallest to the largest weight"
    figure.suptitle(f"{_short(Path(explanation.image).name, 60)}: attention of the {token} token\n{caption}", fontsize=7)
    figure.savefig(path, dpi=DPI)


def _figure(
    rows: int, columns: int, size: tuple[int, ...], side: float = PANEL, extra: float = 0.4
) -> tuple[Figure, list[list[Axes]]]:
    """Creates a figure with panels of the shape of an image, without ticks."""
    from matplotlib.figure import Figure

    height, width = (side * length / max(size) for length in size[:2])
    figure = Figure(figsize=(columns * width + 0.9, rows * height + extra), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, [list(row) for row in panels]


def _show_image(axes: Axes, explanation: Explanation, title: str) -> None:
    axes.imshow(explanation.pixels)
    axes.set_title(title, fontsize=8)


def _show_map(axes: Axes, explanation: Explanation, relevance: np.ndarray, title: str) -> Any:
    """Shows a map over the image in gray, so that its colors are those of the map."""
    height, width = explanation.pixels.shape[:2]
    axes.imshow(explanation.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    colors = axes.imshow(
        relevance,
        cmap=COLORS,
        vmin=0,
        vmax=1,
        alpha=OPACITY,
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    axes.set_title(title, fontsize=8)
    return colors


def _show_similarity(axes: Axes, similarity: tuple[float, ...]) -> None:
    axes.plot(range(len(similarity)), similarity, color="#2f6fd0", marker="o", markersize=3, linewidth=1.5)
    axes.set_xticks([0, len(similarity) - 1])
    axes.set_yticks([-1, 0, 1])
    axes.tick_params(labelsize=7)
    axes.set_ylim(-1.05, 1.05)
    axes.axhline(0, color="#999999", linewidth=0.6)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_title("cosine of class and\ndistillation token", fontsize=8)


def _head_title(head: HeadExplanation) -> str:
    guess = f"{_short(head.labels[0])} {head.probabilities[0]:.0%}"
    return f"{head.head} token: {guess}\nexplained: {_short(head.target)}"


def _short(text: str, limit: int = 24) -> str:
    """Returns text that fits into a title, with "?" for letters that the font lacks, and without formulas of matplotlib."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    shown = "".join(letter if letter.isprintable() and font.get_char_index(ord(letter)) else "?" for letter in text)
    return (shown if len(shown) <= limit else f"{shown[: limit - 3]}...").replace("$", r"\$")


def figure_name(number: int, image: str) -> str:
    """Returns a file name for the figure of an image: unique by its number, and readable."""
    stem = "".join(letter if letter.isalnum() or letter in "-_ ." else "_" for letter in Path(image).stem)
    return f"{number:04d}-{shortened(stem)}.png"
