"""``deit quickstart``: the whole of it on real handwritten digits, in a few minutes on a laptop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.common import DeviceOption, JsonOption, WorkersOption, print_heads, print_json, print_table, result_dict

if TYPE_CHECKING:
    from deit.training.run import TrainResult

SHOWN = 5  # test images that are predicted at the end


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes; what is there already is used.")] = Path("quickstart"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew, even where a result is there.")] = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = 0,  # images of 8 x 8 pixels are made faster than they are handed over
    as_json: JsonOption = False,
) -> None:
    """Train a small teacher on handwritten digits, distil a small DeiT from it, report, predict."""
    from deit.system.progress import duration, print_status

    start = time.monotonic()
    if fresh:
        for run in (out / "teacher", out / "student"):
            if (run / "run.json").is_file():  # nothing but our own runs is ever removed
                shutil.rmtree(run)
    print_status("1 of 2: a convolutional teacher")
    _trained(out / "teacher", "digits-convnet", None, device, workers)
    print_status("\n2 of 2: a DeiT that learns from it through the distillation token")
    result = _trained(out / "student", "digits-distilled", out / "teacher", device, workers)
    if as_json:
        print_json(result_dict(result.directory, result.part, result.evaluation, result.teacher))
        return
    typer.echo()
    print_heads(result.evaluation, result.part, result.teacher)
    typer.echo()
    files = _show_predictions(result.directory, out / "digits", device)
    typer.echo(
        f"\nReport:   {result.directory / 'report.html'}   (took {duration(time.monotonic() - start)})\n"
        f'Predict:  deit predict "{result.directory}" "{files[0]}"\n'
        f'Evaluate: deit evaluate "{result.directory}" digits\n'
        "Your own: deit teacher train PHOTOS\n"
        "          deit train PHOTOS --teacher runs/PHOTOS-convnet"
    )


def _trained(directory: Path, recipe: str, teacher: Path | None, device: str, workers: int | None) -> TrainResult:
    """A run in ``directory``: a new one, the rest of an interrupted one, or the result of a finished one."""
    from deit.system.files import RUN_NAME
    from deit.training.run import train

    if (directory / RUN_NAME).is_file():
        return train(resume=directory, device=device, workers=workers)
    return train("digits", recipe, out=directory, teacher=teacher, device=device, workers=workers)


def _show_predictions(model: Path, folder: Path, device: str) -> list[Path]:
    """Write a few test images as files, as a user has them, and name what is in them."""
    from deit.data.opening import open_data
    from deit.inference.predictor import Predictor

    _, source = open_data("digits").held_out
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(SHOWN):
        files.append(folder / f"a {source.classes[source.labels[index]]} ({index}).png")
        source.load(index).save(files[-1])
    rows = [
        [prediction.image, f"{prediction.labels[0]} ({prediction.probabilities[0]:.1%})"]
        for prediction in Predictor.from_pretrained(model, device)(files, top=1)
    ]
    print_table(["image", "answer"], rows)
    return files
