"""Requests that schemathesis generates from the OpenAPI description of a real server, in its phases "coverage" and "fuzzing".

All of its checks are on: no server errors, and statuses, media types, headers and bodies as described. One is off:
``positive_data_acceptance``, because bytes that the description allows need not be an image.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from benchmarks import serving_load
from benchmarks.http_load import ServerProgram

from tests.helpers import pattern

ROOT = Path(__file__).parents[2]
CONFIG = """
hooks = "tests.e2e.schema_images"

[parameters]
"path.name" = "model"
"path.version" = "1"
"query.model" = "model"

[generation]
deterministic = true
max-examples = 40

[checks]
positive_data_acceptance.enabled = false

[phases]
examples.enabled = false
stateful.enabled = false
"""


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A data set of two classes."""
    for label in ("a", "b"):
        for number in range(5):
            path = tmp_path / "samples" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pattern(40, 30, seed=number).save(path)
    return tmp_path / "samples"


def test_answers_are_as_described(tmp_path: Path, samples: Path) -> None:
    model = serving_load.save_model(serving_load.minimal_model(), tmp_path / "model")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = Path(sys.executable).with_name("schemathesis")
    with ServerProgram(model, "--samples", str(samples)) as server:
        command = [str(program), "--config-file", str(config), "run", f"{server.url}/openapi.json", "--continue-on-failure"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        metrics = httpx.get(f"{server.url}/metrics").text
        server.terminate()
        exit_code, log = server.wait()
    assert result.returncode == 0, result.stdout + result.stderr
    for route in ("/v1/predict", "/v1/explain", "/v1/samples/{number}"):
        assert f'deit_requests_total{{route="{route}",status="200"}}' in metrics
    assert exit_code == 0 and "Traceback" not in log, log
