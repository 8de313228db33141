"""Options and output shared by the commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deit.cli.options import Command, with_fields
from deit.cli.output import Column, Output, print_json
from deit.data.cache_request import DEFAULT_LIMIT, CacheMode
from deit.errors import PeerError, UserError
from deit.recipes.run_settings import CHECKPOINT_MINUTES
from deit.system.files import BEST_NAME
from deit.system.torchrun import is_main, world_size

if TYPE_CHECKING:
    from deit.evaluation.metrics import Evaluation
    from deit.training.finishing import TrainResult

STARTED = time.monotonic()  # of the program, which the time of --minutes includes

DATA_HELP = "Folder of images, manifest file, hf:OWNER/NAME, or a name from `deit data list`."
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
TrainDataArgument = Annotated[
    str | None, typer.Argument(metavar="DATA", help=f"{DATA_HELP} Not needed with --resume.", show_default=False)
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Run, model directory or file of any format, hub name, or variant name.")
]
ModelOrBundleArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Bundle from `deit export`, run, model of any format, hub name, or variant name.")
]

VariantOption = Annotated[str | None, typer.Option(help="Model variant from `deit model list`.")]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        help="Output of `deit teacher train` or `deit teacher cache`, a classifier's directory or hub name, or a timm name."
    ),
]
TeacherWeightsOption = Annotated[str | None, typer.Option(help="Weights file of a timm teacher.")]
TeacherClassesOption = Annotated[
    Literal["name", "order"],
    typer.Option(help="Match the teacher's classes with the data's by name, or by order if they have no names."),
]
InitOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Checkpoint to start from: a run, a model of any format, or a hub name.")
]
RecipeOption = Annotated[str | None, typer.Option(help="Name from `deit recipe list`, or a TOML file.")]
ImageSizeOption = Annotated[
    str | None, typer.Option(metavar="PIXELS", help="Size of the model's input: 384, or height x width such as 256x192.")
]
EpochsOption = Annotated[int | None, typer.Option(help="Number of epochs.")]
MinutesOption = Annotated[
    float | None, typer.Option(help="Time of the command; steps, and model sizes that are not set, are chosen to fit.")
]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images per optimizer step.")]
SeedOption = Annotated[int | None, typer.Option(help="Random seed.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set any value of the recipe. May be repeated.")
]
OutOption = Annotated[Path | None, typer.Option(help="Directory of the run. Default: a new one in runs/.")]
ResumeOption = Annotated[Path | None, typer.Option(metavar="RUN", help="Resume the run in this directory.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Worker processes of the data loader. Default: by the number of cores.")
]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images and count them.")]
CacheOption = Annotated[
    CacheMode,
    typer.Option(help="Keep decoded images, so that large ones are decoded once. auto: where it pays, and there is space."),
]
CacheLimitOption = Annotated[
    float,
    typer.Option("--cache-limit", metavar="GB", help="Decoded images that are kept at most, within half of the free space."),
]
CheckpointMinutesOption = Annotated[
    float,
    typer.Option("--checkpoint-minutes", metavar="M", help="A checkpoint at least every M minutes, also within an epoch."),
]
TrackOption = Annotated[bool, typer.Option("--track", help="Write event files for TensorBoard into the run.")]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model first, up to some minutes, so that its steps are faster on a GPU.")
]
ShardOption = Annotated[
    bool,
    typer.Option(
        "--shard", help="With torchrun: divide the model among the processes (FSDP2), if it is too large for each to hold it."
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
EmaOption = Annotated[
    bool, typer.Option("--ema", help="Load the exponential moving average of the weights from a training checkpoint.")
]
CropOption = Annotated[
    Literal["keep", "squash", "pad"] | None,
    typer.Option(help="keep: center crop; squash: ignore the aspect ratio; pad: the whole image. Default: the model's own."),
]
RuntimeOption = Annotated[
    Literal["openvino", "onnxruntime", "torch", "torch-compiled"] | None,
    typer.Option(help="Runtime that runs the model. Default: see `deit info`."),
]


def apply_max_pixels(context: typer.Context, pixels: int | None) -> int | None:
    """Applies ``--max-pixels`` to this command and the processes that it starts."""
    from deit.images.limits import max_pixels, pixel_limit

    if pixels is not None:
        context.with_resource(pixel_limit(pixels))
    max_pixels()  # a wrong value of the variable is an error before any work
    return pixels


MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        callback=apply_max_pixels,
        expose_value=False,
        help="Largest image that is read. Default: $DEIT_MAX_PIXELS, or 178,956,970. Memory grows with it.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """Options that the training commands share; see :func:`with_run_options`."""

    init: InitOption = None
    recipe: RecipeOption = None
    image_size: ImageSizeOption = None
    epochs: EpochsOption = None
    minutes: MinutesOption = None
    batch_size: BatchSizeOption = None
    seed: SeedOption = None
    assignments: SetOption = None
    out: OutOption = None
    resume: ResumeOption = None
    device: DeviceOption = "auto"
    workers: WorkersOption = None
    skip_unreadable: SkipOption = False
    cache: CacheOption = "auto"
    cache_limit: CacheLimitOption = DEFAULT_LIMIT
    checkpoint_minutes: CheckpointMinutesOption = CHECKPOINT_MINUTES
    track: TrackOption = False
    compiled: CompileOption = False
    shard: ShardOption = False
    max_pixels: MaxPixelsOption = None

    def settings(self, own: Mapping[str, object]) -> dict[str, str]:
        """Returns the recipe values to change, as :meth:`Recipe.with_settings` takes them.

        Args:
            own: recipe key -> value of the command's own option; None if it is not given.
        """
        shared = {
            "model.image_size": self.image_size,
            "epochs": self.epochs,
            "minutes": self.minutes,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return recipe_settings(self.assignments, {**own, **shared})

    def check_resume(self, *other_settings: object) -> None:
        """Checks that a run is resumed without another recipe, checkpoint or directory.

        Raises:
            UserError: one is given beside ``--resume``.
        """
        if self.resume is not None and any((*other_settings, self.recipe, self.init, self.out)):
            raise UserError(
                "A resumed run keeps its own recipe", "pass --resume without another; --epochs and --minutes extend it"
            )

    def shared_arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of training and of caching a teacher's predictions."""
        return {
            "init": self.init,
            "device": self.device,
            "workers": self.workers,
            "skip_unreadable": self.skip_unreadable,
            "cache": self.cache,
            "cache_limit": self.cache_limit,
        }

    def training_arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments that all training functions take."""
        return {
            **self.shared_arguments(),
            "out": self.out,
            "resume": self.resume,
            "checkpoint_minutes": self.checkpoint_minutes,
            "track": self.track,
        }


def with_run_options(*excluded: str) -> Callable[[Command], Command]:
    """Adds the fields of :class:`RunOptions` to a command's signature, after its own parameters.

    The command takes them as a single keyword argument ``options``.

    Args:
        excluded: names of fields that the command does not offer; they keep their defaults.
    """
    return with_fields(RunOptions, "options", *excluded)


def default_recipe(data: str | None, distilled: bool, init: bool = False) -> str:
    """Returns the name of the recipe to use if none is given."""
    stem = "finetune-small-data" if init else "digits" if data == "digits" else "small-data"
    return f"{stem}-distilled" if distilled else stem


def parse_image_size(text: str) -> int | list[int]:
    """Parses ``384`` to 384 and ``256x192`` to height and width.

    Raises:
        UserError: the text has neither form.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) <= 5 for side in sides):
        raise UserError(f"--image-size {text!r} is not a size", "write 384, or height x width as 256x192")
    return int(sides[0]) if len(sides) == 1 else [int(side) for side in sides]


