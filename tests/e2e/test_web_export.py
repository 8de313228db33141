"""`deit export --to web`: a folder whose page classifies images in Chromium as the model does, without a server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from deit.export.browser import serve
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.e2e.conftest import Deit
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("golden retriever", "кошка", "鳥 <b>")
EXPORT = ("export", "a model", "--to", "web", "--calibrate", "photos")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name that contains a model and photos of several formats."""
    root = tmp_path_factory.mktemp("my work") / "a folder"
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(root / "a model")
    DeiTImageProcessor.for_size(32, 32).save_pretrained(root / "a model")
    (root / "photos").mkdir()
    for number in range(60):
        ending = ("png", "jpg", "webp", "tif")[number % 4]
        pattern(50 + number, 60, seed=number).save(root / "photos" / f"{number}.{ending}", quality=95)
    return root


@pytest.fixture(scope="module")
def folder(deit: Deit, work: Path, browser: Browser) -> Path:  # noqa: ARG001  # skipped where there is no browser
    """An export of the model."""
    if shutil.which("npm") is None and not os.environ.get("CI"):
        pytest.skip("there is no npm: install Node.js")
    done = deit(*EXPORT, "--out", "my pages/a page", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "same prediction" in done.stdout and "Size: graph" in done.stdout
    assert done.stdout.splitlines()[-1] == "Page: my pages/a page"
    return work / "my pages" / "a page"


@pytest.fixture
def page(folder: Path, browser: Browser) -> Iterator[Page]:
    """The page. Errors of its scripts, and requests to other addresses, fail the test."""
    with serve(folder, lambda _: b"") as address:
        problems: list[str] = []
        opened = browser.new_page()
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        allowed = (address, "blob:", "data:")
        opened.on("request", lambda request: None if request.url.startswith(allowed) else problems.append(request.url))
        opened.goto(address)
        expect(opened.locator("#model-facts")).not_to_be_empty()
        yield opened
        opened.close()
    assert not problems


def test_report_has_agreement_sizes_and_times(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["agreement"] >= 0.98
    assert report["failed"] == 0
    assert report["compared_on"] == f"{report['images']} held-out images of photos"
    assert report["browser"].startswith("Chromium ")
    assert report["milliseconds"]["preprocessing"] > 0 and report["milliseconds"]["model"] > 0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "report.json")
    parts = report["bytes"]
    assert parts["graph"] + parts["runtime"] + parts["page"] == parts["total"] == size
    assert size < 5 * 2**20
    assert "Copyright (c) Microsoft" in (folder / "onnxruntime" / "LICENSE.txt").read_text(encoding="utf-8")
    assert str(folder.parents[1]) not in json.dumps(report)  # it is published


def test_images_of_the_user_are_classified_as_by_the_model(deit: Deit, work: Path, page: Page) -> None:
    images = sorted((work / "photos").glob("*.png"))
    done = deit("predict", "a model", *images, "--json", "--top", "1", cwd=work)
    assert done.returncode == 0, done.stderr
    expected = [row["predictions"][0]["label"] for row in json.loads(done.stdout)]
    page.set_input_files("#files", images)
    expect(page.locator("#status")).to_have_text(f"{len(images)} of {len(images)} images classified")
    rows = page.locator("tbody tr")
    labels = {
        rows.nth(row).locator("td").nth(0).inner_text(): rows.nth(row).locator("td").nth(1).inner_text() for row in range(15)
    }
    assert sum(labels[image.name] == label for image, label in zip(images, expected, strict=True)) >= len(images) - 1
    expect(page.locator("#note")).to_contain_text("images stay on this machine")
    expect(page.locator("#model-facts")).to_contain_text("3 classes, 32")
    expect(page.locator("#heads h3")).to_have_count(3)
    expect(page.locator("canvas")).to_have_count(0)


def test_file_that_is_not_an_image_is_an_error_on_the_page(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "notes.png")
    expect(page.get_by_role("alert")).to_have_text("notes.png: This browser cannot read the file as an image")


def test_model_that_pads_is_exported(deit: Deit, work: Path, folder: Path) -> None:  # noqa: ARG001  # has downloaded the runtime
    done = deit(*EXPORT, "--crop", "pad", "--precision", "int8", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agreement"] >= 0.98
    description = json.loads((work / "exports" / "a model-web" / "model.json").read_text(encoding="utf-8"))
    assert description["input"]["dtype"] == "float32"


def test_mistakes_are_one_sentence(deit: Deit, work: Path, folder: Path) -> None:
    for arguments, message in (
        ((*EXPORT, "--precision", "fp32"), "A web export is in int8, not in fp32: leave --precision out."),
        (EXPORT[:4], "needs images to calibrate on: pass --calibrate DATA."),
        ((*EXPORT, "--out", folder), "already exists: choose another destination, or pass --overwrite."),
        ((*EXPORT, "--out", "photos", "--overwrite"), "contains other files than a web export: choose another destination."),
    ):
        done = deit(*arguments, cwd=work)
        assert done.returncode == 2, arguments
        assert message in done.stderr and "Traceback" not in done.stderr
    assert len(list((work / "photos").iterdir())) == 60
