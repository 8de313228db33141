"""Throughput of our image processor and those of transformers, on one core and on all cores.

    python -m benchmarks.preprocessing [--repeats 15] [--write]

32 images of 500 x 375 pixels, a typical size in ImageNet, one by one and as one batch of 32; decoded beforehand, or as paths of
JPEG files, which every processor opens itself. In each repeat all contenders take turns on the same images; a figure is the
median over the repeats, with the quartiles. First the pixels of our processor and of the Pillow backend are checked to be equal
bit for bit. "Pillow's resize alone" resizes the whole image on one thread.

The last line printed is the result as JSON. ``--write`` writes ``preprocessing.json`` and ``preprocessing.md``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Otherwise idle threads of torch spin for a while and take a core from the contender of the next turn.
os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers.models.deit.image_processing_deit import DeiTImageProcessor as TorchvisionProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.images.decoding import configure_pillow
from deit.images.processor import DeiTImageProcessor
from deit.inference.benchmark import write_synthetic_photos

PHOTO_SIZE = (500, 375)  # of `write_synthetic_photos`
IMAGES = 32
CROPS: dict[str, dict[str, Any]] = {
    "squash to 256 x 256, crop 224": {},
    "shorter side to 256, crop 224": {"size": {"shortest_edge": 256}},
}
OURS, PILLOW, TORCHVISION = "ours", "transformers, Pillow", "transformers, torchvision"
RESIZE_ONLY = "Pillow's resize alone"
CONTENDERS = (OURS, PILLOW, TORCHVISION, RESIZE_ONLY)

REMARKS = """\
Our processor spreads the images of a batch over one thread per core; the Pillow backend of transformers processes them one
after the other. For a single image, or on one core, Pillow's resize is the bottleneck: most of our time and more than half of
theirs. No other installed library gives the same bits faster. Our processor takes less than a whole resize because it skips
pixels that the crop drops: before the second of Pillow's two passes, and before the first if the step between pixels is a
fraction that float32 represents exactly. The torchvision backend resizes with 16-bit weights, which is faster and gives other
pixels; on two cores it would be faster still if its idle threads were allowed to spin, which would take a core from the
contender of the next turn.

Tried and not adopted: the passes as banded float32 matrix products with near-ties recomputed in integers (Pillow's bits, 5 to
20 % slower); a lookup table for the 256 values of a channel (twice the time of the three float32 operations that give the same
numbers).""".splitlines()

Processor = Callable[[list[Any]], Any]


def decode(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def decode_if_path(image: Image.Image | str) -> Image.Image:
    return decode(image) if isinstance(image, str) else image


def make_contenders(settings: dict[str, Any]) -> dict[str, Processor]:
    """Returns the contenders by name; each takes a list of Pillow images or a list of paths."""
    ours, pillow, tensors = DeiTImageProcessor(**settings), DeiTImageProcessorPil(**settings), TorchvisionProcessor(**settings)
    target = (256, 256) if not settings else (round(256 * PHOTO_SIZE[0] / PHOTO_SIZE[1] - 0.5), 256)
    return {
        OURS: lambda images: ours(images),
        PILLOW: lambda images: pillow(images, return_tensors="pt"),
        TORCHVISION: lambda images: tensors(images, return_tensors="pt"),
        RESIZE_ONLY: lambda images: [decode_if_path(image).resize(target, Image.Resampling.BICUBIC) for image in images],
    }


def measure(contenders: dict[str, Processor], batches: list[list[Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Returns images per second by contender: median and quartiles over the repeats."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, process in contenders.items():
            start = time.perf_counter()
            for batch in batches:
                process(batch)
            if repeat:  # the first is a warm-up
                rates[name].append(sum(map(len, batches)) / (time.perf_counter() - start))
    return {name: quartiles(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="number of turns of each contender")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    configure_pillow()  # for all contenders
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in write_synthetic_photos(Path(folder), IMAGES)]
        images = [decode(file) for file in files]
        available = sorted(os.sched_getaffinity(0))
        for cores in sorted({1, len(available)}):
            os.sched_setaffinity(0, available[:cores])
            torch.set_num_threads(cores)
            results += compare(cores, files, images, options.repeats)
    versions = {
        "Pillow": PIL.__version__,
        "NumPy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    result = {**environment(torch.device("cpu"), versions), "repeats": options.repeats, "results": results}
    publish(result, table(result), "preprocessing" if options.write else None)


def compare(cores: int, files: list[str], images: list[Image.Image], repeats: int) -> list[dict[str, Any]]:
    """Returns the rows of the table for a number of cores."""
    results = []
    for crop, settings in CROPS.items():
        contenders = make_contenders(settings)
        ours, theirs = (contenders[name](images) for name in (OURS, PILLOW))
        if not torch.equal(ours["pixel_values"], theirs["pixel_values"]):
            raise SystemExit("our processor and the Pillow backend of transformers give different pixels")
        for source, items in (("decoded", images), ("JPEG files", files)):
            for batch_size in (1, IMAGES):
                batches = [list(items[start : start + batch_size]) for start in range(0, IMAGES, batch_size)]
                rates = measure(contenders, batches, repeats)
                ratio = rates[OURS]["median"] / rates[PILLOW]["median"]
                row = {"cores": cores, "crop": crop, "source": source, "batch": batch_size}
                results.append({**row, "images_per_second": rates, "ratio": ratio})
    return results


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Preprocessing",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        f"Images per second, 500 x 375: median of {result['repeats']} interleaved repeats, and the quartiles. Our processor",
        "returns the same bits as the Pillow backend of transformers. Command:",
        f"`python -m benchmarks.preprocessing --repeats {result['repeats']} --write`.",
        "",
        f"| cores | crop | images | batch | {' | '.join(CONTENDERS)} | ours / {PILLOW} |",
        "|--:|---|---|--:|" + "--:|" * (len(CONTENDERS) + 1),
    ]
    for row in result["results"]:
        cells = [with_quartiles(row["images_per_second"][name], 0) for name in CONTENDERS]
        lines.append(
            f"| {row['cores']} | {row['crop']} | {row['source']} | {row['batch']} | {' | '.join(cells)} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, "", *REMARKS]) + "\n"


if __name__ == "__main__":
    main()
