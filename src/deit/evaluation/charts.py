"""Charts of the report: matplotlib figures as SVG elements that take the colors and the font of the page.

Charts contain numbers and fixed labels only. Class names stay in the HTML, where they are escaped and where the browser has
glyphs that matplotlib's font lacks.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED_EPOCHS = 12  # up to this number of epochs, each one has a marker on its curve

# Charts are drawn in placeholder colors that no other element uses. Each is then replaced by a variable of the page's style
# sheet, so that one drawing serves light and dark screens.
GRID, MUTED, TRAIN, MODEL, WRONG = "#010101", "#020202", "#030303", "#040404", "#050505"
RUN_COLORS = (MODEL, TRAIN, WRONG, MUTED)  # of the curves of several runs, in turn
VARIABLES = {GRID: "--line", MUTED: "--muted", TRAIN: "--train", MODEL: "--model", WRONG: "--wrong"}

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


def curve_chart(label: str, epochs: np.ndarray, *curves: tuple[np.ndarray, str]) -> str:
    """Draws curves over epochs on one scale, which starts at zero unless a value is negative.

    Args:
        label: description of the chart for screen readers.
        epochs: (n,).
        curves: values (n,) and color of each curve; NaN leaves a gap. Curves in ``TRAIN`` are dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 230 / 72))
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.79))
    for values, color in curves:
        _plot(axes, epochs, values, color)
    _set_loss_scale(axes, *(values for values, _ in curves))
    _set_epoch_axis(axes, epochs)
    return to_svg(figure, label)


def stacked_chart(label: str, epochs: np.ndarray, curves: dict[str, np.ndarray], color: str) -> str:
    """Draws one panel per curve, each with its own scale and its name above it.

    Args:
        label: description of the chart for screen readers.
        epochs: (n,).
        curves: name -> values (n,); NaN leaves a gap.
        color: of all curves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 230 / 72))
    height = 0.79 / len(curves)
    for panel, (name, values) in enumerate(curves.items()):
        bottom = 0.17 + (len(curves) - 1 - panel) * height
        axes = figure.add_axes((0.13, bottom, 0.85, height - 0.1))
        _plot(axes, epochs, values, color)
        _set_loss_scale(axes, values, ticks=6 // len(curves))
        _set_epoch_axis(axes, epochs)
        axes.set_title(name, loc="left", fontsize=10)
        if panel < len(curves) - 1:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    return to_svg(figure, label)


def accuracy_chart(label: str, epochs: np.ndarray, values: np.ndarray, best: int | None) -> str:
    """Draws accuracies over epochs, in percent, with a larger marker on the best epoch.

    Args:
        label: description of the chart for screen readers.
        epochs: (n,).
        values: (n,), in 0..1; NaN leaves a gap.
        best: index of the best epoch; None if there is none.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(400 / 72, 230 / 72))
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.79))
    _plot(axes, epochs, values, MODEL)
    if best is not None and np.isfinite(values[best]):
        axes.plot(epochs[best], values[best], "o", color=MODEL, markersize=7, clip_on=False)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    _set_epoch_axis(axes, epochs)
    return to_svg(figure, label)