def recipe_settings(assignments: Sequence[str] | None, options: Mapping[str, object]) -> dict[str, str]:
    """Returns recipe values to change, as :meth:`Recipe.with_settings` takes them.

    Args:
        assignments: values of ``--set``, which take precedence.
        options: recipe key -> value of the option that sets it; None if it is not given.

    Raises:
        UserError: an assignment without ``=``.
    """
    settings = {name: str(value) for name, value in options.items() if value is not None}
    if (size := settings.get("model.image_size")) is not None:
        settings["model.image_size"] = str(parse_image_size(size))
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} has no value", "write NAME=VALUE, such as optimizer.lr=1e-3")
        settings[name.strip()] = value.strip()
    return settings


def check_init_shape(init: str | None, shape: str | None, option: str = "--model") -> None:
    """Checks that no shape is given beside a checkpoint, which has its own.

    Raises:
        UserError: both are given.
    """
    if init is not None and shape is not None:
        raise UserError(f"--init and {option} both set the shape of the model", "leave one of them out")


def check_one_process(command: str) -> None:
    """Checks that a command which torchrun cannot divide runs in one process.

    Raises:
        UserError: torchrun has started several; in the others than the first, which reports it, a PeerError.
    """
    if world_size() > 1:
        problem, remedy = f"`deit {command}` runs in one process", "start it without torchrun"
        raise UserError(problem, remedy) if is_main() else PeerError(problem, remedy, UserError.exit_code)


