"""Options and output shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deit.cli.common import (
    RunOptions,
    check_init_shape,
    default_recipe,
    image_files,
    parse_image_size,
    print_heads,
    recipe_settings,
    with_run_options,
)
from deit.cli.output import Output
from deit.data.cache_request import DEFAULT_LIMIT
from deit.errors import UserError
from tests.unit.evaluation.test_metrics import evaluation


def test_set_takes_precedence_over_the_option() -> None:
    options = {"epochs": 3, "seed": None, "model.variant": "x"}
    assert recipe_settings(["epochs = 5", "a.b=c=d"], options) == {"epochs": "5", "model.variant": "x", "a.b": "c=d"}
    with pytest.raises(UserError, match="NAME=VALUE"):
        recipe_settings(["epochs"], {})


def test_run_options_become_recipe_settings() -> None:
    options = RunOptions(image_size="48x64", epochs=2, assignments=["seed=7"])
    assert options.settings({"model.variant": "x", "model.architecture": None}) == {
        "model.variant": "x",
        "model.image_size": "[48, 64]",
        "epochs": "2",
        "seed": "7",
    }


@pytest.mark.parametrize("other", [{"recipe": "digits"}, {"init": "a model"}, {"out": Path("here")}])
def test_resume_takes_no_other_settings(other: dict[str, Any]) -> None:
    RunOptions(resume=Path("run")).check_resume(None, None)
    RunOptions(**other).check_resume("a teacher")
    with pytest.raises(UserError, match="pass --resume without another; --epochs and --minutes extend it"):
        RunOptions(resume=Path("run"), **other).check_resume(None, None)
    with pytest.raises(UserError, match="pass --resume without another; --epochs and --minutes extend it"):
        RunOptions(resume=Path("run")).check_resume("a teacher")


def run_command(*arguments: str, excluded: tuple[str, ...] = ()) -> tuple[dict[str, Any], str, int]:
    """Runs a command with the shared options and returns its arguments, its output and its exit code."""
    seen: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @with_run_options(*excluded)
    def command(data: str, arch: str | None = None, *, options: RunOptions) -> None:
        """Do something."""
        seen.update(data=data, arch=arch, options=options)

    result = CliRunner().invoke(app, list(arguments))
    return seen, result.output, result.exit_code


def test_run_options_are_added_to_a_command() -> None:
    seen, _, code = run_command("photos", "--epochs", "3", "--set", "a=1", "--set", "b=2", "--arch", "resnet18")
    assert code == 0
    assert (seen["data"], seen["arch"]) == ("photos", "resnet18")
    assert seen["options"] == RunOptions(epochs=3, assignments=["a=1", "b=2"])
    assert seen["options"].shared_arguments() == {
        "init": None,
        "device": "auto",
        "workers": None,
        "skip_unreadable": False,
        "cache": "auto",
        "cache_limit": DEFAULT_LIMIT,
    }


def test_run_options_can_be_excluded() -> None:
    assert run_command("photos", "--minutes", "3")[0]["options"].minutes == 3
    seen, output, code = run_command("photos", "--minutes", "3", excluded=("minutes",))
    assert (seen, code) == ({}, 2)
    assert "--minutes" in output
    assert run_command("photos", excluded=("minutes",))[0]["options"].minutes is None


@pytest.mark.parametrize(
    ("data", "distilled", "init", "expected"),
    [
        ("photos", False, False, "small-data"),
        ("photos", True, False, "small-data-distilled"),
        ("digits", True, False, "digits-distilled"),
        ("digits", False, True, "finetune-small-data"),
        (None, True, True, "finetune-small-data-distilled"),
    ],
)
def test_default_recipe(data: str | None, distilled: bool, init: bool, expected: str) -> None:
    assert default_recipe(data, distilled, init) == expected


def test_parse_image_size() -> None:
    assert parse_image_size("384") == 384
    assert parse_image_size("256X192") == [256, 192]
    for text in ("", "large", "1x2x3", "-1", "100000"):
        with pytest.raises(UserError, match="is not a size"):
            parse_image_size(text)


def test_init_and_a_shape_exclude_each_other() -> None:
    check_init_shape("a model", None)
    check_init_shape(None, "resnet18", "--arch")
    with pytest.raises(UserError, match="--init and --arch both set the shape of the model: leave one of them out"):
        check_init_shape("a model", "resnet18", "--arch")


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.JPG", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert image_files(tmp_path) == [tmp_path / "a" / "c.JPG", tmp_path / "b.png"]
    assert image_files(tmp_path / "a" / "notes.txt") == [tmp_path / "a" / "notes.txt"]
    with pytest.raises(UserError, match="does not exist"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        image_files(tmp_path / "empty")
    (tmp_path / "empty" / "clip.mp4").touch()
    with pytest.raises(UserError, match=r"contains no images: it has 1 video \(clip\.mp4\)"):
        image_files(tmp_path / "empty")


def test_image_files_leave_out_what_data_sets_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = (".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "run/run.json", "run/recipe.toml", "run/a.png", "._a.jpg", "a.txt")
    for name in ("a.jpg", "b/c.jfif", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run" / "a.png").unlink()
    assert image_files(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b" / "c.jfif"]
    output = capsys.readouterr().err
    assert output.startswith(f"Not read in {tmp_path}: 1 directory of runs, models or exports (run), 1 text file (a.txt)")


def test_heads_are_printed_after_the_teacher(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_heads(Output(), evaluation([[8, 0], [2, 0]]), "test", evaluation([[9, 0], [1, 0]]))
    title, _, teacher, head = capsys.readouterr().out.splitlines()
    assert title.startswith("test, 10 images")
    assert teacher.split() == ["teacher", "90.00%", "100.00%", "0.5000", "10.00%"]
    assert head.split()[:2] == ["class", "80.00%"]
