"""The system's Chromium, which Playwright drives without a window."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Returns the path of the program; None if it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launch_chromium(playwright: Playwright, executable: str) -> Browser:
    """Starts the browser. Its sandbox does not work for root, such as in a container.

    Args:
        playwright: drives it.
        executable: path of the program.
    """
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return playwright.chromium.launch(executable_path=executable, chromium_sandbox=not is_root)
