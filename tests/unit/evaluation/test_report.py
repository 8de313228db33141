"""The report shows the metrics of the evaluation, loads nothing from outside, and works for any data."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from deit.data.image_hashes import SeenImages
from deit.data.sources import ArraySource
from deit.errors import ImageError, MissingExtraError
from deit.evaluation.explanation import Explanation, HeadExplanation
from deit.evaluation.metrics import Evaluation, HeadMetrics, Scores, calibration_bins, calibration_error
from deit.evaluation.report import TIMES, ReportData, write_report
from deit.models.losses import Distillation

VOID_TAGS = {"meta", "link", "img"}
CHARTS = 4  # loss, accuracy, learning rate, calibration


@dataclass(frozen=True)
class Photos:
    """Uniform images of one size, each with its own gray value."""

    classes: tuple[str, ...]
    labels: np.ndarray
    size: tuple[int, int] = (20, 10)
    broken: frozenset[int] = frozenset()

    def load(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError("gone")
        return Image.new("RGB", self.size, (index % 256,) * 3)

    def name(self, index: int) -> str:
        return f"photo {index}"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def find(self, tag: str, css_class: str = "") -> list[Element]:
        """Returns the elements with a tag, and with a CSS class if one is given, in document order."""
        matches = self.tag == tag and (not css_class or css_class in (self.attributes.get("class") or "").split())
        return [*([self] if matches else []), *(found for child in self.children for found in child.find(tag, css_class))]

    def all(self) -> list[Element]:
        return [self, *(found for child in self.children for found in child.all())]


class Page(HTMLParser):
    """Element tree of a page; the text of an element includes that of its descendants."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open = [Element("root", {})]
        self.root = self.open[0]
        self.feed(content)
        assert len(self.open) == 1, f"<{self.open[-1].tag}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID_TAGS:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def section(self, title: str) -> Element:
        return next(section for section in self.root.find("section") if section.find("h2")[0].text == title)


def make_evaluation(
    labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str], confidence: Sequence[float] | None = None
) -> Evaluation:
    """Returns an evaluation in which image i has the given label, prediction and confidence (0.9)."""
    truth = np.asarray(labels)
    highest = np.full(len(truth), 0.9) if confidence is None else np.asarray(confidence)
    correct = truth == np.asarray(predictions)
    scores = Scores(truth, np.asarray(predictions), highest.astype(np.float32), np.zeros(len(truth)), correct)
    main = HeadMetrics(float(correct.mean()), 0.98766, 0.43214, calibration_error(scores.confidence, correct))
    heads = {"class": HeadMetrics(0.61236, 0.71234, 0.81236, 0.09124), "both": main}
    return Evaluation(tuple(classes), heads, scores, np.arange(len(truth)), 0, 1.0)


def history(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 30 / epoch,
            "label_loss": 2 / epoch,
            "lr": 1e-3 / epoch,
            "seconds": 30.0,
            "images_per_second": 500.0,
            "validation": {"top1": 1 - 0.5 / epoch, "loss": 1.5 / epoch},
        }
        for epoch in range(1, epochs + 1)
    ]


def report_data(evaluation: Evaluation, **changes: Any) -> ReportData:
    source = Photos(evaluation.classes, evaluation.labels)
    fields: dict[str, Any] = {
        "facts": {"Model": "deit"},
        "history": history(3),
        "split": "test",
        "teacher": None,
        "source": source,
        "distillation": Distillation(),
        "label_loss": "cross-entropy",
    }
    return ReportData(title="animals", evaluation=evaluation, **(fields | changes))


def three_classes(**changes: Any) -> ReportData:
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    predictions = [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    return report_data(make_evaluation(labels, predictions, ("cat", "dog", "fox")), **changes)


def random_predictions(num_classes: int, images: int) -> ReportData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, images)
    predictions = np.where(rng.random(images) < 0.6, labels, rng.integers(0, num_classes, images))
    confidence = rng.uniform(0.5, 1, images)
    names = [f"class {i}" for i in range(num_classes)]
    return report_data(make_evaluation(labels.tolist(), predictions.tolist(), names, confidence.tolist()))


