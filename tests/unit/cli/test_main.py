"""The program's verbs and flags: what is public does not change unnoticed, and starting it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from deit.cli.main import app

VERBS = {
    "quickstart": "--out --fresh --device --workers --json",
    "train": "--init --teacher --teacher-weights --recipe --model --image-size --epochs --minutes --batch-size --seed --set "
    "--out --resume --device --workers --skip-unreadable --json",
    "pretrain": "--init --recipe --model --image-size --epochs --batch-size --seed --set --out --resume --device --workers "
    "--skip-unreadable --json",
    "evaluate": "--part --combine --classes --crop --batch-size --ema --revision --device --workers --skip-unreadable --json",
    "predict": "--top --crop --runtime --exact --ema --revision --device --json",
    "export": "--out --to --precision --calibrate --images --crop --ema --revision --overwrite --json",
    "benchmark": "--images --runtime --seconds --device --json",
    "info": "--json",
    "convert": "--to --ema --distillation --image-size --heads --revision --overwrite --json",
    "teacher train": "--arch --init --recipe --image-size --epochs --minutes --batch-size --seed --set --out --resume "
    "--device --workers --skip-unreadable --json",
    "teacher store": "--teacher --out --views --top-k --teacher-weights --init --recipe --model --image-size --epochs "
    "--batch-size --seed --set --device --workers --skip-unreadable --json",
    "data list": "--json",
    "data check": "--json",
    "recipe list": "--json",
    "recipe show": "--set --json",
    "model list": "--json",
    "model show": "--revision --json",
    "model push": "--private --revision --message --license --dry-run --json",
}


def test_the_verbs_and_their_flags_are_these() -> None:
    found = {}
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for verb, leaf in getattr(command, "commands", {"": command}).items():
            flags = [parameter.opts[-1] for parameter in leaf.params if parameter.param_type_name == "option"]
            found[f"{name} {verb}".strip()] = " ".join(flag for flag in flags if flag != "--help")
    assert found == VERBS


@pytest.mark.parametrize("arguments", [["--help"], ["model", "list"]])
def test_starting_the_program_loads_no_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv[1:] = {arguments}\nfrom deit.cli.main import run\ntry:\n  run()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
