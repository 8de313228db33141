"""``deit quickstart`` from start to finish."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import Deit


def test_quickstart(deit: Deit, tmp_path: Path) -> None:
    out = tmp_path / "a quick start"
    done = deit("quickstart", "--out", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "student" / "evaluation.json").read_text())
    assert result["split"] == "test"
    assert result["images"] == 359
    # 98.3% where it was measured (README); rounding on another CPU changes a few of the 359 predictions.
    assert result["heads"]["both"]["top1"] >= 0.97
    for word in ("teacher", "class", "distillation", "both", "Predict:"):
        assert word in done.stdout
    assert (out / "student" / "report.html").stat().st_size > 10_000

    again = deit("quickstart", "--out", out, "--device", "cpu", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["heads"] == result["heads"]
