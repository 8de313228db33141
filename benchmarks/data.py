"""Images a second that one core makes ready for training, beside timm and torchvision: DeiT's whole pipeline at 224 pixels.

    python -m benchmarks.data [--repeats 9] [--write]

From JPEG files on disk to a mixed, normalized float32 batch with soft targets: decode, random resized crop, flip, RandAugment
rand-m9-mstd0.5-inc1, erasing, mixup or cutmix, with three repeats of each image. The photos are crops of scikit-learn's two
sample photos with grain, of 500 x 375 pixels, as ImageNet's mostly are, and of 2000 x 1500, as a phone's or camera's at least.

Each contender lives in a process of its own with one thread, and they take turns; the figures are samples a second of that
process's CPU time, so that another program on the machine disturbs them less: median and quartiles over the turns.

The last line printed is the result as JSON. ``--write`` writes ``data.json`` and ``data.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np
import PIL
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from deit.data.loader import TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.sources import FileSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.system.devices import describe

INPUT = 224
REPEATS = 3
CLASSES = 1000
BATCH = 128  # the recipe's micro-batch
SIZES = {(500, 375): (32, 256), (2000, 1500): (8, 64)}  # different files, and samples of a turn
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 9.99  # magnitude of timm's RandAugment: Pillow 13 refuses its posterizing at 10
SPEEDS = {
    "tiny on two CPU cores": 36,
    "an older GPU": 1000,
    "small on one H100 (goal)": 12_000,
    "tiny on one H100 (goal)": 20_000,
}

OURS, UNSHARED = "ours", "ours, without repeats"
TIMM, TIMM_FAST, VISION, VISION_TENSORS = "timm", "timm, its prefetcher", "torchvision, Pillow", "torchvision, tensors"
PEERS = (TIMM, TIMM_FAST, VISION, VISION_TENSORS)

REMARKS = """\
timm: `create_transform` with `RandomErasing` on the CPU, the default collation and `Mixup`; "its prefetcher" is the other way
that its loader goes, with `FastCollateMixup` on 8 bits and normalization and erasing of whole batches. torchvision: its `v2`
transforms, each of RandAugment's two operations with a probability of a half as in timm's; with tensors, files are decoded
by `decode_image`, and turns are bilinear, since it has bicubic ones for Pillow images alone. Both draw samples by timm's
`RepeatAugSampler` and decode a file for each. "Ours, without repeats" decodes a file for each sample too.

Where ours saves: one decoding for the three repeats of an image; torch's resize of 8 bits, where timm has Pillow's; slants and
shifts of four pixels in place of sixteen with the same bits; JPEG decoded at half the size or less where the three
crops allow it; normalization in two passes, and mixing in place.""".splitlines()


class Files(Dataset[tuple[Any, int]]):
    """Image files, as torchvision's and timm's folders hand them out."""

    def __init__(self, files: list[Path], decode: Callable[[Path], Any], transform: Callable[[Any], Any]) -> None:
        self.files, self.decode, self.transform = files, decode, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.decode(self.files[index])), index % CLASSES


def photos(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """JPEG files, the same on every machine."""
    samples = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for seed in range(count):
        rng, image = np.random.default_rng(seed), samples[seed % len(samples)]
        width = int(rng.integers(320, 569))
        height = width * 3 // 4
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        image = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        grain = np.asarray(image) + rng.normal(0, 4, (size[1], size[0], 3))
        files.append(folder / f"{size[0]}-{seed}.jpg")
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def pillow(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def ours(files: list[Path], repeats: int) -> Callable[[int], int]:
    """The training batches of an epoch."""
    names = tuple(str(name) for name in range(CLASSES))
    source = FileSource(files[0].parent, tuple(file.name for file in files), names, np.arange(len(files)) % CLASSES)
    transform = TrainTransform(Augmentation(repeats=repeats), INPUT, INPUT)
    samples = TrainSamples(source, transform, Mixing(mixup=0.8, cutmix=1.0), seed=0, smoothing=0.1)

    def turn(epoch: int) -> int:
        plans = epoch_steps(len(files), len(files), 0, epoch, repeats)
        return sum(len(samples.batch(piece).labels) for plan in plans for piece in micro_batches(plan, BATCH))

    return turn


def through(loader: Any, sampler: RepeatAugSampler, mix: Callable[[Any, Any], Any] | None) -> Callable[[int], int]:
    """An epoch of a loader, every batch mixed."""

    def turn(epoch: int) -> int:
        sampler.set_epoch(epoch)  # type: ignore[no-untyped-call]
        count = 0
        for images, labels in loader:
            pixels, targets = (images, labels) if mix is None else mix(images, labels)
            assert pixels.dtype == torch.float32
            assert pixels.shape[1:] == (3, INPUT, INPUT)
            assert targets.shape == (len(pixels), CLASSES)
            count += len(pixels)
        return count

    return turn


def timms(files: list[Path], prefetcher: bool) -> Callable[[int], int]:
    data: Any = timm.data  # untyped
    erasing = {} if prefetcher else {"re_prob": 0.25, "re_mode": "pixel"}
    transform = data.create_transform(
        INPUT, True, use_prefetcher=prefetcher, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", **erasing
    )
    for operation in transform.transforms[2].ops:
        operation.magnitude_max = MOST
    if not prefetcher:
        transform.transforms[-1].device = "cpu"
    dataset = Files(files, pillow, transform)
    sampler = RepeatAugSampler(dataset, 1, 0, num_repeats=REPEATS, selected_round=0)  # type: ignore[no-untyped-call]
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": CLASSES}
    if not prefetcher:
        return through(DataLoader(dataset, BATCH, sampler=sampler), sampler, data.Mixup(**mixing))
    loader = DataLoader(dataset, BATCH, sampler=sampler, collate_fn=data.FastCollateMixup(**mixing))
    device = torch.device("cpu")
    return through(PrefetchLoader(loader, MEAN, STD, device=device, re_prob=0.25, re_mode="pixel"), sampler, None)


def torchvisions(files: list[Path], tensors: bool) -> Callable[[int], int]:
    turns = InterpolationMode.BILINEAR if tensors else InterpolationMode.BICUBIC
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(INPUT, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            *[v2.RandomApply([v2.RandAugment(1, 9, interpolation=turns, fill=[124, 116, 104])], 0.5) for _ in range(2)],
            *([] if tensors else [v2.PILToTensor()]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
            v2.RandomErasing(0.25, value="random"),
        ]
    )
    decode = (lambda path: torchvision.io.decode_image(str(path))) if tensors else pillow
    dataset = Files(files, decode, transform)
    sampler = RepeatAugSampler(dataset, 1, 0, num_repeats=REPEATS, selected_round=0)  # type: ignore[no-untyped-call]
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)])
    return through(DataLoader(dataset, BATCH, sampler=sampler), sampler, mix)


CONTENDERS: dict[str, Callable[[list[Path]], Callable[[int], int]]] = {
    OURS: lambda files: ours(files, REPEATS),
    UNSHARED: lambda files: ours(files, 1),
    TIMM: lambda files: timms(files, prefetcher=False),
    TIMM_FAST: lambda files: timms(files, prefetcher=True),
    VISION: lambda files: torchvisions(files, tensors=False),
    VISION_TENSORS: lambda files: torchvisions(files, tensors=True),
}


def contend(name: str, files: list[Path], line: Connection) -> None:
    """A contender's process: told a turn's number, it makes an epoch and answers with samples a second of CPU time."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    turn = CONTENDERS[name](files)
    while (epoch := line.recv()) is not None:
        start = time.process_time()
        count = turn(epoch)
        line.send((count, time.process_time() - start))


