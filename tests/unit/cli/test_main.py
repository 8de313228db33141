"""The program: its commands and options are pinned, errors are one line, and starting it loads nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

import deit
from deit.cli import main
from deit.cli.main import app
from deit.errors import InterruptedWorkError, UserError, WorkError
from deit.system.openmp import SPIN_COUNT, SPIN_VARIABLE, WAIT_VARIABLE
from deit.system.signals import Terminated

RUN_OPTIONS = (
    "--init --recipe --image-size --epochs --minutes --batch-size --seed --set --out --resume --device --workers "
    "--skip-unreadable --cache --cache-limit --checkpoint-minutes --track --compile --shard --max-pixels"
)
OUTPUT = "--json --csv --tsv"
COMMANDS = {
    "quickstart": "--out --fresh --device --workers --json --csv --tsv",
    "train": f"--teacher --teacher-weights --teacher-classes --model {RUN_OPTIONS} {OUTPUT}",
    "pretrain": f"--model --json {RUN_OPTIONS}".replace(" --minutes", ""),
    "tune": "--teacher --minutes --vary --trials --teacher-weights --teacher-classes --model --init --recipe --image-size "
    "--batch-size --seed --set --out --resume --device --workers --skip-unreadable --cache --cache-limit "
    f"--checkpoint-minutes --track --max-pixels {OUTPUT}",
    "replay": "--epoch --step --out --data --device --workers --json --csv --tsv",
    "evaluate": "--split --combine --classes --match-classes --crop --batch-size --ema --revision --device --workers "
    "--skip-unreadable --max-pixels --json --csv --tsv",
    "runs": "--html --json --csv --tsv",
    "predict": "--top --out --sort-into --engine --crop --runtime --precision --exact --ema --revision --device --max-pixels "
    "--json --csv --tsv",
    "explain": "--out --method --target --layers --disagreements --teacher --ema --revision --device --max-pixels "
    "--json --csv --tsv",
    "export": "--out --to --precision --calibrate --images --crop --ema --revision --overwrite --max-pixels --json --csv --tsv",
    "serve": "--host --port --max-body --max-files --queue --timeout --samples --crop --runtime --device --max-pixels",
    "benchmark": "--images --runtime --seconds --device --max-pixels --json --csv --tsv",
    "info": "--json --csv --tsv",
    "convert": "--to --base --ema --distillation --image-size --heads --revision --overwrite --json --csv --tsv",
    "teacher train": f"--arch {RUN_OPTIONS} {OUTPUT}".replace(" --shard", ""),
    "teacher cache": "--teacher --out --views --top-k --features --teacher-weights --teacher-classes --model "
    "--init --recipe --image-size --epochs --batch-size --seed --set --device --workers --skip-unreadable --cache "
    "--cache-limit --max-pixels --json --csv --tsv",
    "data list": "--json --csv --tsv",
    "data pack": "--out --size --quality --shard-mb --skip-unreadable --max-pixels --json --csv --tsv",
    "data check": "--max-pixels --json --csv --tsv",
    "recipe list": "--json --csv --tsv",
    "recipe show": "--set --json",
    "model list": "--json --csv --tsv",
    "model show": "--revision --json --csv --tsv",
    "model push": "--private --revision --message --license --dry-run --json --csv --tsv",
}


OUT_OF_MEMORY = "deit: Memory ran out: pass a smaller batch size, a smaller image size, fewer --workers, or another --device.\n"


def test_commands_and_options() -> None:
    found = {}
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for subname, subcommand in getattr(command, "commands", {"": command}).items():
            options = [parameter.opts[-1] for parameter in subcommand.params if parameter.param_type_name == "option"]
            found[f"{name} {subname}".strip()] = " ".join(option for option in options if option != "--help")
    assert found == COMMANDS


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"deit {deit.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["model", "list"]])
def test_start_does_not_load_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv[1:] = {arguments}\nfrom deit.cli.main import run\ntry:\n  run()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_waiting_threads_spin_only_briefly_in_the_program() -> None:
    code = "import os, sys; sys.argv[1:] = ['--help']\nfrom deit.cli.main import run\ntry:\n  run()\nexcept SystemExit: pass\n"
    code += f"assert os.environ[{SPIN_VARIABLE!r}] == {str(SPIN_COUNT)!r}"
    environment = {name: value for name, value in os.environ.items() if name not in (SPIN_VARIABLE, WAIT_VARIABLE)}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("A is wrong", "do B"), 2, "deit: A is wrong: do B.\n"),
        (WorkError("A failed", "do B"), 1, "deit: A failed: do B.\n"),
        (OSError(28, "No space left on device", "a file"), 1, "deit: a file: No space left on device.\n"),
        (OSError("the disk is on fire"), 1, "deit: the disk is on fire.\n"),
        (KeyboardInterrupt(), 130, "deit: interrupted.\n"),
        (Terminated(signal.SIGTERM), 143, "deit: stopped by SIGTERM.\n"),
        (InterruptedWorkError("Stopped", "resume", 129), 129, "deit: Stopped: resume.\n"),
        (MemoryError(), 1, OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), 1, OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, OUT_OF_MEMORY),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handler of SIGINT stays that of pytest

    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as exit_info:
        main.run()
    assert exit_info.value.code == code
    assert capsys.readouterr() == ("", line)


def test_program_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "deit", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("deit ")