def report_html(path: Path, data: ReportData) -> str:
    write_report(path / "report.html", data)
    return (path / "report.html").read_text("utf-8")


def report_page(path: Path, data: ReportData) -> Page:
    return Page(report_html(path, data))


def rows(table: Element) -> list[list[str]]:
    return [[cell.text.strip() for cell in row.find("th") + row.find("td")] for row in table.find("tbody")[0].find("tr")]


def decoded(image: Element) -> Image.Image:
    media_type, content = (image.attributes["src"] or "").split(";base64,")
    assert media_type in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_metrics_are_those_of_the_evaluation(tmp_path: Path) -> None:
    teacher = make_evaluation([0, 1, 2, 0], [0, 1, 2, 1], ("cat", "dog", "fox"))
    page = report_page(tmp_path, three_classes(teacher=teacher))
    header = page.root.find("header")[0].text
    assert "70.00%" in header
    assert "top-1 on 10 test images" in header
    assert "7 of 10 predictions are correct" in header
    assert rows(page.root.find("table", "heads")[0]) == [
        ["teacher", "75.00%", "98.77%", "0.4321", f"{teacher.main.calibration_error:.2%}"],
        ["class head", "61.24%", "71.23%", "0.8124", "9.12%"],
        ["both headsprediction", "70.00%", "98.77%", "0.4321", "20.00%"],
    ]


def test_order_of_the_sections(tmp_path: Path) -> None:
    titles = [title.text for title in report_page(tmp_path, three_classes()).root.find("h2")]
    assert titles == ["Heads", "Training", "Confusion matrix", "Calibration", "Accuracy by class", "Samples", "Run details"]


def test_agreement_of_heads_and_teacher(tmp_path: Path) -> None:
    data = three_classes()
    predictions = data.evaluation.predictions
    other = np.where(np.arange(10) < 3, (predictions + 1) % 3, predictions)
    evaluation = replace(data.evaluation, head_predictions={"class": predictions, "distillation": other, "both": predictions})
    teacher = make_evaluation(data.evaluation.labels.tolist(), predictions.tolist(), ("cat", "dog", "fox"))
    section = report_page(tmp_path, report_data(evaluation, teacher=teacher)).section("Agreement")
    found = rows(section.find("table")[0])
    assert [row[:2] for row in found] == [
        ["all agree", "7"],
        ["class head differs", "0"],
        ["distillation head differs", "3"],
        ["teacher differs", "0"],
        ["all differ", "0"],
    ]
    assert found[2][2:] == ["66.7%", "0.0%", "66.7%"]
    cards = section.find("ul", "cards")[0].find("li")
    assert len(cards) == 3
    assert [line.text.split() for line in cards[0].find("span", "line")] == [
        ["class", "head", "cat"],
        ["distillation", "head", "dog"],
        ["teacher", "cat"],
        ["is", "cat"],
    ]


def test_explanations_show_a_map_per_head(tmp_path: Path) -> None:
    relevance = np.linspace(0, 1, 16).reshape(4, 4)
    heads = tuple(
        HeadExplanation(head, ("dog", "cat"), (0.75, 0.25), "dog", relevance if head == "class" else relevance.T)
        for head in ("class", "distillation")
    )
    pixels = np.full((32, 32, 3), 100, np.uint8)
    explanation = Explanation("photo 7", pixels, "gradient", "dog", heads, (0.1, 0.9), ())
    section = report_page(tmp_path, three_classes(explanations=[(explanation, "fox")])).section("Where the model looks")
    panels = section.find("ul", "maps")[0].find("li")
    assert [[line.text.strip() for line in panel.find("span", "line")] for panel in panels] == [
        ["dog", "is fox"],
        ["class head", "dog 75.0%"],
        ["distillation head", "dog 75.0%"],
    ]
    image, first, second = (np.asarray(decoded(panel.find("img")[0]).convert("RGB"), int) for panel in panels)
    assert (image == 100).all()
    assert np.abs(first - second.transpose(1, 0, 2)).max() <= 1
    yellow, blue = first[-1, -1], first[0, 0]
    assert yellow[0] > yellow[2] and blue[2] > blue[0]


