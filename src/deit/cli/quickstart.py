"""``deit quickstart``: teacher, distilled student, report and predictions on handwritten digits, in minutes on a laptop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.common import DeviceOption, WorkersOption, print_heads, result_dict
from deit.cli.output import Output, print_json, print_table, with_output
from deit.system.files import RUN_NAME

if TYPE_CHECKING:
    from deit.training.finishing import TrainResult

PREDICTED_IMAGES = 5


@with_output
def quickstart(
    out: Annotated[Path, typer.Option(help="Output directory; runs in it are resumed or reused.")] = Path("quickstart"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove existing runs and train again.")] = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    *,
    output: Output,
) -> None:
    """Train a teacher and a distilled DeiT on handwritten digits, write the report, and predict."""
    from deit.system.progress import duration, print_status

    start = time.monotonic()
    if fresh:
        remove_runs(out)
    print_status("Step 1 of 2: train a convolutional teacher")
    _train_or_resume(out / "teacher", "digits-convnet", None, device, workers)
    print_status("\nStep 2 of 2: train a DeiT that is distilled from it")
    result = _train_or_resume(out / "student", "digits-distilled", out / "teacher", device, workers)
    if output.as_json:
        print_json(result_dict(result))
        return
    output.line()
    print_heads(output, result.evaluation, result.split, result.teacher)
    if not output.for_people:
        return
    output.line()
    files = _print_predictions(result.directory, out / "digits", device)
    output.line(
        f"\nReport:   {result.directory / 'report.html'}   (took {duration(time.monotonic() - start)})\n"
        f'Predict:  deit predict "{result.directory}" "{files[0]}"\n'
        f'Evaluate: deit evaluate "{result.directory}" digits\n'
        "Your own: deit teacher train PHOTOS\n"
        "          deit train PHOTOS --teacher runs/PHOTOS-convnet\n"
        f'Page:     deit serve "{result.directory}"'
    )


def remove_runs(out: Path) -> None:
    """Removes the quickstart's own runs; a directory without ``run.json`` is left alone."""
    for directory in (out / "teacher", out / "student"):
        if (directory / RUN_NAME).is_file():
            shutil.rmtree(directory)


def _train_or_resume(directory: Path, recipe: str, teacher: Path | None, device: str, workers: int | None) -> TrainResult:
    from deit.training.run import train

    if (directory / RUN_NAME).is_file():
        return train(resume=directory, device=device, workers=workers)
    return train("digits", recipe, out=directory, teacher=teacher, device=device, workers=workers)


def _print_predictions(model: Path, folder: Path, device: str) -> list[Path]:
    """Writes a few test images as files, prints their predictions, and returns the files."""
    from deit.data.opening import open_data
    from deit.inference.predictor import Predictor

    _, source = open_data("digits").held_out
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(PREDICTED_IMAGES):
        files.append(folder / f"a {source.classes[source.labels[index]]} ({index}).png")
        source.load(index).save(files[-1])
    rows = [
        [prediction.image, f"{prediction.labels[0]} ({prediction.probabilities[0]:.1%})"]
        for prediction in Predictor.from_pretrained(model, device)(files, top=1)
    ]
    print_table(["image", "prediction"], rows)
    return files
