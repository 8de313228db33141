"""The real program under torchrun: killed processes, signals, mistakes, and two hosts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import ranks
from benchmarks.kills import final_state, make_images, make_teachers

from deit.checkpoints.run_log import read_log
from deit.training.state import newest_checkpoint

KILLS = 2
LONGEST_LIFE = 15.0  # seconds
DEADLINE = 240  # seconds
ADDRESSES = ("10.213.7.1", "10.213.7.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several processes")
    make_images(folder / "images")
    make_teachers(folder)
    ranks.recipe().save(folder / "recipe.toml")
    ranks.finish(ranks.start(folder, folder / "whole", 2))
    return folder


def test_killed_process_is_started_again_and_the_run_ends_in_the_same_bits(folder: Path) -> None:
    ended, different = ranks.kill_and_restart(folder, final_state(folder / "whole"), KILLS, random.Random(0), LONGEST_LIFE)
    assert ended
    assert not different


def test_signal_to_torchrun_leaves_a_checkpoint_and_no_process(folder: Path) -> None:
    run = folder / "stopped"
    program = ranks.start(folder, run, 2)
    deadline = time.monotonic() + DEADLINE
    while not any((run / "checkpoints").glob("epoch-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = ranks.ranks_of(program)
    assert len(processes) == 2
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=DEADLINE)
    assert program.returncode
    assert errors.decode().count("deit: Stopped in epoch") == 1
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    found, problems = newest_checkpoint(run / "checkpoints")
    assert found is not None
    assert not problems


def test_mistake_is_one_message_of_the_first_process(tmp_path: Path) -> None:
    for arguments in (("train", tmp_path / "missing"), ("predict", "model", tmp_path)):
        process = subprocess.run(
            [*_torchrun("--standalone", "--nproc-per-node", "2"), "-m", "deit", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert process.returncode
        messages = [line for line in process.stderr.splitlines() if line.startswith(("deit: ", "deit, process"))]
        assert len(messages) == 1
        assert messages[0].startswith("deit: ")
        assert "exitcode  : 2" in process.stderr


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, as two hosts."""
    names = (f"deit-a-{os.getpid()}", f"deit-b-{os.getpid()}")
    commands = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable0", "netns", names[1]],
    ]
    for name, address in zip(names, ADDRESSES, strict=True):
        inside = ["ip", "-n", name]
        commands += [
            [*inside, "address", "add", f"{address}/24", "dev", "cable0"],
            [*inside, "link", "set", "cable0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("This system does not let tests create network namespaces")
    try:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_two_hosts_train_together(folder: Path, hosts: tuple[str, str]) -> None:
    run = folder / "two hosts"
    programs = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", host, *_torchrun("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1")),
                *("--master-addr", ADDRESSES[0], "--master-port", "29517", "-m", "deit", "train", folder / "images"),
                *("--recipe", folder / "recipe.toml", "--teacher", folder / "teacher", "--out", run),
                *("--workers", "0", "--device", "cpu", "--json"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable0"},
        )
        for node, host in enumerate(hosts)
    ]
    (first, errors), (second, more_errors) = (program.communicate(timeout=DEADLINE) for program in programs)
    assert [program.returncode for program in programs] == [0, 0], errors + more_errors
    assert json.loads(first)["split"] == "validation"
    assert second == ""
    assert read_log(run)[-1]["validation"] == read_log(folder / "whole")[-1]["validation"]


def _torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options]