@pytest.mark.parametrize(("split", "optimistic"), [("test", False), ("validation", True)])
def test_header_names_the_split(tmp_path: Path, split: str, optimistic: bool) -> None:
    header = report_page(tmp_path, three_classes(split=split)).root.find("header")[0].text
    assert f"on 10 {split} images" in header
    assert ("slightly optimistic" in header) == optimistic
    assert ("used neither for training" in header) != optimistic


def test_skipped_images_are_reported(tmp_path: Path) -> None:
    data = three_classes()
    data = replace(data, evaluation=replace(data.evaluation, skipped=3))
    assert "3 unreadable images were left out" in report_page(tmp_path, data).root.text


@pytest.mark.parametrize(
    ("seen", "teacher_seen", "expected"),
    [
        (SeenImages(2, 0, 0), SeenImages(0, 0, 0), "2 test images left out: the model was trained on the same files."),
        (SeenImages(0, 9, 0), None, "The model was trained on 9 of these images."),
        (SeenImages(0, 0, 3), SeenImages(0, 4, 0), "The teacher was trained on 4 of these images: its accuracy is optimistic."),
    ],
)
def test_images_that_training_saw_are_reported(
    tmp_path: Path, seen: SeenImages, teacher_seen: SeenImages | None, expected: str
) -> None:
    data = three_classes()
    evaluation, teacher = replace(data.evaluation, seen=seen), replace(data.evaluation, seen=teacher_seen)
    header = report_page(tmp_path, replace(data, evaluation=evaluation, teacher=teacher)).root.find("header")[0].text
    assert expected in header
    assert header.count("trained on") == 1


def test_confidence_interval_is_wilsons(tmp_path: Path) -> None:
    # (0.8 + 0.192) / 1.384 = 0.717, give or take 1.96 / 1.384 * (0.016 + 0.0096) ** 0.5 = 0.227.
    data = report_data(make_evaluation([0] * 10, [0] * 8 + [1] * 2, ("a", "b")))
    assert "49.0% to 94.3%" in report_page(tmp_path, data).root.find("header")[0].text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onclick='alert(1)"])
def test_class_names_are_escaped(tmp_path: Path, name: str) -> None:
    plain = three_classes()
    names = (name, "dog", "fox")
    data = replace(
        plain,
        title=name,
        facts={name: name},
        evaluation=replace(plain.evaluation, classes=names, heads={name: plain.evaluation.main}),
    )
    page = report_page(tmp_path, data)
    assert not page.root.find("script")
    assert not [element for element in page.root.all() if any(key.startswith("on") for key in element.attributes)]
    tags = [element.tag for element in page.root.all()]
    images = [tag for tag in tags if tag == "img"]
    assert len(images) == len([1 for tag in report_page(tmp_path, plain).root.all() if tag.tag == "img"])
    for title in ("Heads", "Confusion matrix", "Accuracy by class", "Samples", "Run details"):
        assert name in page.section(title).text
    assert page.root.find("h1")[0].text == name


def test_class_names_of_any_script_are_shown(tmp_path: Path) -> None:
    names = ("猫", "كلب", "🦊 a$b$ $\\frac{$")
    data = report_data(make_evaluation([0, 1, 2, 0], [0, 1, 2, 1], names))
    page = report_page(tmp_path, data)
    for title in ("Confusion matrix", "Accuracy by class", "Samples"):
        assert all(name in page.section(title).text for name in names)
    assert not any(name in svg.text for name in names for svg in page.root.find("svg"))


def test_class_name_that_is_not_valid_text(tmp_path: Path) -> None:
    assert "caf?" in report_html(tmp_path, report_data(make_evaluation([0, 1], [0, 1], ("caf\udce9", "tea"))))


