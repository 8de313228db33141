"""Every write, sync and renaming fails in turn: a checkpoint that loads is always left, and the next one can be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deit.system.files import new_directory, write_files
from deit.system.replacing import clean_up
from deit.training.state import Snapshot, TrainState, newest_checkpoint, take_snapshot, write_checkpoint
from tests.faults import FAULTS, Fault, fail_at, operations


def snapshot(epoch: int) -> Snapshot:
    model = torch.nn.Linear(3, 2)
    return take_snapshot(TrainState(epoch=epoch), model, None, torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize("fault", FAULTS)
def test_checkpoint_that_loads_is_always_left(tmp_path: Path, fault: Fault) -> None:
    for epoch in (1, 2):
        write_checkpoint(tmp_path / "count", snapshot(epoch))
    count = operations(lambda: write_checkpoint(tmp_path / "count", snapshot(3)))
    assert count >= 12  # of four files, their directory, the checkpoint's place and the removal of an old one
    for index in range(count):
        run = tmp_path / str(index)
        for epoch in (1, 2):
            write_checkpoint(run, snapshot(epoch))
        fail_at(index, fault, lambda: write_checkpoint(run, snapshot(3)))  # noqa: B023
        found, damaged = newest_checkpoint(run)
        assert found is not None
        assert found.state.epoch in (2, 3)
        assert damaged == []
        clean_up(run)
        write_checkpoint(run, snapshot(4))
        newest = newest_checkpoint(run)[0]
        assert newest is not None
        assert newest.state.epoch == 4
        assert len(list(run.iterdir())) == 2


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("can_exchange", [True, False])
def test_model_directory_is_the_old_one_or_the_new_one(
    tmp_path: Path, fault: Fault, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr("deit.system.replacing.exchange", lambda *_: False)

    def write(path: Path, text: str) -> None:
        with new_directory(path) as draft:
            for name in ("config", "weights"):
                (draft / name).write_text(text)

    write(tmp_path / "count" / "best", "old")
    for index in range(operations(lambda: write(tmp_path / "count" / "best", "new"))):
        best = tmp_path / str(index) / "best"
        write(best, "old")
        fail_at(index, fault, lambda: write(best, "new"))  # noqa: B023
        clean_up(best.parent)
        assert {(best / name).read_text() for name in ("config", "weights")} in ({"old"}, {"new"})
        assert [path.name for path in best.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("fault", FAULTS)
def test_file_is_the_old_one_or_the_new_one(tmp_path: Path, fault: Fault) -> None:
    def write(folder: Path, text: bytes) -> None:
        write_files({folder / "recipe.toml": text, folder / "run.json": text})

    write(tmp_path / "count", b"old")
    for index in range(operations(lambda: write(tmp_path / "count", b"new"))):
        folder = tmp_path / str(index)
        write(folder, b"old")
        fail_at(index, fault, lambda: write(folder, b"new"))  # noqa: B023
        clean_up(folder)
        assert {path.name for path in folder.iterdir()} == {"recipe.toml", "run.json"}
        assert all(path.read_bytes() in (b"old", b"new") for path in folder.iterdir())
