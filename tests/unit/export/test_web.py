"""Export to the web: the page prepares images as the image processor does, and is written only if it predicts as the model."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, Page

from deit.data.sources import ArraySource, FileSource, subset
from deit.errors import MissingExtraError, UserError, WorkError
from deit.export import web
from deit.export.browser import BrowserPrediction, outside_event_loop, serve
from deit.export.web import PAGE_FILES, browser_file, compare, export_web, preprocessing_settings
from deit.images.decoding import open_image
from deit.images.processor import DeiTImageProcessor, ViTImageProcessor
from deit.inference import optional_libraries
from tests.helpers import pattern

PAGE_FOLDER = Path(web.__file__).parents[1] / "page"
FILTERS = range(6)  # that an image processor takes
SIDES = st.integers(1, 60)
RIGHT = BrowserPrediction("a", 2.0, 3.0)

# Bytes pass between Python and the page in base64, which is many times faster than lists of numbers.
_BYTES = """const decoded = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const encoded = (parts) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1]);
    reader.readAsDataURL(new Blob(parts));
  });"""
_PREPROCESS = f"""async ([planes, height, width, settings]) => {{
  {_BYTES}
  const {{ preprocess }} = await import("/preprocessing.js");
  return encoded([preprocess({{ planes: planes.map(decoded), height, width }}, settings)]);
}}"""
_DECODE = f"""async (file) => {{
  {_BYTES}
  const {{ decode }} = await import("/decoding.js");
  const {{ planes, height, width }} = await decode(new Blob([decoded(file)]));
  return [height, width, await encoded(planes)];
}}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A page that can import the modules of the package."""
    with serve(PAGE_FOLDER, lambda _: b"") as address:
        opened = browser.new_page()
        opened.goto(f"{address}map.js")  # any document of the same origin
        yield opened
        opened.close()


@st.composite
def processors(draw: st.DrawFn) -> DeiTImageProcessor:
    """Draws image processors of all kinds of sizes, crops and filters."""
    side, resample = draw(st.integers(4, 24)), draw(st.sampled_from(FILTERS))
    kinds: list[DeiTImageProcessor] = [
        *(DeiTImageProcessor.for_size(side, side, crop=crop) for crop in ("keep", "squash", "pad")),
        DeiTImageProcessor.for_size(side, side + draw(st.integers(1, 9))),
        DeiTImageProcessor(size={"shortest_edge": side, "longest_edge": side + 7}, crop_size=draw(SIDES)),
        DeiTImageProcessor(do_resize=False, crop_size=side),
        ViTImageProcessor(size=side),
    ]
    return draw(st.sampled_from(kinds)).replace(resample=resample)


@given(processors(), SIDES, SIDES, st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=200)
def test_preprocessing_equals_the_image_processor(
    page: Page, processor: DeiTImageProcessor, height: int, width: int, seed: int, extreme: bool, normalizes: bool
) -> None:
    """Also of black and white pixels, where filters overshoot."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels = values // 128 * 255 if extreme else values
    normalizes = normalizes or processor.do_pad
    planes = [_base64(pixels[..., channel].tobytes()) for channel in range(3)]
    actual = page.evaluate(_PREPROCESS, [planes, height, width, preprocessing_settings(processor, normalizes)])
    prepared = processor.pixels(Image.fromarray(pixels))
    expected = processor.normalize(prepared) if normalizes else np.moveaxis(prepared, -1, 0)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(actual), expected.dtype), expected.ravel())


def _decoded(page: Page, file: bytes) -> np.ndarray:
    height, width, planes = page.evaluate(_DECODE, _base64(file))
    return np.moveaxis(np.frombuffer(base64.b64decode(planes), np.uint8).reshape(3, height, width), 0, -1)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
TRANSPARENT = pattern(40, 39).convert("RGBA")
TRANSPARENT.putalpha(Image.linear_gradient("L").resize(TRANSPARENT.size))
FILES = {
    "png": (_encoded(pattern(61, 47), format="PNG"), 0),
    "wide": (_encoded(pattern(2000, 1100), format="PNG"), 0),  # read in several strips
    "gray": (_encoded(pattern(61, 47).convert("L"), format="PNG"), 0),
    "palette": (_encoded(pattern(17, 5).quantize(16), format="PNG", transparency=3), 0),
    "turned": (_encoded(pattern(33, 71), format="PNG", exif=ROTATED.tobytes()), 0),
    "webp": (_encoded(pattern(61, 47), format="WEBP", lossless=True), 0),
    "transparent": (_encoded(TRANSPARENT, format="PNG"), 1),
    "jpeg": (_encoded(pattern(61, 47), format="JPEG", quality=95, subsampling=0), 2),
}


@pytest.mark.parametrize("name", FILES)
def test_decoding_is_that_of_the_package(page: Page, name: str) -> None:
    file, tolerance = FILES[name]
    np.testing.assert_allclose(
        _decoded(page, file).astype(int), np.asarray(open_image(file)).astype(int), rtol=0, atol=tolerance
    )


