"""Asked and used minutes of `deit teacher train` and `deit train` with `--minutes`, on four generated folders.

    python -m benchmarks.minutes [--minutes 10] [--data DIR] [--folders NAME ...] [--quick] [--write]

- ``small``: 3,500 PNG images of 86 x 64 pixels;
- ``tiny``: 48,000 PNG images of 38 x 28 pixels;
- ``large``: 6,500 PNG images of mixed widths, 400 to 1,200 pixels;
- ``photos``: 2,000 JPEG images of 12 megapixels.

A class is a color and a direction of stripes; images of a class differ by a crop. Of the photos, only every tenth is encoded;
its copies differ by a comment in the file. The folders take some 5 GB. They are written into a temporary folder, or into
``--data``, where they are kept and used again. The teacher has 30% of the minutes and the student the rest. Each command is a
process, timed from its start to its end; nothing else should run on the machine.

``--quick`` makes a tenth of the images. The last line printed is the result as JSON. ``--write`` writes ``minutes.json`` and
``minutes.md``, and keeps what they have of other folders if that was measured with the same options, hardware and software.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.reporting import RESULTS, dates, hardware_and_software, publish
from deit.checkpoints.run_log import read_log
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import choose_device
from deit.system.progress import print_status

CLASSES = 10
TEST_SHARE = 0.1
TEACHER_SHARE = 0.3  # of the minutes
TOLERANCE = 0.1
COPIES = 10  # of a photo
QUICK = 0.1  # share of the images
DONE_NAME = "complete"  # written last
NAME = "minutes"  # of the committed result


@dataclass(frozen=True)
class Folder:
    """A folder of generated images.

    Attributes:
        images: number of images.
        sides: smallest and largest width in pixels; the height is three quarters of it.
        suffix: of the files.
        description: for the table.
    """

    images: int
    sides: tuple[int, int]
    suffix: str
    description: str


FOLDERS = {
    "small": Folder(3_500, (86, 86), "png", "3,500 small images"),
    "tiny": Folder(48_000, (38, 38), "png", "48,000 tiny images"),
    "large": Folder(6_500, (400, 1_200), "png", "6,500 large PNGs of mixed sizes"),
    "photos": Folder(2_000, (4_000, 4_000), "jpg", "2,000 JPEGs of 12 megapixels"),
}


def canvas(label: int, side: int) -> Image.Image:
    """Returns stripes in the color and the direction of a class, with noise, 1.25 times as large as an image of a width."""
    rng = np.random.default_rng(label)
    width, height = side * 5 // 4, side * 15 // 16
    angle = np.pi * label / CLASSES
    y, x = np.mgrid[:height, :width]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 16 * np.pi / side)
    color = rng.uniform(60, 190, 3)
    noise = rng.normal(0, 1.5, (height, width, 1))
    return Image.fromarray(np.clip(color + 40 * stripes[..., None] + noise, 0, 255).astype(np.uint8))


def write_folder(path: Path, folder: Folder, share: float) -> None:
    """Writes ``path/train/CLASS`` and ``path/test/CLASS``, unless they are complete."""
    if (path / DONE_NAME).is_file():
        return
    images_per_class = round(folder.images * share / CLASSES)
    for label in range(CLASSES):
        images = encoded_images(folder, label)
        for number in range(images_per_class):
            split = "test" if number < TEST_SHARE * images_per_class else "train"
            file = path / split / f"class {label}" / f"{number:05d}.{folder.suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(next(images))
    (path / DONE_NAME).touch()


def encoded_images(folder: Folder, label: int) -> Iterator[bytes]:
    """Yields the files of a class, without end."""
    low, high = folder.sides
    drawn, rng = canvas(label, high), np.random.default_rng((label, folder.images))
    for number in count():
        width = int(rng.integers(low, high + 1))
        height = width * 3 // 4
        left, top = int(rng.integers(drawn.width - width + 1)), int(rng.integers(drawn.height - height + 1))
        buffer = io.BytesIO()
        image = drawn.crop((left, top, left + width, top + height))
        if folder.suffix == "png":
            image.save(buffer, "png", compress_level=1)
            yield buffer.getvalue()
            continue
        image.save(buffer, "jpeg", quality=75)
        start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
        for copy in range(COPIES):
            comment = f"{number:08d}{copy:08d}".encode()
            yield start + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + rest


def run_command(arguments: list[str], run: Path, minutes: float) -> dict[str, Any]:
    """Runs a training command. Returns the asked and used minutes, and what was trained."""
    start = time.monotonic()
    command = [sys.executable, "-c", "from deit.cli.main import run; run()", *arguments]
    subprocess.run([*command, "--minutes", f"{minutes:g}", "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    used = (time.monotonic() - start) / 60
    recipe, rows = Recipe.load(run / "recipe.toml"), read_log(run)
    images = sum(row["images_per_second"] * row["seconds"] for row in rows)
    height, width = recipe.image_hw
    shape = f"{height} x {width}"
    if isinstance(recipe.model, Transformer):
        config = recipe.model.config()
        shape += f", {config.grid[0]} x {config.grid[1]} patches, width {config.hidden_size}, depth {config.num_hidden_layers}"
    return {
        "asked": minutes,
        "used": used,
        "samples": round(images),
        "images_per_second": images / sum(row["seconds"] for row in rows),
        "corrections": len(recipe.corrections),
        "shape": shape,
    }


def measure(data: Path, runs: Path, minutes: float) -> dict[str, dict[str, Any]]:
    """Trains a teacher and a student on a folder."""
    teacher, student = runs / "teacher", runs / "student"
    return {
        "teacher": run_command(["teacher", "train", str(data)], teacher, round(TEACHER_SHARE * minutes, 2)),
        "student": run_command(
            ["train", str(data), "--teacher", str(teacher)], student, round((1 - TEACHER_SHARE) * minutes, 2)
        ),
    }


@contextmanager
def data_folder(path: Path | None) -> Iterator[Path]:
    """Yields the given folder, or a temporary one."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time of teacher and student together")
    parser.add_argument("--data", type=Path, help="keep the generated folders here and use them again")
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    header = {**hardware_and_software(choose_device(), versions), "minutes": options.minutes, "quick": options.quick}
    results = [row for row in previous_results(header) if row["folder"] not in options.folders] if options.write else []
    with data_folder(options.data) as root, tempfile.TemporaryDirectory() as runs:
        for name in options.folders:
            data = root / (f"{name}-quick" if options.quick else name)
            write_folder(data, FOLDERS[name], QUICK if options.quick else 1.0)
            for model, row in measure(data, Path(runs) / name, options.minutes).items():
                print_status(f"{name}, {model}: {row['used']:.2f} of {row['asked']:g} minutes")
                results.append({"date": date.today().isoformat(), "folder": name, "model": model, **row})
    result = {**header, "results": sorted(results, key=lambda row: list(FOLDERS).index(row["folder"]))}
    publish(result, table(result), NAME if options.write else None)