@pytest.mark.parametrize("classes", [3, 50])
def test_nothing_is_loaded_from_the_network(tmp_path: Path, classes: int) -> None:
    content = report_html(tmp_path, random_predictions(classes, 100))
    page = Page(content)
    for element in page.root.all():
        for key, value in element.attributes.items():
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert (value or "").startswith(("data:", "#")), f"<{element.tag} {key}={value!r}>"
    assert not re.search(r"https?:", content)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*[\"']?([^)]*)", content))
    assert "@import" not in content
    policy = [meta.attributes["content"] for meta in page.root.find("meta") if "http-equiv" in meta.attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_charts_use_the_colors_of_the_page(tmp_path: Path) -> None:
    content = report_html(tmp_path, three_classes())
    charts = re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL)
    assert len(charts) == CHARTS
    for variable, indices in {"--train": [0], "--model": [0, 1, 2, 3], "--wrong": [3]}.items():
        assert [i for i, chart in enumerate(charts) if f"var({variable})" in chart] == indices
    assert not re.search("#0[1-5]0[1-5]0[1-5]", content)
    for variable in set(re.findall(r"var\((--[a-z]+)\)", "".join(charts))):
        assert len(re.findall(f"{variable}: #", content)) == 2  # a light and a dark value
    assert all("font-family" not in chart and "<metadata" not in chart for chart in charts)


def test_training_facts_are_those_of_the_log(tmp_path: Path) -> None:
    facts = report_page(tmp_path, three_classes()).section("Training").find("dd")
    assert [fact.text for fact in facts] == ["3", "1 min 30 s", "500 images/s", "3 (83.33% top-1)"]


def test_training_loss_is_the_label_loss(tmp_path: Path) -> None:
    section = report_page(tmp_path, three_classes()).section("Training")
    ticks = [float(text.text) for text in section.find("svg")[0].find("text") if re.fullmatch(r"[\d.]+", text.text)]
    assert max(ticks) < 4  # the objective starts at 30
    assert "cross-entropies with the labels" in section.text
    assert "training objective" not in section.text


def test_other_terms_have_a_chart_of_their_own(tmp_path: Path) -> None:
    log = [{**row, "distillation_loss": 2.0, "feature_loss": 0.5 / row["epoch"]} for row in history(3)]
    data = three_classes(history=log, distillation=Distillation(mode="hard", features=3.0))
    section = report_page(tmp_path, data).section("Training")
    charts = section.find("svg")
    assert len(charts) == 4
    assert {"distillation loss", "feature loss"} <= {text.text for text in charts[1].find("text")}
    objective = f"0.5 {TIMES} label loss + 0.5 {TIMES} distillation loss + 3 {TIMES} feature loss"
    assert f"The training objective is {objective}." in section.text
    assert "most likely class" in section.text
    log = [{**row, "distillation_loss": 2.0} for row in history(3)]
    soft = report_page(tmp_path, three_classes(history=log, distillation=Distillation(mode="soft", features=3.0)))
    objective = f"0.9 {TIMES} label loss + 0.1 {TIMES} distillation loss"
    assert f"The training objective is {objective}." in soft.section("Training").text
    assert "KL divergence" in soft.section("Training").text


def test_log_without_label_loss_shows_the_objective(tmp_path: Path) -> None:
    log = history(3)
    for row in log:
        del row["label_loss"], row["validation"]["top1"]
    section = report_page(tmp_path, three_classes(history=log)).section("Training")
    assert section.find("h3")[0].text.startswith("Loss ")
    assert "cross-entropies" not in section.text
    assert "Best epoch" not in section.text


def test_binary_label_loss_is_named(tmp_path: Path) -> None:
    assert (
        "binary cross-entropy per class" in report_page(tmp_path, three_classes(label_loss="binary")).section("Training").text
    )


