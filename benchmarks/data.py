"""Throughput of the training data pipeline on one core, beside timm and torchvision: DeiT's augmentation at 224 pixels.

    python -m benchmarks.data [--repeats 9] [--write]

From files on disk to a mixed, normalized float32 batch with soft targets: decoding, random resized crop, flip, RandAugment
rand-m9-mstd0.5-inc1, random erasing, mixup or cutmix, with three repeats of each image. The photos are crops of scikit-learn's
two sample photos with added grain: 500 x 375 pixels, a typical size in ImageNet; 2000 x 1500, a small photo of a phone or
camera; 4000 x 3000, a photo of 12 megapixels; and the two large sizes as PNG.

Each contender runs in a process of its own with one thread, and they take turns. Figures are samples per second of that
process's CPU time, which other programs on the machine disturb less than wall-clock time: median and quartiles over the turns.

The last line printed is the result as JSON. ``--write`` writes ``data.json`` and ``data.md``.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
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

from benchmarks.contender import Contender
from benchmarks.reporting import environment, publish, quartiles, with_quartiles
from deit.data.image_cache import ImageCache, decoding_settings
from deit.data.image_hashes import content_hashes
from deit.data.image_store import ImageStore
from deit.data.loader import TrainSamples
from deit.data.sampler import epoch_steps, micro_batches
from deit.data.sources import FileSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.images.decoding import configure_pillow

IMAGE_SIZE = 224
REPEATS = 3
CLASSES = 1000
BATCH = 128  # the recipe's micro-batch
PHOTOS = {  # (width, height), format -> number of different files, and of samples per turn
    ((500, 375), "jpg"): (32, 256),
    ((2000, 1500), "jpg"): (8, 64),
    ((4000, 3000), "jpg"): (8, 32),
    ((2000, 1500), "png"): (8, 32),
    ((4000, 3000), "png"): (4, 16),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_MAGNITUDE = 9.99  # of timm's RandAugment: Pillow 13 refuses its `posterize` at 10
TRAINING_SPEEDS = {  # samples per second
    "tiny on two CPU cores": 36,
    "an older GPU": 1000,
    "small on one H100 (goal)": 12_000,
    "tiny on one H100 (goal)": 20_000,
}

OURS, OURS_WITHOUT_REPEATS = "ours", "ours, without repeats"
OURS_KEPT, OURS_KEPT_WITHOUT_REPEATS = "ours, decoded images kept", "ours, kept, without repeats"
TIMM, TIMM_PREFETCHER = "timm", "timm, its prefetcher"
TORCHVISION, TORCHVISION_TENSORS = "torchvision, Pillow", "torchvision, tensors"
PEERS = (TIMM, TIMM_PREFETCHER, TORCHVISION, TORCHVISION_TENSORS)

REMARKS = """\
timm: `create_transform` with `RandomErasing` on the CPU, the default collation and `Mixup`. "its prefetcher" is the other mode
of its loader: `FastCollateMixup` on 8-bit images, then normalization and erasing of whole batches. torchvision: its `v2`
transforms, with each of RandAugment's two operations applied with probability 0.5, as in timm; with tensors, files are decoded
by `decode_image`, and rotations are bilinear, because torchvision has bicubic ones for Pillow images only. Both draw samples
with timm's `RepeatAugSampler` and decode a file for each. "ours, without repeats" also decodes a file for each
sample. "kept" is `--cache disk`, after each image was decoded once.

Where our pipeline saves time: it decodes once for the three repeats of an image; it uses torch's 8-bit resize where timm uses
Pillow's; shear and translation read four pixels in place of sixteen, with the same bits; it decodes JPEG files at half the size
or less where the three crops allow it; it normalizes in two passes, and mixes in place.""".splitlines()

Pipeline = Callable[[int], int]  # makes the batches of an epoch, returns the number of samples


class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files as a data set of torch, like the folder data sets of torchvision and timm."""

    def __init__(self, files: list[Path], decode: Callable[[Path], Any], transform: Callable[[Any], Any]) -> None:
        self.files, self.decode, self.transform = files, decode, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.decode(self.files[index])), index % CLASSES


