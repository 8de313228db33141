"""Images a second of our image processor beside those of transformers, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/preprocessing.py [--repeats 15] [--write]

32 images of 500 x 375, as ImageNet's mostly are, one by one and as one batch of 32, decoded beforehand and from JPEG. In each
repeat all contenders take their turn on the same images; the figure is the median over the repeats, with the quarter of the
repeats that was slower and the quarter that was faster beyond the range beside it. Ours and the Pillow backend give the same
bits, which is checked first. "Pillow's resize alone" is what is left if all else costs nothing, and the whole image is made.

The last line printed is the result as JSON. ``--write`` writes ``preprocessing.json`` and ``preprocessing.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers.models.deit.image_processing_deit import DeiTImageProcessor as TorchvisionProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from deit.devices import describe
from deit.image_processor import DeiTImageProcessor

SIZE = (500, 375)
IMAGES = 32
CROPS: dict[str, dict[str, Any]] = {
    "squash to 256 x 256, crop 224": {},
    "shorter side to 256, crop 224": {"size": {"shortest_edge": 256}},
}
OURS, PILLOW, TORCHVISION, FLOOR = "ours", "transformers, Pillow", "transformers, torchvision", "Pillow's resize alone"

Job = Callable[[list[Any]], Any]


def photos() -> list[bytes]:
    """JPEG files with large shapes and fine grain, the same on every machine."""
    files = []
    for seed in range(IMAGES):
        rng = np.random.default_rng(seed)
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def decode(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")


def contenders(settings: dict[str, Any]) -> dict[str, Job]:
    """What is measured, by name; each takes a list of Pillow images."""
    ours, pillow, tensors = DeiTImageProcessor(**settings), DeiTImageProcessorPil(**settings), TorchvisionProcessor(**settings)
    target = (256, 256) if not settings else (round(256 * SIZE[0] / SIZE[1] - 0.5), 256)
    return {
        OURS: lambda images: ours(images),
        PILLOW: lambda images: pillow(images, return_tensors="pt"),
        TORCHVISION: lambda images: tensors(images, return_tensors="pt"),
        FLOOR: lambda images: [image.resize(target, Image.Resampling.BICUBIC) for image in images],
    }


def measure(jobs: dict[str, Job], batches: list[list[Any]], prepare: Callable[[Any], Any], repeats: int) -> dict[str, Any]:
    """Images a second by contender: median and quartiles over the repeats."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            for batch in batches:
                job([prepare(image) for image in batch])
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
    torch.set_num_threads(1)
    files = photos()
    images = [decode(file) for file in files]
    results = []
    for crop, settings in CROPS.items():
        jobs = contenders(settings)
        ours, theirs = (jobs[name](images) for name in (OURS, PILLOW))
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        for source, items, prepare in (("decoded", images, lambda image: image), ("from JPEG", files, decode)):
            for size in (1, IMAGES):
                batches = [list(items[start : start + size]) for start in range(0, IMAGES, size)]
                rates = measure(jobs, batches, prepare, options.repeats)
                ratio = rates[OURS]["median"] / rates[PILLOW]["median"]
                results.append({"crop": crop, "source": source, "batch": size, "images_per_second": rates, "ratio": ratio})
    result = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device("cpu")),
        "software": f"Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {np.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        "threads": 1,
        "repeats": options.repeats,
        "results": results,
    }
    print(table(result))
    if options.write:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "preprocessing.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "preprocessing.md").write_text(table(result))
    print(json.dumps(result))


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = (OURS, PILLOW, TORCHVISION, FLOOR)
    lines = [
        "# Preprocessing",
        "",
        f"{result['date']}, {result['hardware']}, one thread, {result['software']}.",
        f"Images a second, 500 x 375, median of {result['repeats']} interleaved repeats and the quartiles; ours gives the",
        "bits of the Pillow backend of transformers. Made by "
        f"`OMP_NUM_THREADS=1 python benchmarks/preprocessing.py --repeats {result['repeats']} --write`.",
        "",
        f"| crop | images | batch | {' | '.join(names)} | ours to {PILLOW} |",
        "|---|---|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in result["results"]:
        rates = [row["images_per_second"][name] for name in names]
        cells = [f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})" for rate in rates]
        lines.append(f"| {row['crop']} | {row['source']} | {row['batch']} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
