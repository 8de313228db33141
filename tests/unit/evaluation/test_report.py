"""The report: its figures are the evaluation's, it needs nothing from outside, and no data makes it fail."""

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

from deit.data.sources import ArraySource
from deit.errors import ImageError, MissingExtraError
from deit.evaluation.evaluate import Evaluation, HeadMetrics, calibration_bins, calibration_error
from deit.evaluation.report import ReportData, write_report

VOID = {"meta", "link", "img"}
CHARTS = 4  # loss, accuracy, learning rate, calibration


@dataclass(frozen=True)
class Photos:
    """Plain images of one size, each of its own gray."""

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

    def find(self, tag: str, kind: str = "") -> list[Element]:
        """Elements of a tag, and of a class where one is given, in the page's order."""
        own = self.tag == tag and (not kind or kind in (self.attributes.get("class") or "").split())
        return [*([self] if own else []), *(found for child in self.children for found in child.find(tag, kind))]

    def all(self) -> list[Element]:
        return [self, *(found for child in self.children for found in child.all())]


class Page(HTMLParser):
    """A page's tree; an element's text is that of all below it."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open = [Element("root", {})]
        self.root = self.open[0]
        self.feed(content)
        assert len(self.open) == 1, f"<{self.open[-1].tag}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def section(self, title: str) -> Element:
        return next(part for part in self.root.find("section") if part.find("h2")[0].text == title)


def evaluated(
    labels: Sequence[int], answers: Sequence[int], classes: Sequence[str], confidence: Sequence[float] | None = None
) -> Evaluation:
    """An evaluation in which image i has the label and the answer given, with the confidence given (0.9)."""
    count, truth = len(classes), np.asarray(labels)
    sure = np.full(len(truth), 0.9) if confidence is None else np.asarray(confidence)
    probabilities = np.repeat(((1 - sure) / (count - 1))[:, None], count, axis=1).astype(np.float32)
    probabilities[np.arange(len(truth)), answers] = sure
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (truth, np.asarray(answers)), 1)
    top1 = float(np.trace(confusion) / len(truth))
    answer = HeadMetrics(top1, 0.98766, 0.43214, calibration_error(probabilities, truth))
    heads = {"class": HeadMetrics(0.61236, 0.71234, 0.81236, 0.09124), "both": answer}
    return Evaluation(tuple(classes), heads, confusion, probabilities, truth, np.arange(len(truth)), 0, 1.0)


def history(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 2 / epoch,
            "lr": 1e-3 / epoch,
            "seconds": 30.0,
            "images_per_second": 500.0,
            "validation": {"top1": 1 - 0.5 / epoch, "loss": 1.5 / epoch},
        }
        for epoch in range(1, epochs + 1)
    ]


def report_data(evaluation: Evaluation, **changes: Any) -> ReportData:
    source = Photos(evaluation.classes, evaluation.labels)
    whole: dict[str, Any] = {"facts": {"Model": "deit"}, "history": history(3), "part": "test", "others": {}, "source": source}
    return ReportData(title="animals", evaluation=evaluation, **(whole | changes))


def three_classes(**changes: Any) -> ReportData:
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    answers = [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    return report_data(evaluated(labels, answers, ("cat", "dog", "fox")), **changes)


def shuffled_classes(count: int, images: int) -> ReportData:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, count, images)
    answers = np.where(draws.random(images) < 0.6, labels, draws.integers(0, count, images))
    confidence = draws.uniform(0.5, 1, images)
    return report_data(evaluated(labels.tolist(), answers.tolist(), [f"class {i}" for i in range(count)], confidence.tolist()))


def written(path: Path, data: ReportData) -> str:
    write_report(path / "report.html", data)
    return (path / "report.html").read_text("utf-8")


def page_of(path: Path, data: ReportData) -> Page:
    return Page(written(path, data))


def rows(table: Element) -> list[list[str]]:
    return [[cell.text.strip() for cell in row.find("th") + row.find("td")] for row in table.find("tbody")[0].find("tr")]


def decoded(image: Element) -> Image.Image:
    kind, content = (image.attributes["src"] or "").split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_figures_are_those_of_the_evaluation(tmp_path: Path) -> None:
    teacher = evaluated([0, 1, 2, 0], [0, 1, 2, 1], ("cat", "dog", "fox"))
    page = page_of(tmp_path, three_classes(others={"teacher": teacher}))
    header = page.root.find("header")[0].text
    assert "70.00%" in header
    assert "top-1 on 10 test images" in header
    assert "7 of 10 answers are right" in header
    assert rows(page.root.find("table", "heads")[0]) == [
        ["teacher", "75.00%", "98.77%", "0.4321", f"{teacher.answer.calibration_error:.2%}"],
        ["class head", "61.24%", "71.23%", "0.8124", "9.12%"],
        ["both headsanswer", "70.00%", "98.77%", "0.4321", "20.00%"],
    ]


def test_the_sections_come_in_order(tmp_path: Path) -> None:
    titles = [title.text for title in page_of(tmp_path, three_classes()).root.find("h2")]
    assert titles == ["Heads", "Training", "Confusion", "Calibration", "Accuracy by class", "Samples", "Facts"]


@pytest.mark.parametrize(("part", "optimistic"), [("test", False), ("validation", True)])
def test_it_says_what_was_measured(tmp_path: Path, part: str, optimistic: bool) -> None:
    header = page_of(tmp_path, three_classes(part=part)).root.find("header")[0].text
    assert f"on 10 {part} images" in header
    assert ("slightly optimistic" in header) == optimistic
    assert ("took no part in training" in header) != optimistic


def test_skipped_images_are_told(tmp_path: Path) -> None:
    data = three_classes()
    data = replace(data, evaluation=replace(data.evaluation, skipped=3))
    assert "3 unreadable images were left out" in page_of(tmp_path, data).root.text


def test_the_interval_is_wilsons(tmp_path: Path) -> None:
    # (0.8 + 0.192) / 1.384 = 0.717, give or take 1.96 / 1.384 * (0.016 + 0.0096) ** 0.5 = 0.227.
    data = report_data(evaluated([0] * 10, [0] * 8 + [1] * 2, ("a", "b")))
    assert "49.0% to 94.3%" in page_of(tmp_path, data).root.find("header")[0].text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onclick='alert(1)"])
def test_class_names_are_text(tmp_path: Path, name: str) -> None:
    plain = three_classes()
    names = (name, "dog", "fox")
    data = replace(
        plain,
        title=name,
        facts={name: name},
        evaluation=replace(plain.evaluation, classes=names, heads={name: plain.evaluation.answer}),
        others={name: plain.evaluation},
    )
    page = page_of(tmp_path, data)
    assert not page.root.find("script")
    assert not [element for element in page.root.all() if any(key.startswith("on") for key in element.attributes)]
    tags = [element.tag for element in page.root.all()]
    images = [tag for tag in tags if tag == "img"]
    assert len(images) == len([1 for tag in page_of(tmp_path, plain).root.all() if tag.tag == "img"])
    for title in ("Heads", "Confusion", "Accuracy by class", "Samples", "Facts"):
        assert name in page.section(title).text
    assert page.root.find("h1")[0].text == name


def test_letters_of_any_script_arrive(tmp_path: Path) -> None:
    names = ("猫", "كلب", "🦊 a$b$ $\\frac{$")
    data = report_data(evaluated([0, 1, 2, 0], [0, 1, 2, 1], names))
    page = page_of(tmp_path, data)
    for title in ("Confusion", "Accuracy by class", "Samples"):
        assert all(name in page.section(title).text for name in names)
    assert not any(name in svg.text for name in names for svg in page.root.find("svg"))


def test_a_name_that_is_no_valid_text_is_written(tmp_path: Path) -> None:
    assert "caf?" in written(tmp_path, report_data(evaluated([0, 1], [0, 1], ("caf\udce9", "tea"))))


@pytest.mark.parametrize("classes", [3, 50])
def test_nothing_is_fetched(tmp_path: Path, classes: int) -> None:
    content = written(tmp_path, shuffled_classes(classes, 100))
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


def test_the_charts_are_there_in_the_colors_of_the_page(tmp_path: Path) -> None:
    content = written(tmp_path, three_classes())
    charts = re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL)
    assert len(charts) == CHARTS
    for variable, places in {"--train": [0], "--model": [0, 1, 2, 3], "--wrong": [3]}.items():
        assert [i for i, chart in enumerate(charts) if f"var({variable})" in chart] == places
    assert not re.search("#0[1-5]0[1-5]0[1-5]", content)
    for variable in set(re.findall(r"var\((--[a-z]+)\)", "".join(charts))):
        assert len(re.findall(f"{variable}: #", content)) == 2  # a light and a dark value
    assert all("font-family" not in chart and "<metadata" not in chart for chart in charts)


def test_the_training_figures_are_those_of_the_log(tmp_path: Path) -> None:
    facts = page_of(tmp_path, three_classes()).section("Training").find("dd")
    assert [fact.text for fact in facts] == ["3", "1 min 30 s", "500 images/s", "83.33%, in epoch 3"]


@pytest.mark.parametrize("epochs", [0, 1, 2, 300])
def test_any_number_of_epochs(tmp_path: Path, epochs: int) -> None:
    section = page_of(tmp_path, three_classes(history=history(epochs))).section("Training")
    assert len(section.find("svg")) == (3 if epochs else 0)
    assert ("No epoch was logged" in section.text) == (not epochs)


def test_gaps_in_the_log(tmp_path: Path) -> None:
    log = history(4)
    log[0]["loss"], log[1]["lr"], log[3]["validation"] = float("nan"), float("inf"), {"top1": None}
    del log[2]["validation"]
    assert len(page_of(tmp_path, three_classes(history=log)).root.find("svg")) == CHARTS
    assert len(page_of(tmp_path, three_classes(history=[{"epoch": 1}, {"epoch": 2}])).root.find("svg")) == CHARTS


def test_the_confusion_matrix_shows_the_counts(tmp_path: Path) -> None:
    data = three_classes()
    section = page_of(tmp_path, data).section("Confusion")
    expected = [
        [name, *(str(count or "") for count in counts)]
        for name, counts in zip(data.evaluation.classes, data.evaluation.confusion.tolist(), strict=True)
    ]
    assert rows(section.find("table", "matrix")[0]) == expected
    assert len(section.find("td", "hit")) == 3
    assert [cell.attributes["title"] for cell in section.find("td", "miss")] == ["cat → dog: 2", "dog → fox: 1"]
    assert rows(section.find("table", "list")[0]) == [["cat", "dog", "2 of 4"], ["dog", "fox", "1 of 3"]]


def test_a_row_is_shaded_by_its_share(tmp_path: Path) -> None:
    section = page_of(tmp_path, three_classes()).section("Confusion")
    shades = [float((cell.attributes["style"] or "").removeprefix("--shade:")) for cell in section.find("td", "hit")]
    assert shades == pytest.approx([0.5**0.5, (2 / 3) ** 0.5, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("classes", "numbered", "table"), [(2, True, True), (20, True, True), (40, False, True), (41, False, False)]
)
def test_the_matrix_stays_legible(tmp_path: Path, classes: int, numbered: bool, table: bool) -> None:
    section = page_of(tmp_path, shuffled_classes(classes, 400)).section("Confusion")
    matrix = section.find("table", "matrix")
    assert bool(matrix) == table
    assert bool(section.find("img")) != table
    if table:
        assert len(matrix[0].find("tr")) == classes + 1
        assert any(cell.text for cell in matrix[0].find("td")) == numbered


def test_a_thousand_classes(tmp_path: Path) -> None:
    data = shuffled_classes(1000, 3000)
    path = tmp_path / "report.html"
    write_report(path, data)
    assert path.stat().st_size < 500_000
    page = Page(path.read_text("utf-8"))
    pixels = np.asarray(decoded(page.section("Confusion").find("img")[0]))[::2, ::2]
    assert pixels.shape == (250, 250, 4)
    shares = data.evaluation.confusion / np.maximum(data.evaluation.confusion.sum(axis=1, keepdims=True), 1)
    largest = shares.reshape(250, 4, 250, 4).max(axis=(1, 3))
    off = ~np.eye(250, dtype=bool)
    np.testing.assert_array_equal(pixels[..., 3][off], np.rint(255 * np.sqrt(largest))[off])
    assert len(np.unique(pixels[off][:, :3], axis=0)) == len(np.unique(pixels[~off][:, :3], axis=0)) == 1
    assert "The 20 worst of 1,000 classes." in page.section("Accuracy by class").text


def test_the_most_confused_come_first(tmp_path: Path) -> None:
    labels, answers = [0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 0, 2, 1, 0, 0, 2]
    section = page_of(tmp_path, report_data(evaluated(labels, answers, ("cat", "dog", "fox")))).section("Confusion")
    # Of two pairs with one image each, the one of the smaller class weighs more.
    expected = [["fox", "cat", "2 of 3"], ["dog", "fox", "1 of 2"], ["cat", "dog", "1 of 3"]]
    assert rows(section.find("table", "list")[0]) == expected


def test_the_calibration_is_that_of_the_evaluation(tmp_path: Path) -> None:
    data = shuffled_classes(5, 300)
    section = page_of(tmp_path, data).section("Calibration")
    evaluation = data.evaluation
    confidence = evaluation.probabilities.max(axis=1).mean()
    figures = [f"{value:.2%}" for value in (evaluation.answer.calibration_error, confidence, evaluation.answer.top1)]
    assert [fact.text for fact in section.find("dd")] == figures
    counts = calibration_bins(evaluation.probabilities, evaluation.labels)[:, 0]
    shown = [label.text for label in section.find("text")]
    assert [f"{count:.0f}" for count in counts if count] == [text for text in shown if text.isdigit()]
    assert "surer than it should be" in section.text


@pytest.mark.parametrize(("sure", "verdict"), [(0.6, "less sure than it could be"), (0.999, "confidence and accuracy agree")])
def test_the_verdict_on_confidence(tmp_path: Path, sure: float, verdict: str) -> None:
    data = report_data(evaluated([0, 1], [0, 1], ("a", "b"), [sure, sure]))
    assert verdict in page_of(tmp_path, data).section("Calibration").text


def test_classes_stand_worst_first(tmp_path: Path) -> None:
    section = page_of(tmp_path, three_classes()).section("Accuracy by class")
    shown = [[part.text for part in item.find("bdi") + item.find("span", "figure")] for item in section.find("li")]
    assert shown == [["cat", "50.0%", "2 of 4"], ["dog", "66.7%", "2 of 3"], ["fox", "100.0%", "3 of 3"]]
    assert [bar.attributes["style"] for bar in section.find("i")] == ["width:50.00%", "width:66.67%", "width:100.00%"]


@pytest.mark.parametrize(("classes", "bars"), [(40, 40), (41, 20)])
def test_the_worst_alone_of_many_classes(tmp_path: Path, classes: int, bars: int) -> None:
    data = shuffled_classes(classes, 2000)
    items = page_of(tmp_path, data).section("Accuracy by class").find("li")
    assert len(items) == bars
    per_class = sorted(data.evaluation.per_class.items(), key=lambda pair: pair[1])
    assert [item.find("bdi")[0].text for item in items] == [name for name, _ in per_class[:bars]]


def test_classes_without_images_are_counted(tmp_path: Path) -> None:
    data = report_data(evaluated([0, 0], [0, 1], ("a", "b", "c")))
    section = page_of(tmp_path, data).section("Accuracy by class")
    assert len(section.find("li")) == 1
    assert "2 classes have no test images" in section.text


def test_the_samples(tmp_path: Path) -> None:
    labels = [0] * 60
    answers = [1] * 20 + [0] * 40
    confidence = [0.6 + 0.01 * i for i in range(20)] + [0.55 + 0.01 * i for i in range(40)]
    data = report_data(evaluated(labels, answers, ("cat", "dog"), confidence))
    wrong, right = page_of(tmp_path, data).section("Samples").find("ul")
    assert [image.attributes["alt"] for image in wrong.find("img")] == [f"photo {i}" for i in range(19, 7, -1)]
    first = wrong.find("li")[0]
    assert [part.text for part in first.find("bdi") + first.find("span", "figure")] == ["dog", "cat", "79.0%"]
    spread = [int((image.attributes["alt"] or "").split()[1]) for image in right.find("img")]
    assert len(spread) == 12
    assert (spread[0], spread[-1]) == (59, 20)  # from the surest to the least sure
    assert spread == sorted(set(spread), reverse=True)
    assert decoded(wrong.find("img")[0]).convert("L").getpixel((0, 0)) == 19


@pytest.mark.parametrize(("answers", "missing"), [([0, 1, 1], "No answer is wrong."), ([1, 0, 0], "No answer is right.")])
def test_one_kind_of_sample_may_be_missing(tmp_path: Path, answers: list[int], missing: str) -> None:
    section = page_of(tmp_path, report_data(evaluated([0, 1, 1], answers, ("a", "b")))).section("Samples")
    assert missing in section.text
    assert len(section.find("ul")) == 1
    assert len(section.find("img")) == 3


def test_an_image_that_is_gone_is_left_out(tmp_path: Path) -> None:
    data = three_classes()
    source = Photos(data.evaluation.classes, data.evaluation.labels, broken=frozenset({0, 2}))
    section = page_of(tmp_path, replace(data, source=source)).section("Samples")
    shown = {image.attributes["alt"] for image in section.find("img")}
    assert shown == {f"photo {i}" for i in range(10)} - {"photo 0", "photo 2"}


@pytest.mark.parametrize(
    ("size", "expected", "kind"),
    [
        ((8, 8), (160, 160), "PNG"),
        ((32, 16), (160, 80), "PNG"),
        ((65, 20), (65, 20), "JPEG"),
        ((640, 480), (160, 120), "JPEG"),
        ((2, 900), (1, 160), "JPEG"),
    ],
)
def test_the_size_of_a_sample(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int], kind: str) -> None:
    data = three_classes()
    source = Photos(data.evaluation.classes, data.evaluation.labels, size=size)
    image = decoded(page_of(tmp_path, replace(data, source=source)).section("Samples").find("img")[0])
    assert (image.size, image.format) == (expected, kind)


def test_pixels_stay_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    evaluation = evaluated([0, 1], [0, 1], ("0", "1"), [0.9, 0.8])
    source = ArraySource(pixels, evaluation.classes, evaluation.labels, "digit")
    images = page_of(tmp_path, report_data(evaluation, source=source)).section("Samples").find("img")
    for image, digit in zip(images, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded(image).convert("L")), digit.repeat(20, 0).repeat(20, 1))


def test_a_sample_carries_nothing_but_its_pixels(tmp_path: Path) -> None:
    class Commented(Photos):
        def load(self, index: int) -> Image.Image:
            image = super().load(index)
            image.info["comment"] = b"taken at home"
            return image

    data = three_classes()
    source = Commented(data.evaluation.classes, data.evaluation.labels, size=(200, 100))
    for image in page_of(tmp_path, replace(data, source=source)).section("Samples").find("img"):
        assert "comment" not in decoded(image).info


def test_equal_data_gives_an_equal_file_whatever_the_users_style(tmp_path: Path) -> None:
    data = three_classes()
    first = written(tmp_path, data)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "text.usetex": True, "axes.facecolor": "red"}):
        assert written(tmp_path, data) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert matplotlib.rcParams["svg.hashsalt"] is None


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"The report needs an optional library: pip install 'deit\[report\]'"):
        write_report(tmp_path / "report.html", three_classes())
    assert not list(tmp_path.iterdir())


def test_the_module_is_imported_without_the_libraries() -> None:
    program = "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; import deit.evaluation.report"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
