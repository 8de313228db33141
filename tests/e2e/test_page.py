"""The page of `deit serve` in headless Chromium: images in, predictions and maps out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.http_load import ServerProgram
from playwright.sync_api import Browser, Page, expect

from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.system.files import BEST_NAME, RUN_NAME
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("circle red", "квадрат", "三角")
KNOWN = re.compile("|".join(CLASSES))
TOKEN = "s3cret"
NARROW = {"width": 360, "height": 740}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run directory with a model and the path of its data."""
    path = tmp_path_factory.mktemp("runs") / "a student"
    config = tiny_deit(num_labels=len(CLASSES), id2label=dict(enumerate(CLASSES)))
    randomized(DeiTForImageClassificationWithTeacher(config), 0).save_pretrained(path / BEST_NAME)
    (path / RUN_NAME).write_text(json.dumps({"data": str(photos)}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[ServerProgram]:
    with ServerProgram(run) as program:
        yield program


@pytest.fixture
def open_page(browser: Browser, server: ServerProgram) -> Iterator[Open]:
    """Returns a function that opens the page. Errors of its scripts, and requests to other addresses, fail the test."""
    contexts, problems = [], []

    def check_address(url: str) -> None:
        if not url.startswith((server.url, "blob:", "data:")):
            problems.append(f"request of {url}")

    def create(url: str = server.url, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        if url == server.url:
            page.on("request", lambda request: check_address(request.url))
        page.goto(url)
        return page

    yield create
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three images of different sizes, and a file that is not an image."""
    paths = []
    for number, size in enumerate([(50, 40), (300, 200), (64, 64)]):
        paths.append(tmp_path / f"photo {number}.png")
        pattern(*size).save(paths[-1])
    paths.append(tmp_path / "notes, 1.png")
    paths[-1].write_text("not an image", encoding="utf-8")
    return paths


def test_upload_shows_classes_heads_and_maps(open_page: Open, files: list[Path]) -> None:
    page = open_page()
    expect(page.locator("#model-facts")).to_contain_text("3 classes")
    page.set_input_files("#files", files[0])
    expect(page.locator("#label")).to_have_text(KNOWN)
    expect(page.locator("#facts")).to_contain_text("photo 0.png")
    expect(page.locator("#facts")).to_contain_text(" ms")
    assert page.locator("#heads h3").all_inner_texts() == ["Both heads, averaged", "Distillation head", "Class head"]
    assert page.locator("#heads li").count() == 3 * len(CLASSES)
    expect(page.locator("#panels canvas")).to_have_count(2)
    captions = page.locator("#panels figcaption").all_inner_texts()
    assert captions[1].startswith("class token: ")
    assert captions[2].startswith("distillation token: ")


def test_slider_shows_the_attention_of_a_layer(open_page: Open, files: list[Path]) -> None:
    page = open_page()
    page.set_input_files("#files", files[1])
    slider = page.get_by_role("slider", name="Layer")
    name = page.locator("#layer-name")
    expect(name).to_contain_text("weighted by the gradient")
    pictures = [_map_of(page, "All ")]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    layers = int(slider.get_attribute("max") or 0)
    expect(name).to_have_text(f"Layer {layers} of {layers}: attention, mean of its heads")
    pictures.append(_map_of(page, f"Layer {layers} "))
    page.keyboard.press("ArrowRight")
    pictures.append(_map_of(page, "All "))
    assert pictures[0] == pictures[2] != pictures[1]


def test_many_images_and_one_that_is_not(open_page: Open, files: list[Path]) -> None:
    page = open_page()
    page.set_input_files("#files", files)
    expect(page.locator("#status")).to_have_text("4 of 4 images classified")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(3).locator("td.error")).to_contain_text("not an image")
    rows.nth(3).get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("notes, 1.png: ")
    expect(page.locator("#result")).to_be_hidden()
    rows.nth(1).get_by_role("button").click()
    expect(page.locator("#facts")).to_contain_text("photo 1.png")
    expect(page.get_by_role("alert")).to_have_text("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    header, *lines = csv.reader(io.StringIO(text))
    assert header == ["image", "label", "probability", "error"]
    assert [line[0] for line in lines] == [path.name for path in files]
    assert all(line[1] in CLASSES and 0 < float(line[2]) <= 1 and not line[3] for line in lines[:3])
    assert lines[3][1:3] == ["", ""]
    page.get_by_role("button", name="Clear").click()
    expect(rows).to_have_count(0)


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_paste_and_drop(open_page: Open, files: list[Path], way: str) -> None:
    page = open_page()
    expect(page.locator("#model-facts")).to_contain_text("3 classes")
    page.evaluate(
        """([bytes, way]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
          const event = way === "paste"
            ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
            : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
          document.body.dispatchEvent(event);
        }""",
        [list(files[0].read_bytes()), way],
    )
    expect(page.locator("#facts")).to_contain_text("pasted.png")
    expect(page.locator("#label")).to_have_text(KNOWN)


def test_keyboard_opens_the_file_chooser(open_page: Open, files: list[Path]) -> None:
    page = open_page()
    # Chromium may handle a key before an earlier request to report choosers. The checks below wait for what was requested here.
    page.on("filechooser", lambda _: None)
    expect(page.locator("#model-facts")).to_contain_text("3 classes")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(files[0])
    expect(page.locator("#label")).to_have_text(KNOWN)


def test_examples_from_the_models_data(open_page: Open) -> None:
    page = open_page()
    examples = page.locator("#gallery button")
    expect(examples).to_have_count(len(CLASSES))
    assert examples.all_inner_texts() == list(CLASSES)
    examples.nth(2).click()
    expect(page.locator("#label")).to_have_text(KNOWN)
    expect(page.locator("#panels canvas")).to_have_count(2)


def test_narrow_screen(open_page: Open, files: list[Path]) -> None:
    page = open_page(viewport=NARROW, has_touch=True, is_mobile=True)
    page.set_input_files("#files", files)
    expect(page.locator("#panels canvas")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    sides = page.evaluate("[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().height).filter(h => h)")
    assert min(sides) >= 32


def test_dark_mode(open_page: Open) -> None:
    grounds = {
        scheme: open_page(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert grounds["light"] != grounds["dark"]


def test_everything_has_a_name(open_page: Open, files: list[Path]) -> None:
    """A screen reader can name each control and each picture."""
    page = open_page()
    page.set_input_files("#files", files[:2])
    expect(page.locator("#panels canvas")).to_have_count(2)
    for role in ("button", "slider", "img"):
        found = page.get_by_role(role)
        for index in range(found.count()):
            expect(found.nth(index)).to_have_accessible_name(re.compile("."))


def test_token(run: Path, open_page: Open, files: list[Path]) -> None:
    with ServerProgram(run, environment={**os.environ, "DEIT_TOKEN": TOKEN}) as program:
        page = open_page(program.url)
        field = page.get_by_label("This server asks for a token")
        for token, message in (("wrong", "The bearer token is missing or wrong"), (TOKEN, "")):
            field.fill(token)
            page.get_by_role("button", name="Use it").click()
            expect(page.get_by_role("alert")).to_have_text(message)
        expect(field).to_be_hidden()
        page.set_input_files("#files", files[0])
        expect(page.locator("#label")).to_have_text(KNOWN)
        page.context.close()


def test_description_of_the_interface(open_page: Open, server: ServerProgram) -> None:
    page = open_page()
    page.goto(f"{server.url}/docs")
    predict = page.locator("section", has_text="POST /v1/predict")
    expect(predict).to_contain_text("multipart/form-data")
    expect(predict.get_by_role("row", name="top_k")).to_contain_text("query, integer, 5 by default")
    predict.get_by_text("Responses").click()
    expect(predict).to_contain_text("429: Too Many Requests")
    expect(page.locator("section", has_text="POST /v2/models/{name}/infer")).to_have_count(1)


def test_server_that_has_stopped(run: Path, open_page: Open, files: list[Path]) -> None:
    with ServerProgram(run) as program:
        page = open_page(program.url)
        expect(page.locator("#model-facts")).to_contain_text("3 classes")
        program.stop()
        page.set_input_files("#files", files[0])
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def _map_of(page: Page, name: str) -> str:
    """Returns the pixels of the class token's map, once it is the one of a name."""
    canvas = page.locator("#panels canvas").first
    expect(canvas).to_have_accessible_name(re.compile(name))
    return str(canvas.evaluate("canvas => canvas.toDataURL()"))
