"""Optional libraries: named when they are missing, and imported without their reports to their makers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deit.errors import MissingExtraError
from deit.inference import libraries


def test_versions_are_told() -> None:
    assert libraries.version("openvino") is not None
    assert libraries.version("no_such_library") is None


def test_a_missing_library_is_one_sentence() -> None:
    with pytest.raises(MissingExtraError, match=r"^A bundle needs an optional library: pip install 'deit\[inference\]'\.$"):
        libraries.load("no_such_library", "A bundle")


def test_a_loaded_library_is_taken_as_it_is() -> None:
    assert libraries.load("sys", "A test") is sys


REPORTS = """
import sys
from deit.inference import libraries
for name in ("openvino", "nncf"):
    libraries.load(name, "A test")
assert "openvino_telemetry" not in sys.modules, "the blank was left behind"
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
import openvino_telemetry  # a program of the user's own may
"""


def test_nothing_is_reported_to_anyone() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", REPORTS], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "openvino.tools.ovc.telemetry_stub"
