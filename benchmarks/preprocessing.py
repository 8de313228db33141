"""Images a second of our image processor beside those of transformers, on one core and on all.

    python -m benchmarks.preprocessing [--repeats 15] [--write]

32 images of 500 x 375, as ImageNet's mostly are, one by one and as one batch of 32, decoded beforehand and as JPEG files by
their paths, which every processor here opens itself. In each
repeat all contenders take their turn on the same images; the figure is the median over the repeats, with the quarter of the
repeats that was slower and the quarter that was faster beyond the range beside it. Ours and the Pillow backend give the same
bits, which is checked first. "Pillow's resize alone" is that of the whole image, on one thread.

The last line printed is the result as JSON. ``--write`` writes ``preprocessing.json`` and ``preprocessing.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

# Threads of torch that wait would spin for a while, and take a core from whoever has the next turn.
os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers.models.deit.image_processing_deit import DeiTImageProcessor as TorchvisionProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from deit.images.processor import DeiTImageProcessor
from deit.system.devices import describe

SIZE = (500, 375)
IMAGES = 32
CROPS: dict[str, dict[str, Any]] = {
    "squash to 256 x 256, crop 224": {},
    "shorter side to 256, crop 224": {"size": {"shortest_edge": 256}},
}
OURS, PILLOW, TORCHVISION, FLOOR = "ours", "transformers, Pillow", "transformers, torchvision", "Pillow's resize alone"

REMARKS = """\
Ours takes the images of a batch on as many threads as there are cores; the Pillow backend of transformers takes one after the
other. One image alone, or one core, is bound by Pillow's resize, most of our time and more than half of theirs: the same
bits are to be had from nothing faster that is installed. Ours gets below it by leaving out what the crop drops: before the
second of Pillow's two passes, and before the first where the step between pixels is a fraction that float32 holds exactly. The
torchvision backend resizes with weights of 16 bits, which is faster and gives other pixels; on two cores it would be faster
still if its waiting threads were allowed to spin, which would take a core from the next in turn.

Tried and left out: the passes as banded matrix products in float32 with near-ties done again in integers (Pillow's bits, 5 to
20 % slower); looking up all 256 values of a channel (twice the time of the three float32 steps that lead to the same
numbers).""".splitlines()

Job = Callable[[list[Any]], Any]


def photos(folder: Path) -> list[str]:
    """Paths of JPEG files with large shapes and fine grain, the same on every machine."""
    files = []
    for seed in range(IMAGES):
        rng = np.random.default_rng(seed)
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 3))
        files.append(str(folder / f"{seed}.jpg"))
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def decode(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def decoded(image: Image.Image | str) -> Image.Image:
    return decode(image) if isinstance(image, str) else image


def contenders(settings: dict[str, Any]) -> dict[str, Job]:
    """What is measured, by name; each takes a list of Pillow images."""
    ours, pillow, tensors = DeiTImageProcessor(**settings), DeiTImageProcessorPil(**settings), TorchvisionProcessor(**settings)
    target = (256, 256) if not settings else (round(256 * SIZE[0] / SIZE[1] - 0.5), 256)
    return {
        OURS: lambda images: ours(images),
        PILLOW: lambda images: pillow(images, return_tensors="pt"),
        TORCHVISION: lambda images: tensors(images, return_tensors="pt"),
        FLOOR: lambda images: [decoded(image).resize(target, Image.Resampling.BICUBIC) for image in images],
    }


def measure(jobs: dict[str, Job], batches: list[list[Any]], repeats: int) -> dict[str, Any]:
    """Images a second by contender: median and quartiles over the repeats."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            for batch in batches:
                job(batch)
            if repeat:  # the first is for warming up
                rates[name].append(sum(map(len, batches)) / (time.perf_counter() - start))
    return {
        name: dict(zip(("low", "median", "high"), statistics.quantiles(each, n=4), strict=True)) for name, each in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    files = photos(Path(folder.name))
    images = [decode(file) for file in files]
    results: list[dict[str, Any]] = []
    everything = sorted(os.sched_getaffinity(0))
    for cores in sorted({1, len(everything)}):
        os.sched_setaffinity(0, everything[:cores])
        torch.set_num_threads(cores)
        results += compare(cores, files, images, options.repeats)
    folder.cleanup()
    result = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device("cpu")),
        "software": f"Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {np.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        "repeats": options.repeats,
        "results": results,
    }
    print(table(result))
    if options.write:
        place = Path(__file__).parent / "results"
        place.mkdir(exist_ok=True)
        (place / "preprocessing.json").write_text(json.dumps(result, indent=1) + "\n")
        (place / "preprocessing.md").write_text(table(result))
    print(json.dumps(result))


def compare(cores: int, files: list[str], images: list[Image.Image], repeats: int) -> list[dict[str, Any]]:
    """All rows of the table for a number of cores."""
    results = []
    for crop, settings in CROPS.items():
        jobs = contenders(settings)
        ours, theirs = (jobs[name](images) for name in (OURS, PILLOW))
        if not torch.equal(ours["pixel_values"], theirs["pixel_values"]):
            raise SystemExit("ours and the Pillow backend of transformers give different pixels")
        for source, items in (("decoded", images), ("JPEG files", files)):
            for size in (1, IMAGES):
                batches = [list(items[start : start + size]) for start in range(0, IMAGES, size)]
                rates = measure(jobs, batches, repeats)
                ratio = rates[OURS]["median"] / rates[PILLOW]["median"]
                row = {"cores": cores, "crop": crop, "source": source, "batch": size}
                results.append({**row, "images_per_second": rates, "ratio": ratio})
    return results


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = (OURS, PILLOW, TORCHVISION, FLOOR)
    lines = [
        "# Preprocessing",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Images a second, 500 x 375, median of {result['repeats']} interleaved repeats and the quartiles; ours gives the",
        "bits of the Pillow backend of transformers. Made by "
        f"`python -m benchmarks.preprocessing --repeats {result['repeats']} --write`.",
        "",
        f"| cores | crop | images | batch | {' | '.join(names)} | ours to {PILLOW} |",
        "|--:|---|---|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in result["results"]:
        rates = [row["images_per_second"][name] for name in names]
        cells = [f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})" for rate in rates]
        lines.append(
            f"| {row['cores']} | {row['crop']} | {row['source']} | {row['batch']} | {' | '.join(cells)} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, "", *REMARKS]) + "\n"


if __name__ == "__main__":
    main()
