"""Runs the page of a web export in Chromium, by Playwright, on images that a loopback server offers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deit.errors import UserError, WorkError
from deit.system.chromium import find_chromium, launch_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

T = TypeVar("T")

IMAGE_FOLDER = "/images-to-compare/"
TIMEOUT_SECONDS = 120  # for one image; the first waits for the model
# Nothing but the files of the folder is loaded, and nothing is sent anywhere. WebAssembly is compiled.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'"
)

_PREDICT = """async ([address, seconds]) => {
  const late = new Promise((_, reject) => setTimeout(reject, 1000 * seconds, new Error(`no prediction after ${seconds} s`)));
  const predict = async () => {
    const backend = await import(new URL("page/backend.js", document.baseURI));
    return backend.predict(await (await fetch(address)).blob(), { top: 1 });
  };
  return Promise.race([predict(), late]).catch((error) => ({ problem: error.message }));
}"""


@dataclass(frozen=True)
class BrowserPrediction:
    """What the page predicts for an image.

    Attributes:
        label: the most likely class; None if the image failed.
        preprocessing_ms: milliseconds to decode, resize and crop the image.
        model_ms: milliseconds to run the model.
        problem: why the image failed; empty if it did not.
    """

    label: str | None
    preprocessing_ms: float = 0.0
    model_ms: float = 0.0
    problem: str = ""

    @classmethod
    def from_result(cls, result: dict[str, Any]) -> BrowserPrediction:
        """Reads what the page returns."""
        if "problem" in result:
            return cls(None, problem=result["problem"])
        steps = result["steps"]
        return cls(result["predictions"][0]["label"], steps["preprocessing"], steps["model"])


def chromium_path() -> str:
    """Returns the path of the system's Chromium.

    Raises:
        UserError: it is not installed.
    """
    executable = find_chromium()
    if executable is None:
        raise UserError("A web export is checked in Chromium, which is not installed", "install Chromium or Google Chrome")
    return executable


@contextmanager
def open_page(executable: str, address: str) -> Iterator[Page]:
    """Opens a page in Chromium without a window.

    Raises:
        WorkError: Chromium does not start, cannot load the page, or ends before it is closed.
    """
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = launch_chromium(playwright, executable)
        except Error as error:
            raise WorkError(f"{executable} does not start ({_first_line(error)})", "check that it runs by itself") from error
        with browser:
            try:
                page = browser.new_page()
                page.goto(address)
                yield page
            except Error as error:
                raise WorkError(
                    f"{executable} cannot run the page ({_first_line(error)})", "try again, or update it"
                ) from error


def outside_event_loop(function: Callable[[], T]) -> T:
    """Calls a function, in a thread of its own if this one runs an event loop, which Playwright refuses: that of a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def predict(page: Page, number: int) -> BrowserPrediction:
    """Classifies an image of :func:`serve` by the open page."""
    return BrowserPrediction.from_result(page.evaluate(_PREDICT, [f"{IMAGE_FOLDER}{number}", TIMEOUT_SECONDS]))


@contextmanager
def serve(folder: Path, image: Callable[[int], bytes]) -> Iterator[str]:
    """Serves a folder, and images by number, to programs of this machine.

    Args:
        folder: what is served.
        image: returns the content of an image file.

    Yields:
        The address of the folder.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder), image=image))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Serves files and images under the policy that the page has wherever it is hosted."""

    def __init__(self, *arguments: Any, image: Callable[[int], bytes], **options: Any) -> None:
        self._image = image  # before the request is handled, which the base class does when it is created
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if not self.path.startswith(IMAGE_FOLDER):
            super().do_GET()
            return
        content = self._image(int(self.path.removeprefix(IMAGE_FOLDER)))
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