def crop_photos(folder: Path, size: tuple[int, int], suffix: str, count: int) -> list[Path]:
    """Writes crops of the sample photos as files, the same on every machine, and returns their paths."""
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for seed in range(count):
        rng, photo = np.random.default_rng(seed), photos[seed % len(photos)]
        width = int(rng.integers(320, 569))
        height = width * 3 // 4
        left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        crop = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        values = np.asarray(crop) + rng.normal(0, 4, (size[1], size[0], 3))
        files.append(folder / f"{size[0]}-{seed}.{suffix}")
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def decode_with_pillow(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def our_pipeline(files: list[Path], repeats: int, keep: bool = False) -> Pipeline:
    classes = tuple(str(number) for number in range(CLASSES))
    source = FileSource(files[0].parent, tuple(file.name for file in files), classes, np.arange(len(files)) % CLASSES)
    transform = TrainTransform(Augmentation(repeats=repeats), IMAGE_SIZE, IMAGE_SIZE)
    cache = None
    if keep:
        store = ImageStore(files[0].parent / "kept", 10**11)
        cache = ImageCache(content_hashes(source), decoding_settings(None), store, reduces=True)
    samples = TrainSamples(source, transform, Mixing(mixup=0.8, cutmix=1.0), seed=0, smoothing=0.1, cache=cache)
    if cache is not None:
        for index in range(len(set(files))):
            with cache.open(source, index, transform.smallest_scale):
                pass

    def run_epoch(epoch: int) -> int:
        plans = epoch_steps(len(files), len(files), 0, epoch, repeats)
        return sum(len(samples.batch(part).labels) for plan in plans for part in micro_batches(plan, BATCH))

    return run_epoch


def loader_pipeline(loader: Any, sampler: RepeatAugSampler, mix: Callable[[Any, Any], Any] | None) -> Pipeline:
    """Returns the pipeline of a loader of torch; ``mix`` mixes a batch, and is None if the loader does so itself."""

    def run_epoch(epoch: int) -> int:
        sampler.set_epoch(epoch)  # type: ignore[no-untyped-call]
        count = 0
        for images, labels in loader:
            pixels, targets = (images, labels) if mix is None else mix(images, labels)
            assert pixels.dtype == torch.float32
            assert pixels.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)
            assert targets.shape == (len(pixels), CLASSES)
            count += len(pixels)
        return count

    return run_epoch


def timm_pipeline(files: list[Path], prefetcher: bool) -> Pipeline:
    data: Any = timm.data  # untyped
    erasing = {} if prefetcher else {"re_prob": 0.25, "re_mode": "pixel"}
    transform = data.create_transform(
        IMAGE_SIZE, True, use_prefetcher=prefetcher, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", **erasing
    )
    for operation in transform.transforms[2].ops:
        operation.magnitude_max = MAX_MAGNITUDE
    if not prefetcher:
        transform.transforms[-1].device = "cpu"
    dataset = ImageFiles(files, decode_with_pillow, transform)
    sampler = RepeatAugSampler(dataset, 1, 0, num_repeats=REPEATS, selected_round=0)  # type: ignore[no-untyped-call]
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": CLASSES}
    if not prefetcher:
        return loader_pipeline(DataLoader(dataset, BATCH, sampler=sampler), sampler, data.Mixup(**mixing))
    loader = DataLoader(dataset, BATCH, sampler=sampler, collate_fn=data.FastCollateMixup(**mixing))
    device = torch.device("cpu")
    prefetching = PrefetchLoader(loader, MEAN, STD, device=device, re_prob=0.25, re_mode="pixel")
    return loader_pipeline(prefetching, sampler, None)


def torchvision_pipeline(files: list[Path], tensors: bool) -> Pipeline:
    rotation = InterpolationMode.BILINEAR if tensors else InterpolationMode.BICUBIC
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            *[v2.RandomApply([v2.RandAugment(1, 9, interpolation=rotation, fill=[124, 116, 104])], 0.5) for _ in range(2)],
            *([] if tensors else [v2.PILToTensor()]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
            v2.RandomErasing(0.25, value="random"),
        ]
    )
    decode = (lambda path: torchvision.io.decode_image(str(path))) if tensors else decode_with_pillow
    dataset = ImageFiles(files, decode, transform)
    sampler = RepeatAugSampler(dataset, 1, 0, num_repeats=REPEATS, selected_round=0)  # type: ignore[no-untyped-call]
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)])
    return loader_pipeline(DataLoader(dataset, BATCH, sampler=sampler), sampler, mix)