def test_best_epoch_is_that_of_the_saved_model(tmp_path: Path) -> None:
    log = history(3)
    for row, top1 in zip(log, (0.5, 0.75, 0.74), strict=True):
        row["validation"] = {"top1": top1, "loss": 0.5}
    facts = report_page(tmp_path, three_classes(history=log)).section("Training").find("dd")
    assert facts[-1].text == "2 (75.00% top-1)"


@pytest.mark.parametrize("epochs", [0, 1, 2, 300])
def test_any_number_of_epochs(tmp_path: Path, epochs: int) -> None:
    section = report_page(tmp_path, three_classes(history=history(epochs))).section("Training")
    assert len(section.find("svg")) == (3 if epochs else 0)
    assert ("No epoch was logged" in section.text) == (not epochs)


def test_gaps_in_the_log(tmp_path: Path) -> None:
    log = history(4)
    log[0]["label_loss"], log[1]["lr"], log[3]["validation"] = float("nan"), float("inf"), {"top1": None}
    del log[2]["validation"]
    assert len(report_page(tmp_path, three_classes(history=log)).root.find("svg")) == CHARTS
    assert len(report_page(tmp_path, three_classes(history=[{"epoch": 1}, {"epoch": 2}])).root.find("svg")) == CHARTS


def test_confusion_matrix_shows_the_counts(tmp_path: Path) -> None:
    data = three_classes()
    section = report_page(tmp_path, data).section("Confusion matrix")
    expected = [
        [name, *(str(count or "") for count in counts)]
        for name, counts in zip(data.evaluation.classes, data.evaluation.confusion.to_array().tolist(), strict=True)
    ]
    assert rows(section.find("table", "matrix")[0]) == expected
    assert len(section.find("td", "correct")) == 3
    assert [cell.attributes["title"] for cell in section.find("td", "wrong")] == ["cat → dog: 2", "dog → fox: 1"]
    assert rows(section.find("table", "list")[0]) == [["cat", "dog", "2 of 4"], ["dog", "fox", "1 of 3"]]


