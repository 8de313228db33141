"""`deit predict --engine ray` on a local Ray cluster of two machines, a worker of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from deit.models.modeling import DeiTForImageClassification
from tests.helpers import pattern, randomized, tiny_deit

IMAGES = 1000
ATTEMPTS = 3
MEMORY = 80_000_000  # bytes of a machine's object store


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY})
    started.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield started
    started.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a model, images and their table."""
    folder = tmp_path_factory.mktemp("a cluster")
    randomized(DeiTForImageClassification(tiny_deit()), 0).save_pretrained(folder / "the model")
    images = folder / "the images"
    images.mkdir()
    for number in range(IMAGES):
        pattern(64, 64, number).save(images / f"{number:04d}.png")
    (images / "0100.png").write_bytes(b"not an image")
    subprocess.run(command(folder, folder / "local.jsonl"), check=False, capture_output=True, timeout=300)
    return folder


def worker_processes() -> set[int]:
    """Returns the processes of Ray that predict."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::") and b"PartPredictor" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def command(folder: Path, out: Path, *options: str) -> list[str]:
    model, images = folder / "the model", folder / "the images"
    return [sys.executable, "-m", "deit", "predict", str(model), str(images), "--out", str(out), "--json", *options]


def start(cluster: Cluster, folder: Path, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(
        command(folder, out, "--engine", "ray"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after_the_first_part(program: subprocess.Popen[str], out: Path, victims: Callable[[], Collection[int]]) -> bool:
    """Kills the first of some processes, once a part is predicted. Returns False if the program ends before."""
    parts, deadline = out.with_name(f"{out.name}.parts"), time.monotonic() + 240
    while program.poll() is None and time.monotonic() < deadline:
        found = victims()
        if found and any(parts.glob("part-????????")):
            with suppress(ProcessLookupError):
                os.kill(min(found), signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


def assert_same_rows(out: Path, folder: Path) -> None:
    rows, expected = ([json.loads(line) for line in path.read_text().splitlines()] for path in (out, folder / "local.jsonl"))
    assert len(rows) == IMAGES
    for row, other in zip(rows, expected, strict=True):
        assert (row["image"], row.get("error")) == (other["image"], other.get("error"))
        for guess, expected_guess in zip(row.get("predictions", []), other.get("predictions", []), strict=True):
            assert guess["label"] == expected_guess["label"]
            assert guess["probability"] == pytest.approx(expected_guess["probability"], rel=1e-3)


def test_killed_worker_loses_and_doubles_no_row(tmp_path: Path, folder: Path, cluster: Cluster) -> None:
    for attempt in range(ATTEMPTS):  # a fast machine may be done before the second worker has started
        out = tmp_path / f"{attempt}.jsonl"
        program = start(cluster, folder, out)
        killed = kill_after_the_first_part(program, out, lambda: found if len(found := worker_processes()) == 2 else ())
        printed, errors = program.communicate(timeout=240)
        if killed:
            break
    assert killed, errors
    assert program.returncode == 1, errors  # for the unreadable image
    result = json.loads(printed)
    assert (result["images"], result["unreadable"], result["resumed"]) == (IMAGES, 1, 0)
    assert_same_rows(out, folder)
    assert "Traceback" not in errors, errors


def test_killed_program_goes_on_without_the_cluster(tmp_path: Path, folder: Path, cluster: Cluster) -> None:
    out = tmp_path / "table.jsonl"
    program = start(cluster, folder, out)
    assert kill_after_the_first_part(program, out, lambda: [program.pid])
    program.communicate(timeout=240)
    assert not out.exists()
    second = subprocess.run(command(folder, out), check=False, capture_output=True, timeout=300)
    assert 0 < json.loads(second.stdout)["resumed"] < IMAGES
    assert_same_rows(out, folder)
