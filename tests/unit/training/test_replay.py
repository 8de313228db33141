"""Replayed steps are those of the run, bit by bit, and leave it unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import kills

from deit.data.loader import Batch
from deit.errors import UserError
from deit.recipes.presets import get_recipe
from deit.training import loop
from deit.training.replay import contact_sheet, replay
from deit.training.run import train
from tests.unit.cli.options import output

EPOCHS, BATCH = 3, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a teacher, and a distilled run with stochastic depth and mixing, whose steps are recorded in ``steps.json``."""
    folder = tmp_path_factory.mktemp("replayed run")
    kills.make_images(folder / "images")
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    train(folder / "images", get_recipe("convnet").tiny(), out=folder / "teacher", **options)
    recipe = get_recipe("small-data-distilled").tiny()
    recipe = recipe.replace(
        epochs=EPOCHS, batch_size=BATCH, mixing={"mixup": 0.8}, model={"drop_path": 0.2}, optimizer={"warmup_epochs": 1}
    )
    steps: dict[str, Any] = {}
    step: Any = loop.train_step  # type: ignore[attr-defined]

    def recorded(model: Any, optimizer: Any, batches: Any, context: Any, epoch: int, number: int, *rest: Any) -> Any:
        losses = step(model, optimizer, batches, context, epoch, number, *rest)
        samples = [sample for batch in batches for sample in batch.samples.tolist()]
        values = {name: loss.item() for name, loss in losses.items()}
        steps[f"{epoch + 1} {number + 1}"] = {"losses": values, "samples": samples, "lr": rest[0]}
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", recorded)
        train(folder / "images", recipe, out=folder / "run", teacher=folder / "teacher", **options)
    (folder / "steps.json").write_text(json.dumps(steps))
    return folder


def contents(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 3), (3, 1), (3, 3)])
def test_replayed_step_is_that_of_the_run(folder: Path, epoch: int, step: int) -> None:
    expected = json.loads((folder / "steps.json").read_text())[f"{epoch} {step}"]
    before = contents(folder / "run")
    replayed = replay(folder / "run", epoch, step, workers=0, device="cpu")
    assert replayed.losses == expected["losses"]
    assert replayed.lr == expected["lr"]
    assert [[sample.index, sample.repeat, sample.position] for sample in replayed.samples] == expected["samples"]
    assert replayed.gradient_norm == pytest.approx(sum(norm**2 for norm in replayed.gradient_norms.values()) ** 0.5, rel=1e-5)
    assert all(sample.label in sample.name for sample in replayed.samples)
    assert contents(folder / "run") == before


@pytest.mark.parametrize(("epoch", "step"), [(4, 1), (1, 4), (0, 1)])
def test_step_that_the_run_does_not_have_is_an_error(folder: Path, epoch: int, step: int) -> None:
    with pytest.raises(UserError, match=rf"no epoch {epoch}, step {step}: it has 9 steps, 3 in an epoch"):
        replay(folder / "run", epoch, step, workers=0, device="cpu")


def test_steps_before_an_extension_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    train(resume=tmp_path / "run", settings={"epochs": "5"}, workers=0, device="cpu")
    with pytest.raises(UserError, match="extended after epoch 3, and there is no checkpoint between that and the step"):
        replay(tmp_path / "run", 2, 1, workers=0, device="cpu")
    assert replay(tmp_path / "run", 5, 2, workers=0, device="cpu").step == 2


def test_command_writes_the_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("replay", folder / "run", "--epoch", 2, "--step", 1, "--workers", 0, "--device", "cpu")
    text = output(*arguments)
    assert "Epoch 2, step 1, learning rate" in text
    assert "Largest gradients" in text
    assert (tmp_path / "run-epoch-2-step-1.png").is_file()
    content = json.loads(output(*arguments, "--json", "--out", tmp_path / "sheets" / "batch.png"))
    assert content["images"] == str(tmp_path / "sheets" / "batch.png")
    assert len(content["samples"]) == BATCH
    rows = output(*arguments, "--csv", "--out", "batch.png").splitlines()
    assert rows[0] == "position,index,repeat,class,image"
    assert len(rows) == BATCH + 1


def test_contact_sheet_shows_the_images_as_they_were_before_normalization() -> None:
    images = torch.rand(9, 3, 16, 20)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    normalized = (images - mean[:, None, None]) / std[:, None, None]
    normalized[8, 0, 0, 0] = torch.nan
    labels = torch.zeros(9, dtype=torch.int64)
    batch = Batch(normalized, labels, labels, torch.arange(27).view(9, 3))
    sheet = contact_sheet([batch], mean.tolist(), std.tolist())
    assert sheet.size == (4 + 8 * 24, 4 + 2 * 32)
    pixels = np.asarray(sheet)
    np.testing.assert_allclose(pixels[4:20, 4:24], images[0].permute(1, 2, 0) * 255, atol=0.51)
    np.testing.assert_allclose(pixels[4:20, 28:48], images[1].permute(1, 2, 0) * 255, atol=0.51)
    assert pixels[36, 4, 0] == 0