def test_cells_are_shaded_by_their_share_of_the_row(tmp_path: Path) -> None:
    section = report_page(tmp_path, three_classes()).section("Confusion matrix")
    shades = [float((cell.attributes["style"] or "").removeprefix("--shade:")) for cell in section.find("td", "correct")]
    assert shades == pytest.approx([0.5**0.5, (2 / 3) ** 0.5, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("classes", "numbered", "table"), [(2, True, True), (20, True, True), (40, False, True), (41, False, False)]
)
def test_form_of_the_confusion_matrix_by_number_of_classes(tmp_path: Path, classes: int, numbered: bool, table: bool) -> None:
    section = report_page(tmp_path, random_predictions(classes, 400)).section("Confusion matrix")
    matrix = section.find("table", "matrix")
    assert bool(matrix) == table
    assert bool(section.find("img")) != table
    if table:
        assert len(matrix[0].find("tr")) == classes + 1
        assert any(cell.text for cell in matrix[0].find("td")) == numbered


def test_thousand_classes(tmp_path: Path) -> None:
    data = random_predictions(1000, 3000)
    path = tmp_path / "report.html"
    write_report(path, data)
    assert path.stat().st_size < 500_000
    page = Page(path.read_text("utf-8"))
    pixels = np.asarray(decoded(page.section("Confusion matrix").find("img")[0]))[::2, ::2]
    assert pixels.shape == (250, 250, 4)
    confusion = data.evaluation.confusion.to_array()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    largest = shares.reshape(250, 4, 250, 4).max(axis=(1, 3))
    off_diagonal = ~np.eye(250, dtype=bool)
    np.testing.assert_array_equal(pixels[..., 3][off_diagonal], np.rint(255 * np.sqrt(largest))[off_diagonal])
    assert len(np.unique(pixels[off_diagonal][:, :3], axis=0)) == len(np.unique(pixels[~off_diagonal][:, :3], axis=0)) == 1
    section = page.section("Accuracy by class")
    assert "The 20 worst of 1,000 classes." in section.text
    listed = rows(section.find("table", "classes")[0])
    per_class, totals = data.evaluation.per_class, data.evaluation.confusion.totals
    assert sorted(row[0] for row in listed) == sorted(per_class)
    assert [row[1] for row in listed] == [f"{share:.1%}" for share in sorted(per_class.values())]
    truth, predicted, _ = data.evaluation.most_confused(1)[0]
    index = data.evaluation.classes.index(truth)
    expected = [truth, f"{per_class[truth]:.1%}", f"{round(per_class[truth] * totals[index])} of {totals[index]}", predicted]
    assert expected in listed


def test_most_confused_classes_come_first(tmp_path: Path) -> None:
    labels, predictions = [0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 0, 2, 1, 0, 0, 2]
    section = report_page(tmp_path, report_data(make_evaluation(labels, predictions, ("cat", "dog", "fox")))).section(
        "Confusion matrix"
    )
    # Of two pairs with one image each, the one of the smaller class comes first.
    expected = [["fox", "cat", "2 of 3"], ["dog", "fox", "1 of 2"], ["cat", "dog", "1 of 3"]]
    assert rows(section.find("table", "list")[0]) == expected


def test_calibration_is_that_of_the_evaluation(tmp_path: Path) -> None:
    data = random_predictions(5, 300)
    section = report_page(tmp_path, data).section("Calibration")
    evaluation = data.evaluation
    confidence = evaluation.confidence.mean()
    expected = [f"{value:.2%}" for value in (evaluation.main.calibration_error, confidence, evaluation.main.top1)]
    assert [fact.text for fact in section.find("dd")] == expected
    counts = calibration_bins(evaluation.confidence, evaluation.scores.correct)[:, 0]
    labels = [label.text for label in section.find("text")]
    assert [f"{count:.0f}" for count in counts if count] == [text for text in labels if text.isdigit()]
    assert "overconfident" in section.text


@pytest.mark.parametrize(("confidence", "verdict"), [(0.6, "underconfident"), (0.999, "confidence and accuracy agree")])
def test_verdict_on_confidence(tmp_path: Path, confidence: float, verdict: str) -> None:
    data = report_data(make_evaluation([0, 1], [0, 1], ("a", "b"), [confidence, confidence]))
    assert verdict in report_page(tmp_path, data).section("Calibration").text


def test_classes_are_listed_worst_first(tmp_path: Path) -> None:
    section = report_page(tmp_path, three_classes()).section("Accuracy by class")
    listed = [[element.text for element in item.find("bdi") + item.find("span", "figure")] for item in section.find("li")]
    assert listed == [["cat", "50.0%", "2 of 4"], ["dog", "66.7%", "2 of 3"], ["fox", "100.0%", "3 of 3"]]
    assert [bar.attributes["style"] for bar in section.find("i")] == ["width:50.00%", "width:66.67%", "width:100.00%"]


@pytest.mark.parametrize(("classes", "bars"), [(40, 40), (41, 20)])
def test_only_the_worst_of_many_classes_are_listed(tmp_path: Path, classes: int, bars: int) -> None:
    data = random_predictions(classes, 2000)
    items = report_page(tmp_path, data).section("Accuracy by class").find("li")
    assert len(items) == bars
    per_class = sorted(data.evaluation.per_class.items(), key=lambda pair: pair[1])
    assert [item.find("bdi")[0].text for item in items] == [name for name, _ in per_class[:bars]]


def test_classes_without_images_are_counted(tmp_path: Path) -> None:
    data = report_data(make_evaluation([0, 0], [0, 1], ("a", "b", "c")))
    section = report_page(tmp_path, data).section("Accuracy by class")
    assert len(section.find("li")) == 1
    assert "2 classes have no test images" in section.text


def test_samples(tmp_path: Path) -> None:
    labels = [0] * 60
    predictions = [1] * 20 + [0] * 40
    confidence = [0.6 + 0.01 * i for i in range(20)] + [0.55 + 0.01 * i for i in range(40)]
    data = report_data(make_evaluation(labels, predictions, ("cat", "dog"), confidence))
    wrong, correct = report_page(tmp_path, data).section("Samples").find("ul")
    assert [image.attributes["alt"] for image in wrong.find("img")] == [f"photo {i}" for i in range(19, 7, -1)]
    first = wrong.find("li")[0]
    assert [element.text for element in first.find("bdi") + first.find("span", "figure")] == ["dog", "cat", "79.0%"]
    spread = [int((image.attributes["alt"] or "").split()[1]) for image in correct.find("img")]
    assert len(spread) == 12
    assert (spread[0], spread[-1]) == (59, 20)  # from most to least confident
    assert spread == sorted(set(spread), reverse=True)
    assert decoded(wrong.find("img")[0]).convert("L").getpixel((0, 0)) == 19


@pytest.mark.parametrize(
    ("predictions", "missing"), [([0, 1, 1], "No prediction is wrong."), ([1, 0, 0], "No prediction is correct.")]
)
def test_samples_may_be_all_correct_or_all_wrong(tmp_path: Path, predictions: list[int], missing: str) -> None:
    section = report_page(tmp_path, report_data(make_evaluation([0, 1, 1], predictions, ("a", "b")))).section("Samples")
    assert missing in section.text
    assert len(section.find("ul")) == 1
    assert len(section.find("img")) == 3


def test_sample_that_became_unreadable_is_left_out(tmp_path: Path) -> None:
    data = three_classes()
    source = Photos(data.evaluation.classes, data.evaluation.labels, broken=frozenset({0, 2}))
    section = report_page(tmp_path, replace(data, source=source)).section("Samples")
    samples = {image.attributes["alt"] for image in section.find("img")}
    assert samples == {f"photo {i}" for i in range(10)} - {"photo 0", "photo 2"}


@pytest.mark.parametrize(
    ("size", "expected", "image_format"),
    [
        ((8, 8), (160, 160), "PNG"),
        ((32, 16), (160, 80), "PNG"),
        ((65, 20), (65, 20), "JPEG"),
        ((640, 480), (160, 120), "JPEG"),
        ((2, 900), (1, 160), "JPEG"),
    ],
)
def test_size_of_a_sample(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int], image_format: str) -> None:
    data = three_classes()
    source = Photos(data.evaluation.classes, data.evaluation.labels, size=size)
    image = decoded(report_page(tmp_path, replace(data, source=source)).section("Samples").find("img")[0])
    assert (image.size, image.format) == (expected, image_format)


