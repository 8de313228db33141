"""Every write, sync and renaming of what a run saves fails in turn: what is left?

    python -m benchmarks.faults [--write]

Three kinds of work are done in a temporary folder: a third checkpoint is written and the oldest removed, a model directory is
replaced (with the system call that exchanges two directories, and without it), and two files are replaced. One operation of the
work fails: the disk is full, there is an I/O error, or the process is killed; a write fails half way. Then the folder is
cleaned up, as when a run is resumed, and must hold the old or the new state, complete, and take the next one. The last line
printed is the result as JSON. ``--write`` writes ``faults.json`` and ``faults.md``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.fault_injection import FAULTS, Fault, fail_at, operations
from benchmarks.reporting import environment, publish
from deit.system.files import new_directory, write_files
from deit.system.replacing import clean_up
from deit.training.state import Snapshot, TrainState, newest_checkpoint, take_snapshot, write_checkpoint

OLD, NEW = "old", "new"


@dataclass(frozen=True)
class Work:
    """Something that is saved.

    Attributes:
        name: for people.
        write: writes a state, ``old`` or ``new``, into a folder.
        found: returns the state that a folder holds; anything else is a loss.
        exchanges: whether directories are exchanged by one system call.
    """

    name: str
    write: Callable[[Path, str], None]
    found: Callable[[Path], str]
    exchanges: bool = True


def snapshot(epoch: int) -> Snapshot:
    """Returns the content of a small checkpoint."""
    model = torch.nn.Linear(3, 2)
    return take_snapshot(TrainState(epoch=epoch), model, None, torch.optim.SGD(model.parameters()))


def write_checkpoints(folder: Path, state: str) -> None:
    """Writes two old checkpoints, or a new one."""
    for epoch in (1, 2) if state == OLD else (3,):
        write_checkpoint(folder, snapshot(epoch))


def found_checkpoint(folder: Path) -> str:
    """Returns the state of the newest checkpoint, after another one could be written."""
    newest, damaged = newest_checkpoint(folder)
    clean_up(folder)
    write_checkpoint(folder, snapshot(4))
    after, _ = newest_checkpoint(folder)
    is_complete = after is not None and after.state.epoch == 4 and len(list(folder.iterdir())) == 2
    if newest is None or damaged or not is_complete:
        return "lost"
    return {2: OLD, 3: NEW}.get(newest.state.epoch, "lost")


def write_model(folder: Path, state: str) -> None:
    """Replaces a model directory."""
    with new_directory(folder / "best") as draft:
        for name in ("config", "weights"):
            (draft / name).write_text(state)


def found_model(folder: Path) -> str:
    """Returns the state of a model directory."""
    clean_up(folder)
    names = [path.name for path in folder.iterdir()]
    states = {(folder / "best" / name).read_text() for name in ("config", "weights")}
    return states.pop() if names == ["best"] and len(states) == 1 else "lost"


def write_pair(folder: Path, state: str) -> None:
    """Replaces two files."""
    write_files({folder / name: state.encode() for name in ("recipe.toml", "run.json")})


def found_pair(folder: Path) -> str:
    """Returns the state of two files, of which each is the old one or the new one."""
    clean_up(folder)
    states = {path.name: path.read_text() for path in folder.iterdir()}
    if set(states) != {"recipe.toml", "run.json"} or not set(states.values()) <= {OLD, NEW}:
        return "lost"
    return NEW if set(states.values()) == {NEW} else OLD


WORKS = (
    Work("checkpoint", write_checkpoints, found_checkpoint),
    Work("model directory", write_model, found_model),
    Work("model directory, without the system call", write_model, found_model, exchanges=False),
    Work("two files", write_pair, found_pair),
)


def inject(work: Work, fault: Fault, folder: Path) -> Counter[str]:
    """Makes every operation of some work fail in turn. Returns how often each state was found afterwards."""
    outcomes: Counter[str] = Counter()
    with _exchanging(work.exchanges):
        work.write(folder / "count", OLD)
        for index in range(operations(lambda: work.write(folder / "count", NEW))):
            place = folder / str(index)
            work.write(place, OLD)
            fail_at(index, fault, lambda: work.write(place, NEW))  # noqa: B023
            outcomes[work.found(place)] += 1
    return outcomes


@contextmanager
def _exchanging(is_possible: bool) -> Iterator[None]:
    if is_possible:
        yield
        return
    with patch("deit.system.replacing.exchange", lambda *_: False):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for work in WORKS:
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as name:
                outcomes = inject(work, fault, Path(name))
            counts = {"faults": outcomes.total(), "old": outcomes[OLD], "new": outcomes[NEW]}
            rows.append({"work": work.name, "fault": fault, **counts, "lost": counts["faults"] - counts["old"] - counts["new"]})
    result = {**environment(torch.device("cpu"), {"torch": torch.__version__}), "rows": rows}
    publish(result, table(result), "faults" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    columns = ("work", "fault", "faults", "old", "new", "lost")
    rows = [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in result["rows"]]
    return "\n".join(
        [
            "# Faults at every write, sync and renaming",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            "`python -m benchmarks.faults`: how many faults were injected, and how often the old or the new state was found,",
            "complete, and could be replaced by the next one.",
            "",
            "| work | fault | faults | old | new | lost |",
            "|---|---|--:|--:|--:|--:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