def previous_results(header: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the committed result, if it has the same header."""
    path = RESULTS / f"{NAME}.json"
    previous: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    has_same_header = all(previous.get(name) == value for name, value in header.items())
    return list(previous["results"]) if has_same_header else []


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    command = f"python -m benchmarks.minutes --minutes {result['minutes']:g}{' --quick' if result['quick'] else ''} --write"
    lines = [
        "# Asked and used minutes",
        "",
        f"{dates(result['results'])}, {result['hardware']}, {result['software']}.",
        "From the start of the command to its end, on generated folders"
        + (", with a tenth of the images." if result["quick"] else "."),
        f"Command: `{command}`.",
        "",
        "| data | | asked, min | used, min | difference | samples | images/s | corrections | size |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in result["results"]:
        difference = row["used"] / row["asked"] - 1
        lines.append(
            f"| {FOLDERS[row['folder']].description} | {row['model']} | {row['asked']:g} | {row['used']:.2f} | "
            f"{difference:+.1%} | "
            f"{row['samples']:,} | {row['images_per_second']:,.0f} | {row['corrections']} | {row['shape']} |"
        )
    kept = all(abs(row["used"] / row["asked"] - 1) <= TOLERANCE for row in result["results"])
    return "\n".join([*lines, "", f"All within {TOLERANCE:.0%}: {'yes' if kept else 'no'}."]) + "\n"


if __name__ == "__main__":
    main()
