"""``deit benchmark``: the arguments that it passes on, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deit.inference import benchmark
from deit.inference.benchmark import Quartiles, RuntimeBenchmark
from tests.helpers import pattern
from tests.unit.cli.options import output

MEASURED = RuntimeBenchmark(
    runtime="onnxruntime",
    precision="int8",
    device="cpu",
    load_seconds=0.25,
    latency_ms=(4.0, 6.0),
    file_latency_ms=(7.0, 9.0),
    images_per_second={1: Quartiles(90, 100, 110), 8: Quartiles(400, 500, 600)},
    files_per_second=Quartiles(200, 300, 400),
    steady_mib=150,
    peak_mib=1200,
    share_of_peak=0.4,
)


def test_table_shows_the_best_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measure(*arguments: Any) -> list[RuntimeBenchmark]:
        calls.append(arguments)
        return [MEASURED]

    monkeypatch.setattr(benchmark, "benchmark", measure)
    pattern(8, 8).save(tmp_path / "a photo.png")
    text = output("benchmark", "a model", "--images", tmp_path, "--device", "cpu")
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert rows >= {"images/s 500", "quartiles 400 to 600", "batch size 8", "share of matmul peak 40%"}
    assert rows >= {"ms per image (p50, p99) 4.0, 6.0", "MiB (steady, peak) 150, 1,200"}
    assert calls == [("a model", "cpu", [], [tmp_path / "a photo.png"], 2.0)]
    content = json.loads(output("benchmark", "a model", "--runtime", "onnxruntime", "--json"))
    assert content["runtimes"] == [json.loads(json.dumps(MEASURED.to_dict()))]
    assert calls[1] == ("a model", "auto", ["onnxruntime"], [], 2.0)
