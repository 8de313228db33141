"""``deit explain``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deit.cli.common import DeviceOption, EmaOption, MaxPixelsOption, ModelOrBundleArgument, RevisionOption, image_files
from deit.cli.output import Column, Output, print_json, with_output

if TYPE_CHECKING:
    from deit.evaluation.explanation import Explanation


@with_output
def explain(
    model: ModelOrBundleArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files or folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures, new or empty.")] = Path("explained"),
    method: Annotated[
        Literal["gradient", "rollout", "attention"],
        typer.Option(help="gradient depends on the class; rollout of all layers and attention of the last one do not."),
    ] = "gradient",
    target: Annotated[str | None, typer.Option(metavar="CLASS", help="Class to explain. Default: the predicted one.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also draw the attention of every layer and head.")] = False,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="Explain only images on which the heads, or they and --teacher, disagree.")
    ] = False,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Also show what this classifier predicts.")] = None,
    ema: EmaOption = False,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    _max_pixels: MaxPixelsOption = None,
    *,
    output: Output,
) -> None:
    """Show where a model looks: a map per token over each image, and what each head predicts."""
    from deit.errors import ImageError, UserError
    from deit.evaluation.explanation import Explainer, explainable
    from deit.evaluation.explanation_figure import check_drawing, figure_name, write_attention, write_explanation
    from deit.inference.predictor import Predictor
    from deit.models.auto import load_classifier
    from deit.system.files import check_writable
    from deit.system.progress import Progress, plural, print_status

    check_drawing()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already", "pass another --out")
    check_writable(out)
    files = [file for path in images for file in image_files(path)]
    explainer = Explainer(load_classifier(explainable(model), ema=ema, revision=revision), device)
    explainer.check_target(target)
    predictor = None if teacher is None else Predictor.from_pretrained(teacher, device)
    rows: list[Row] = []
    with Progress("Explaining", len(files)) as progress:
        for number, file in enumerate(files):
            progress.advance(1)
            row = Row(str(file))
            try:
                row.votes = explainer.votes(file)
                if predictor is not None:
                    row.votes["teacher"] = predictor(file, 1).labels[0]
                if disagreements and len(set(row.votes.values())) == 1:
                    continue
                row.explanation = explainer(file, method=method, target=target)
            except ImageError as error:
                row.error = str(error)
                rows.append(row)
                continue
            out.mkdir(parents=True, exist_ok=True)
            figure = out / figure_name(number, file.name)
            write_explanation(figure, row.explanation)
            if layers:
                for head in row.explanation.heads:
                    write_attention(figure.with_stem(f"{figure.stem}-{head.head}-layers"), row.explanation, head.head)
            row.figure = str(figure)
            rows.append(row)
    if disagreements:
        count = sum(row.explanation is not None for row in rows)
        print_status(f"They disagree on {count:,} of {plural(len(files), 'image')}.")
    _print(rows, predictor is not None, output)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@dataclass
class Row:
    """An image: what each head and the teacher predict, its explanation and figure, or why it is unreadable."""

    image: str
    explanation: Explanation | None = None
    figure: str = ""
    error: str = ""
    votes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        if self.explanation is None:
            return {"image": self.image, "error": self.error}
        teacher = {"teacher": self.votes["teacher"]} if "teacher" in self.votes else {}
        return {**self.explanation.to_dict(), **teacher, "figure": self.figure}

    def cells(self, with_teacher: bool) -> list[Any]:
        """Returns the row of the table."""
        heads = {} if self.explanation is None else {head.head: head for head in self.explanation.heads}
        guesses = [
            f"{head.labels[0]} {head.probabilities[0]:.1%}" if head else None
            for head in map(heads.get, ("class", "distillation"))
        ]
        label = None if self.explanation is None else self.explanation.label
        return [self.image, label, *guesses, *([self.votes.get("teacher")] if with_teacher else []), self.figure or self.error]


def _print(rows: list[Row], with_teacher: bool, output: Output) -> None:
    if output.as_json:
        print_json([row.to_dict() for row in rows])
        return
    voters = ["class head", "distillation head", *(["teacher"] if with_teacher else [])]
    columns: list[Column | str] = ["image", "prediction", *voters, "figure"]
    output.table(columns, [row.cells(with_teacher) for row in rows])