PIPELINES: dict[str, Callable[[list[Path]], Pipeline]] = {
    OURS: lambda files: our_pipeline(files, REPEATS),
    OURS_WITHOUT_REPEATS: lambda files: our_pipeline(files, 1),
    OURS_KEPT: lambda files: our_pipeline(files, REPEATS, keep=True),
    OURS_KEPT_WITHOUT_REPEATS: lambda files: our_pipeline(files, 1, keep=True),
    TIMM: lambda files: timm_pipeline(files, prefetcher=False),
    TIMM_PREFETCHER: lambda files: timm_pipeline(files, prefetcher=True),
    TORCHVISION: lambda files: torchvision_pipeline(files, tensors=False),
    TORCHVISION_TENSORS: lambda files: torchvision_pipeline(files, tensors=True),
}


def serve(connection: Connection, job: tuple[str, list[Path]]) -> None:
    """Runs a contender: an epoch per request, which is the number of the epoch; replies samples and seconds of CPU time."""
    name, files = job
    configure_pillow()  # for all contenders
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    run_epoch = PIPELINES[name](files)
    connection.send("ready")
    for epoch in iter(connection.recv, None):
        start = time.process_time()
        count = run_epoch(epoch)
        connection.send((count, time.process_time() - start))
    connection.send("done")


def measure(files: list[Path], repeats: int) -> dict[str, dict[str, float]]:
    """Returns samples per second of CPU time by contender: median and quartiles over the turns."""
    contenders = {name: Contender(serve, (name, files)) for name in PIPELINES}
    rates: dict[str, list[float]] = {name: [] for name in PIPELINES}
    for epoch in range(repeats + 1):
        for name, contender in contenders.items():
            count, seconds = contender.request(epoch)
            if count != len(files):
                raise SystemExit(f"{name} made {count} samples instead of {len(files)}")
            if epoch:  # the first is a warm-up
                rates[name].append(count / seconds)
    for contender in contenders.values():
        contender.stop()
    return {name: quartiles(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="number of turns of each contender")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for (size, suffix), (distinct, samples) in PHOTOS.items():
            files = crop_photos(Path(folder), size, suffix, distinct)
            rates = measure(files * (samples // distinct), options.repeats)
            best_peer = max(PEERS, key=lambda name: rates[name]["median"])
            ratio = rates[OURS]["median"] / rates[best_peer]["median"]
            results.append(
                {"size": size, "format": suffix, "samples_per_second": rates, "best_peer": best_peer, "ratio": ratio}
            )
    versions = {
        "Pillow": PIL.__version__,
        "NumPy": np.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
    result = {**environment(torch.device("cpu"), versions), "repeats": options.repeats, "results": results}
    publish(result, table(result), "data" if options.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# The training pipeline",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        "Samples per second of CPU time on one core, from files to mixed batches at 224 pixels: median of",
        f"{result['repeats']} interleaved turns, and the quartiles. Command:",
        f"`python -m benchmarks.data --repeats {result['repeats']} --write`.",
        "",
        f"| photos | {' | '.join(PIPELINES)} | ours / best peer |",
        "|---|" + "--:|" * (len(PIPELINES) + 1),
    ]
    for row in result["results"]:
        cells = [with_quartiles(row["samples_per_second"][name], 0) for name in PIPELINES]
        width, height = row["size"]
        lines.append(f"| {width} x {height} {row['format']} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    lines += ["", "Number of cores that must load data so that training never waits:", ""]
    lines += [
        "| training | samples/s | "
        + " | ".join("{} x {} {}".format(*row["size"], row["format"]) for row in result["results"])
        + " |"
    ]
    lines += ["|---|--:|" + "--:|" * len(result["results"])]
    for name, speed in TRAINING_SPEEDS.items():
        cores = [speed / row["samples_per_second"][OURS]["median"] for row in result["results"]]
        lines.append(f"| {name} | {speed:,} | " + " | ".join(f"{count:.1f}" for count in cores) + " |")
    return "\n".join([*lines, "", *REMARKS]) + "\n"


if __name__ == "__main__":
    main()