def image_files(path: Path) -> list[Path]:
    """Returns a file itself, or the image files below a folder, sorted, and prints what else is in the folder.

    Raises:
        UserError: the path does not exist, or the folder cannot be opened or contains no images.
    """
    from deit.images.listing import list_folder
    from deit.system.progress import print_status

    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist", "check the path")
        return [path]
    try:
        folder = list_folder(path)
    except OSError as error:
        raise UserError(f"{path} cannot be opened", error.strerror or "check its permissions") from error
    left_out = folder.all_left_out().describe()
    images = [path / name for name in folder.image_paths()]
    if not images:
        raise UserError(f"{path} contains no images", f"it has {left_out}" if left_out else "pass a folder with image files")
    if left_out:
        print_status(f"Not read in {path}: {left_out}")
    return images


HEAD_COLUMNS = (
    Column("head"),
    Column("top-1", "{:.2%}", "top1"),
    Column("top-5", "{:.2%}", "top5"),
    Column("loss", "{:.4f}"),
    Column("calibration error", "{:.2%}", "calibration_error"),
)


def head_rows(evaluation: Evaluation, teacher: Evaluation | None = None) -> list[list[Any]]:
    """Returns the metrics of the teacher, if any, and of each head, in the columns ``HEAD_COLUMNS``."""
    metrics = {} if teacher is None else {"teacher": teacher.main}
    metrics |= evaluation.heads
    return [[head, row.top1, row.top5, row.loss, row.calibration_error] for head, row in metrics.items()]


def print_heads(output: Output, evaluation: Evaluation, name: str, teacher: Evaluation | None = None) -> None:
    """Prints the metrics of the teacher, if any, and of each head, under the name of the data set or split."""
    title = f"{name}, {evaluation.images:,} images, {evaluation.images_per_second:,.0f} images/s"
    output.table(HEAD_COLUMNS, head_rows(evaluation, teacher), title)


def print_result(result: TrainResult, output: Output, *next_steps: str) -> None:
    """Prints a finished run: the metrics of each head, and for people what to do next."""
    if output.as_json:
        print_json(result_dict(result))
        return
    print_heads(output, result.evaluation, result.split, result.teacher)
    output.line()
    for line in next_steps:
        output.line(line)


def result_dict(result: TrainResult) -> dict[str, Any]:
    """Returns a finished run as JSON values."""
    content = {
        "run": str(result.directory),
        "model": str(result.directory / BEST_NAME),
        "split": result.split,
        **result.evaluation.to_dict(),
    }
    return content if result.teacher is None else {**content, "teacher": result.teacher.summary()}