def measure(files: list[Path], repeats: int) -> dict[str, dict[str, float]]:
    """Samples a second by contender: median and quartiles over the turns."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes = []
    for name in CONTENDERS:
        lines[name], theirs = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, files, theirs), daemon=True))
        processes[-1].start()
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for epoch in range(repeats + 1):
        for name, line in lines.items():
            line.send(epoch)
            count, seconds = line.recv()
            if count != len(files):
                raise SystemExit(f"{name} made {count} samples of {len(files)}")
            if epoch:  # the first is for warming up
                rates[name].append(count / seconds)
    for line, process in zip(lines.values(), processes, strict=True):
        line.send(None)
        process.join()
    return {
        name: dict(zip(("low", "median", "high"), statistics.quantiles(each, n=4), strict=True)) for name, each in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each contender, at least 2")
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size, (different, samples) in SIZES.items():
            files = photos(Path(folder), size, different)
            rates = measure(files * (samples // different), options.repeats)
            best = max(PEERS, key=lambda name: rates[name]["median"])
            ratio = rates[OURS]["median"] / rates[best]["median"]
            results.append({"size": size, "samples_per_second": rates, "best_peer": best, "ratio": ratio})
    result = {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device("cpu")),
        "software": f"Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {np.__version__}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}",
        "repeats": options.repeats,
        "results": results,
    }
    print(table(result))
    if options.write:
        place = Path(__file__).parent / "results"
        place.mkdir(exist_ok=True)
        (place / "data.json").write_text(json.dumps(result, indent=1) + "\n")
        (place / "data.md").write_text(table(result))
    print(json.dumps(result))


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The training pipeline",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        "Samples a second of one core, from JPEG files to mixed batches at 224, median of",
        f"{result['repeats']} interleaved turns and the quartiles. Made by",
        f"`python -m benchmarks.data --repeats {result['repeats']} --write`.",
        "",
        f"| photos | {' | '.join(CONTENDERS)} | ours to the best other |",
        "|---|" + "--:|" * (len(CONTENDERS) + 1),
    ]
    for row in result["results"]:
        rates = [row["samples_per_second"][name] for name in CONTENDERS]
        cells = [f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})" for rate in rates]
        width, height = row["size"]
        lines.append(f"| {width} x {height} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    lines += ["", "Cores that must load so that training never waits:", ""]
    lines += [
        "| training | samples a second | " + " | ".join("{} x {}".format(*row["size"]) for row in result["results"]) + " |"
    ]
    lines += ["|---|--:|" + "--:|" * len(result["results"])]
    for name, speed in SPEEDS.items():
        cores = [speed / row["samples_per_second"][OURS]["median"] for row in result["results"]]
        lines.append(f"| {name} | {speed:,} | " + " | ".join(f"{each:.1f}" for each in cores) + " |")
    return "\n".join([*lines, "", *REMARKS]) + "\n"


if __name__ == "__main__":
    main()