def test_small_images_are_enlarged_without_interpolation(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    evaluation = make_evaluation([0, 1], [0, 1], ("0", "1"), [0.9, 0.8])
    source = ArraySource(pixels, evaluation.classes, evaluation.labels, "digit")
    images = report_page(tmp_path, report_data(evaluation, source=source)).section("Samples").find("img")
    for image, digit in zip(images, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded(image).convert("L")), digit.repeat(20, 0).repeat(20, 1))


def test_sample_has_no_metadata(tmp_path: Path) -> None:
    class Commented(Photos):
        def load(self, index: int) -> Image.Image:
            image = super().load(index)
            image.info["comment"] = b"taken at home"
            return image

    data = three_classes()
    source = Commented(data.evaluation.classes, data.evaluation.labels, size=(200, 100))
    for image in report_page(tmp_path, replace(data, source=source)).section("Samples").find("img"):
        assert "comment" not in decoded(image).info


def test_report_is_deterministic_and_ignores_the_users_style(tmp_path: Path) -> None:
    data = three_classes()
    first = report_html(tmp_path, data)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "text.usetex": True, "axes.facecolor": "red"}):
        assert report_html(tmp_path, data) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert matplotlib.rcParams["svg.hashsalt"] is None


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"The report needs an optional library: pip install 'deit\[report\]'"):
        write_report(tmp_path / "report.html", three_classes())
    assert not list(tmp_path.iterdir())


def test_module_is_importable_without_the_libraries() -> None:
    program = "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; import deit.evaluation.report"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
