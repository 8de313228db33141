"""Models by name, and their replacement without a lost request."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from deit.cli.serve import model_names
from deit.errors import CheckpointError, UserError
from deit.inference.predictor import Predictor
from deit.serving.batching import Outcome
from deit.serving.metrics import Metrics
from deit.serving.models import Models
from deit.system.files import new_directory
from tests.unit.serving.conftest import save_model


def label(outcomes: list[Outcome]) -> int:
    assert isinstance(outcomes[0], dict)
    return int(outcomes[0]["both"].argmax())


def test_replaced_model_takes_over(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, image = save_model(tmp_path / "a model"), ("photo", photo.read_bytes())
    expected = {}
    for seed in range(12):
        other = save_model(tmp_path / f"{seed}", seed)
        expected[seed] = Predictor.from_pretrained(other, "cpu")(photo, 1).labels[0]
    seed = next(seed for seed, found in expected.items() if found != expected[0])
    models = Models({"m": str(path)}, lambda name: Predictor.from_pretrained(name, "cpu"), 64, 30.0, Metrics())
    models.open()

    async def run() -> list[int]:
        watching = asyncio.create_task(models.watch(0.05))
        before = label((await models.predict("m", [image]))[1])
        with new_directory(path) as draft:
            shutil.copytree(tmp_path / f"{seed}", draft, dirs_exist_ok=True)
        seen = [before]
        while seen[-1] == before and len(seen) < 2000:
            seen.append(label((await models.predict("m", [image]))[1]))  # none is lost meanwhile
            await asyncio.sleep(0.01)
        watching.cancel()
        return seen

    classes = models.get(None).predictor.classes
    seen = asyncio.run(run())
    assert (classes[seen[0]], classes[seen[-1]]) == (expected[0], expected[seed])
    models.close()
    assert "was replaced and is loaded again" in capsys.readouterr().err


def test_model_that_cannot_be_loaded_again_is_served_as_before(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = save_model(tmp_path / "a model"), ("photo", photo.read_bytes())
    models = Models({"m": str(path)}, lambda name: Predictor.from_pretrained(name, "cpu"), 64, 30.0, Metrics())
    models.open()

    async def run() -> tuple[int, int]:
        before = label((await models.predict("m", [image]))[1])
        watching = asyncio.create_task(models.watch(0.02))
        (path / "model.safetensors").write_bytes(b"damaged")
        await asyncio.sleep(0.3)
        watching.cancel()
        return before, label((await models.predict("m", [image]))[1])

    before, after = asyncio.run(run())
    assert before == after
    models.close()
    assert "m is served as before" in capsys.readouterr().err


def test_model_that_cannot_be_opened(tmp_path: Path) -> None:
    models = Models({"m": str(tmp_path / "nothing")}, lambda name: Predictor.from_pretrained(name, "cpu"), 64, 30.0, Metrics())
    with pytest.raises(CheckpointError):
        models.open()


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    (tmp_path / "run").mkdir()
    assert model_names(["run", "a=b", "best=runs/x"]) == {"run": "run", "a=b": "a=b", "best": "runs/x"}
    assert model_names([str(tmp_path / "run")]) == {"run": str(tmp_path / "run")}
    with pytest.raises(UserError, match="Two models have the name x"):
        model_names(["runs/x", "exports/x"])