def curves_chart(label: str, curves: Sequence[tuple[np.ndarray, np.ndarray]], is_share: bool) -> str:
    """Draws the curves of several runs, each with its number, counted from 1, at its end.

    Args:
        label: description of the chart for screen readers.
        curves: epochs (n,) and values (n,) of each run; NaN leaves a gap.
        is_share: values are shares, shown in percent; otherwise losses, on a scale from zero.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 260 / 72))
    axes = figure.add_axes((0.13, 0.15, 0.8, 0.81))
    drawn = [epochs[np.isfinite(values)] for epochs, values in curves if np.isfinite(values).any()]
    for number, (epochs, values) in enumerate(curves, 1):
        finite = np.flatnonzero(np.isfinite(values))
        if not len(finite):
            continue
        color = RUN_COLORS[(number - 1) % len(RUN_COLORS)]
        _plot(axes, epochs, values, color)
        last = finite[-1]
        axes.annotate(f"{number}", (epochs[last], values[last]), (6, 0), textcoords="offset points", color=color, va="center")
    if is_share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    else:
        _set_loss_scale(axes, *(values for _, values in curves))
    _set_epoch_axis(axes, np.unique(np.concatenate(drawn)))
    return to_svg(figure, label)


def calibration_chart(bins: np.ndarray) -> str:
    """Draws a reliability diagram above a histogram of the confidence.

    Args:
        bins: (b, 3), see :func:`deit.evaluation.metrics.calibration_bins`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 340 / 72))
    upper = figure.add_axes((0.13, 0.38, 0.84, 0.6))
    lower = figure.add_axes((0.13, 0.13, 0.84, 0.2), sharex=upper)
    centers = (np.arange(len(bins)) + 0.5) / len(bins)
    filled = bins[:, 0] > 0
    counts, confidence, accuracy = bins[filled].T
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    upper.vlines(confidence, confidence, accuracy, color=WRONG, linewidth=2)
    # The area of a dot grows with its number of images, so that a bin of two images does not stand out.
    upper.scatter(confidence, accuracy, s=20 + 130 * counts / counts.max(), color=MODEL, linewidths=0, zorder=3, clip_on=False)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.bar(centers[filled], counts, width=0.8 / len(bins), color=MODEL)
    for center, count in zip(centers[filled], counts, strict=True):
        lower.text(center, count, f"{count:,.0f}", ha="center", va="bottom", fontsize=8)
    lower.set(ylim=(0, 1.3 * counts.max()), xlabel="confidence", ylabel="images", yticks=[])
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter("{x:.0%}")
    upper.yaxis.set_major_formatter("{x:.0%}")
    upper.tick_params(labelbottom=False)
    return to_svg(figure, "Accuracy against confidence, and the number of images by confidence")


def accuracy_histogram(accuracies: np.ndarray) -> str:
    """Draws how many classes have which accuracy, in ten bins.

    Args:
        accuracies: (n,), in 0..1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(400 / 72, 170 / 72))
    axes = figure.add_axes((0.13, 0.24, 0.84, 0.72))
    counts, edges = np.histogram(accuracies, bins=10, range=(0, 1))
    centers = (edges[1:] + edges[:-1]) / 2
    axes.bar(centers, counts, width=0.08, color=MODEL)
    for center, count in zip(centers[counts > 0], counts[counts > 0], strict=True):
        axes.text(center, count, f"{count:,}", ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, 1.15 * counts.max()), xlabel="accuracy", ylabel="classes", yticks=[])
    axes.xaxis.set_major_formatter("{x:.0%}")
    return to_svg(figure, "Number of classes by accuracy")


def to_svg(figure: Figure, label: str) -> str:
    """Returns a figure as an ``svg`` element to embed in a page.

    Args:
        figure: drawn in the placeholder colors.
        label: description for screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    # Without width and height but with a view box, the chart takes the width that the page gives it.
    view_box = re.search(r'viewBox="[^"]+"', text)
    assert view_box is not None
    body = text[text.index(">", view_box.end()) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]+"', "<g", body)
    body = re.sub(r"font-family: [^;\"]+;? ?", "", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return f'<svg role="img" aria-label="{label}" {view_box[0]}>{body.rstrip()}'


def _plot(axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str) -> None:
    dashes = (0, (4, 1.5)) if color == TRAIN else "solid"
    marker = "o" if len(epochs) <= MARKED_EPOCHS else ""
    axes.plot(epochs, values, color=color, linestyle=dashes, marker=marker, markersize=4, clip_on=False)


def _set_loss_scale(axes: Axes, *curves: np.ndarray, ticks: int = 6) -> None:
    from matplotlib.ticker import MaxNLocator

    if not any((values < 0).any() for values in curves):
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks))
    axes.yaxis.set_major_formatter("{x:g}")


def _set_epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + max(0.02 * len(epochs), 0.5))  # no tick at epoch 0
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