def test_file_that_is_not_an_image_is_an_error(page: Page) -> None:
    with pytest.raises(Exception, match="This browser cannot read the file as an image"):
        _decoded(page, b"not an image")


def test_page_has_all_files_that_it_loads() -> None:
    for name in PAGE_FILES:
        assert (PAGE_FOLDER / name).is_file()
    assert web.CHARSET in (PAGE_FOLDER / web.PAGE_NAME).read_text(encoding="utf-8")


# The comparison


def test_comparison_reports_median_times() -> None:
    predictions = [RIGHT] * 97 + [BrowserPrediction("a", 10.0, 20.0)] * 2 + [BrowserPrediction("b", 2.0, 3.0)]
    report = compare(predictions, ["a"] * 100, "Chromium 1")
    assert report == {
        "browser": "Chromium 1",
        "images": 100,
        "agreement": 0.99,
        "failed": 0,
        "milliseconds": {"preprocessing": 2.0, "model": 3.0, "total": 5.0},
    }


def test_images_that_fail_count_as_different() -> None:
    failed = BrowserPrediction.from_result({"problem": "out of memory"})
    assert compare([RIGHT] * 49 + [failed], ["a"] * 50, "Chromium 1")["failed"] == 1
    with pytest.raises(WorkError, match=r"agrees .* 96.0% of 50 images \(2 failed, the first with: out of memory\)"):
        compare([RIGHT] * 48 + [failed] * 2, ["a"] * 50, "Chromium 1")


def test_page_receives_files_that_browsers_read_and_pixels_of_others(tmp_path: Path) -> None:
    names = ("a.jpg", "b.png", "c.webp", "d.avif", "e.tif", "f.ppm")
    for name in names:
        pattern(20, 30).save(tmp_path / name)
    source = FileSource(tmp_path, names, ("x",), np.zeros(len(names), np.int64))
    for index, name in enumerate(names):
        content = browser_file(subset(source, [index]), 0)
        assert (content == (tmp_path / name).read_bytes()) == (index < 4), name
        np.testing.assert_array_equal(np.asarray(open_image(content)), np.asarray(source.load(index)))
    arrays = ArraySource(np.full((1, 8, 8), 7, np.uint8), ("x",), np.zeros(1, np.int64), "digit")
    assert np.asarray(open_image(browser_file(arrays, 0))).tolist() == [[[7] * 3] * 8] * 8


def test_event_loop_of_the_caller_is_avoided(browser: Browser) -> None:
    """Playwright's own loop, which runs for the browser of the tests, stands for that of a notebook."""

    async def hello() -> str:
        return "hello"

    assert browser.is_connected() and asyncio.get_running_loop()
    assert outside_event_loop(lambda: asyncio.run(hello())) == "hello"


def test_failed_comparison_writes_nothing(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in web.ONNXRUNTIME.files:
        (tmp_path / Path(name).name).write_bytes(b"a file of ONNX Runtime")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(web, "package_files", lambda _: tmp_path)
    monkeypatch.setattr(web, "check_available", lambda _: None)
    monkeypatch.setattr(web, "chromium_path", lambda: "chromium")

    def predict_one_class(draft: Path, *_: object) -> tuple[str, list[BrowserPrediction]]:
        files = {path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()}
        assert files == web.FILES - {web.REPORT_NAME}
        nodes = onnx.load(draft / web.GRAPH_NAME).graph.node
        assert not any(node.doc_string or node.metadata_props for node in nodes)
        return "Chromium 1", [RIGHT] * 8

    monkeypatch.setattr(web, "_predict_in_browser", predict_one_class)
    with pytest.raises(WorkError, match=r"the limit is 98%: nothing was written"):
        export_web(model, tmp_path / "a page", calibrate=photos)
    assert sorted(tmp_path.iterdir()) == before


# Mistakes


def test_mistakes_are_errors_before_the_model_is_loaded(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "load_classifier", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr(web, "package_files", lambda _: pytest.fail("the package was downloaded"))
    out = tmp_path / "a page"
    with pytest.raises(UserError, match="int8, which needs images to calibrate on: pass --calibrate DATA"):
        export_web(model, out, calibrate=None)
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="already exists"):
        export_web(model, tmp_path, calibrate=photos)
    with pytest.raises(UserError, match="contains other files than a web export"):
        export_web(model, tmp_path, calibrate=photos, overwrite=True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"npm is not installed, .*: install Node.js"):
        export_web(model, out, calibrate=photos)
    monkeypatch.setattr(web, "check_available", lambda _: None)
    with pytest.raises(UserError, match="Chromium, which is not installed: install Chromium"):
        export_web(model, out, calibrate=photos)
    monkeypatch.setattr(optional_libraries, "version", lambda name: None if name == "playwright" else "1.0")
    with pytest.raises(MissingExtraError, match=r"pip install 'deit\[web\]'"):
        export_web(model, out, calibrate=photos)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
