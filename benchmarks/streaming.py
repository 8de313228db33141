"""Memory of an epoch from shards, and of a table of predictions: neither grows with the number of images.

    python -m benchmarks.streaming [--images 40000] [--write]

JPEG files of 64 pixels are written into a folder and packed. An epoch of training samples is made by one worker process from
the folder and from the shards. Then a tiny model at 32 pixels predicts all files into a table. Memory is the
proportional set size of the process and its children, after the given shares of the images. The last line printed is the
result as JSON.
``--write`` writes ``streaming.json`` and ``streaming.md``.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.reporting import environment, publish
from deit.config import DeiTConfig
from deit.data.loader import Loader
from deit.data.opening import open_data
from deit.data.packing import pack
from deit.inference.predict_files import predict_files
from deit.inference.predictor import Prediction, Predictor
from deit.models.modeling import DeiTForImageClassification
from deit.recipes.presets import get_recipe
from deit.recipes.samples import training_samples, view_steps

SHARES = (0.1, 0.5, 1.0)
MODEL = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}


def write_images(folder: Path, count: int) -> None:
    """Writes JPEG files of noise in two classes, a few of which repeat."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(100):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number // 1000:04d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])


def memory() -> float:
    """Returns the megabytes of memory of this process and its children; what they share is counted once."""
    processes, total = [os.getpid()], 0
    while processes:
        folder = Path("/proc", str(processes.pop()))
        rows = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        total += int(rows["Pss"].split()[0])
        for task in (folder / "task").iterdir():
            processes += map(int, (task / "children").read_text().split())
    return total / 1024


def measure_epoch(data: Path) -> dict[str, Any]:
    """Makes all training samples of an epoch."""
    recipe = get_recipe("small-data").tiny().replace(batch_size=64)
    source = open_data(data).train
    loader = Loader(training_samples(recipe, source), workers=1)
    plans = [plan for step in view_steps(recipe, len(source.labels), 0) for plan in step]
    seen = Counter(len(plans))
    for _ in loader.run(plans):
        seen.advance()
    loader.close()
    return {"memory": seen.memory}


def measure_table(folder: Path, images: Sequence[str]) -> dict[str, Any]:
    """Predicts all images into a table."""
    DeiTForImageClassification(DeiTConfig(**MODEL, num_labels=2)).save_pretrained(folder / "model")
    predictor = _CountingPredictor.from_pretrained(folder / "model", "cpu")
    assert isinstance(predictor, _CountingPredictor)
    predictor.seen = Counter(len(images))
    predict_files(predictor, images, folder / "table.parquet")
    return {"memory": predictor.seen.memory}


class Counter:
    """Measures the memory after the given shares of some work."""

    def __init__(self, total: int) -> None:
        self._left = [(share, int(share * total)) for share in SHARES]
        self._done = 0
        self.memory: list[float] = []

    def advance(self) -> None:
        self._done += 1
        if self._left and self._done >= self._left[0][1]:
            self._left.pop(0)
            self.memory.append(memory())


class _CountingPredictor(Predictor):
    seen: Counter

    def stream(self, images: Iterable[Any], top: int = 5, names: Iterable[str] = ()) -> Iterable[Prediction]:  # type: ignore[override]
        for prediction in super().stream(images, top, names):
            self.seen.advance()
            yield prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "photos", arguments.images)
        packed = pack(folder / "photos", folder / "shards", shard_mb=16)
        rows: dict[str, dict[str, Any]] = {}
        for data, title in (("photos", "epoch from a folder"), ("shards", "epoch from shards")):
            rows[title] = measure_epoch(folder / data)
        images = sorted(str(path) for path in (folder / "photos").rglob("*.jpg"))
        rows["predictions into Parquet"] = measure_table(folder, images)
    result = {
        **environment(torch.device("cpu"), {"torch": torch.__version__}),
        "images": arguments.images,
        "shards": packed.shards,
        "rows": rows,
    }
    publish(result, table(result), "streaming" if arguments.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = [f"| {name} | {' | '.join(f'{value:,.0f}' for value in row['memory'])} |" for name, row in result["rows"].items()]
    return "\n".join(
        [
            "# Memory of an epoch and of a table of predictions",
            "",
            f"{result['date']}, {result['hardware']}, {result['software']}.",
            f"`python -m benchmarks.streaming --images {result['images']}`: JPEG files of 64 pixels,",
            f"{result['shards']} shards, one worker process; a tiny model. MB of memory of all processes after 10%,",
            "50% and all of the images.",
            "",
            "| | 10% | 50% | 100% |",
            "|---|--:|--:|--:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
