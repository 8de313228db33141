"""Optional libraries: versions, the error for a missing one, and imports without telemetry."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deit.errors import MissingExtraError
from deit.inference import optional_libraries


def test_version_of_a_library() -> None:
    assert optional_libraries.version("openvino") is not None
    assert optional_libraries.version("no_such_library") is None


def test_missing_library_is_an_error() -> None:
    with pytest.raises(MissingExtraError, match=r"^A bundle needs an optional library: pip install 'deit\[inference\]'\.$"):
        optional_libraries.load("no_such_library", "A bundle")


def test_imported_library_is_returned() -> None:
    assert optional_libraries.load("sys", "A test") is sys


IMPORT_WITHOUT_TELEMETRY = """
import sys
from deit.inference import optional_libraries
for name in ("openvino", "nncf"):
    optional_libraries.load(name, "A test")
assert "openvino_telemetry" not in sys.modules, "the block was not removed"
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
import openvino_telemetry  # other code can still import it
"""


def test_libraries_are_imported_without_telemetry() -> None:
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_WITHOUT_TELEMETRY]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "openvino.tools.ovc.telemetry_stub"
