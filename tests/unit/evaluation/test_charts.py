"""Charts are SVG elements in the page's colors, with a gap at each missing value."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib import style

from deit.evaluation.charts import (
    MODEL,
    STYLE,
    TRAIN,
    VARIABLES,
    accuracy_chart,
    calibration_chart,
    curve_chart,
    stacked_chart,
)

EPOCHS = np.arange(1.0, 4.0)
VALUES = np.array([0.9, 0.5, 0.7])


@pytest.fixture(autouse=True)
def report_style() -> Iterator[None]:
    with style.context(STYLE, after_reset=True):
        yield


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def markers(svg: str) -> int:
    return svg.count("<use ")


def test_chart_has_no_fixed_color_font_or_size() -> None:
    svg = curve_chart("a chart", EPOCHS, (VALUES, TRAIN), (VALUES, MODEL))
    assert svg.startswith('<svg role="img" aria-label="a chart" viewBox="') and svg.endswith("</svg>")
    assert "var(--train)" in svg and "var(--model)" in svg
    for word in (*VARIABLES, "font-family", "<metadata", "<style"):
        assert word not in svg
    assert curve_chart("a chart", EPOCHS, (VALUES, TRAIN), (VALUES, MODEL)) == svg


def test_missing_values_leave_gaps() -> None:
    complete = curve_chart("", EPOCHS, (VALUES, MODEL))
    assert markers(complete) == markers(curve_chart("", EPOCHS, (np.array([0.9, np.nan, 0.7]), MODEL))) + 1
    assert curve_chart("", EPOCHS, (np.full(3, np.nan), MODEL)).endswith("</svg>")


def test_losses_start_at_zero_unless_one_is_negative() -> None:
    assert "0" in texts(curve_chart("", EPOCHS, (VALUES + 5, MODEL)))
    assert any(text.startswith("\N{MINUS SIGN}") for text in texts(curve_chart("", EPOCHS, (VALUES - 5, MODEL))))


def test_stacked_panels_have_their_names_and_scales() -> None:
    svg = stacked_chart("", EPOCHS, {"distillation loss": VALUES, "feature loss": 100 * VALUES}, TRAIN)
    found = texts(svg)
    assert {"distillation loss", "feature loss"} <= set(found)
    assert found.count("epoch") == 1 and found.count("0") == 2
    ticks = [float(text) for text in found if re.fullmatch(r"[\d.]+", text)]
    assert max(ticks) >= 50 and any(0 < tick < 1 for tick in ticks)
    assert texts(stacked_chart("", EPOCHS, {"feature loss": VALUES}, TRAIN)).count("0") == 1


def test_accuracy_is_in_percent_with_the_best_epoch_marked() -> None:
    svg = accuracy_chart("", EPOCHS, VALUES, 2)
    assert all(text.endswith("%") or text == "epoch" or text in "123" for text in texts(svg))
    assert markers(svg) == markers(accuracy_chart("", EPOCHS, VALUES, None)) + 1
    assert markers(accuracy_chart("", EPOCHS, np.array([0.9, 0.5, np.nan]), 2)) == markers(svg) - 2


def test_calibration_chart_counts_images() -> None:
    bins = np.zeros((15, 3))
    bins[8], bins[14] = (3, 0.55, 1.0), (1200, 0.96, 0.9)
    found = texts(calibration_chart(bins))
    assert {"3", "1,200", "accuracy", "confidence", "images"} <= set(found)
