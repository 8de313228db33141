"""Damaged files: each is read as it was, or refused by an error of ours, whatever its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deit.checkpoints.metadata import read_metadata
from deit.checkpoints.model_card import model_card
from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.run_log import read_log, write_log
from deit.checkpoints.tensors import open_index, open_tensors
from deit.config import config_from_dict
from deit.data.datasets.cifar import CIFAR10, cifar_splits
from deit.data.datasets.fine_grained import flowers_splits
from deit.data.datasets.imagenet import imagenet_real, imagenet_validation
from deit.data.datasets.inaturalist import INATURALIST_2018, inaturalist_splits
from deit.data.image_hashes import ImageHashes, read_image_hashes
from deit.data.opening import open_data
from deit.data.splits import read_record
from deit.distillation.cache_format import check_views, read_manifest
from deit.errors import CheckpointError, DeiTError
from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import open_bundle, write_bundle
from deit.models.modeling import DeiTForImageClassification
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.system.files import read_json, write_bytes, write_json
from deit.training.run_directory import read_run, write_run
from deit.training.state import newest_checkpoint, write_checkpoint
from tests.damage import damaged
from tests.helpers import noise, tiny_deit
from tests.unit.checkpoints.model_files import make_model, make_run, make_timm_model
from tests.unit.data import layouts
from tests.unit.distillation.test_cache_format import written
from tests.unit.training.trainers import tiny_trainer

VERSIONS = 60  # damaged versions of each file


@dataclass(frozen=True)
class Reader:
    """How a kind of file is written and read.

    Attributes:
        make: writes valid files below a directory.
        file: name of the file to damage.
        read: reads them; returns what can be compared.
        checked: the file has a checksum, so that a damaged one is never read as another content.
    """

    make: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]
    checked: bool = False


def tensors(directory: Path, name: str = "weights") -> dict[str, Any]:
    file = open_tensors(directory / name)
    return {name: tensor.tolist() for name, tensor in file.read(file.entries).items()}


def state() -> dict[str, Tensor]:
    return {"a": noise(3, 4), "b": noise(2).half()}


def torch_file(zipped: bool) -> Callable[[Path], object]:
    return lambda directory: torch.save(
        {"model": state(), "epoch": 3}, directory / "weights", _use_new_zipfile_serialization=zipped
    )


def sharded(directory: Path) -> None:
    save_file(state(), directory / "shard-1.safetensors")
    write_json(directory / "index.json", {"weight_map": dict.fromkeys(state(), "shard-1.safetensors")})


def read_shards(directory: Path) -> object:
    return [sorted(file.entries) for file in open_index(directory / "index.json")]


def checkpoint(directory: Path) -> None:
    write_checkpoint(directory / "checkpoints", tiny_trainer(directory)._snapshot())


def read_checkpoint(directory: Path) -> object:
    found = newest_checkpoint(directory / "checkpoints")[0]
    assert found is not None
    return asdict(found.state)


def run(directory: Path) -> None:
    make_run(directory)


def read_run_metadata(directory: Path) -> object:
    read_metadata(directory / "best")
    return model_card(directory / "best")


def bundle(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(bytes(range(256)))
    fields = {"format": "onnx", "precision": "fp32", "input_dtype": "uint8", "input_shape": (3, 32, 32)}
    write_bundle(directory, DeiTImageProcessor.for_size(32, 32), {**fields, "heads": ("class",), "classes": ("a", "b")})


def read_bundle(directory: Path) -> object:
    opened = open_bundle(directory)
    return opened.metadata.model_dump(), opened.processor.to_dict(), (directory / "model.onnx").read_bytes()


def cache(directory: Path) -> None:
    written(directory, np.arange(12) % 5)


def read_cache(directory: Path) -> object:
    manifest = read_manifest(directory)
    check_views(directory, manifest)
    return manifest.model_dump(), (directory / "view-000000.bin").read_bytes() if manifest.sha256 else b""


def settings(directory: Path) -> None:
    write_run(directory, get_recipe("small-data"), RunSettings("/photos"))


def log(directory: Path) -> None:
    rows = [{"epoch": epoch, "loss": 1 / epoch, "validation": {"top1": 0.5, "loss": 2.5}} for epoch in (1, 2, 3)]
    write_log(directory, rows)


def read_whole_log(directory: Path) -> object:
    """As a resumed run, which knows how many epochs there were."""
    rows = read_log(directory)
    if len(rows) < 3:
        raise CheckpointError("The log ends early")
    return rows


def tiny_model(directory: Path) -> None:
    DeiTForImageClassification(tiny_deit().with_classes(("a", "b"))).save_pretrained(directory)


def image_hashes(directory: Path) -> None:
    values = np.arange(3, dtype=np.uint64)
    write_bytes(directory / "training_images.bin", ImageHashes(values, values + 5).to_bytes())


def read_hashes(directory: Path) -> object:
    hashes = read_image_hashes(directory)
    return None if hashes is None else (hashes.train.tolist(), hashes.validation.tolist())


def real_labels(directory: Path) -> None:
    flat_imagenet(directory)
    (directory / "real.json").write_text(json.dumps([[number] for number in range(50)]))


def manifest(name: str, text: str) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        for number in range(4):
            layouts.photo(directory / f"{number}.jpg", number)
        (directory / name).write_text(text)

    return make


def split_names(directory: Path, name: str) -> object:
    splits = open_data(str(directory / name))
    return splits.train.classes, len(splits.train.labels)


def labels(splits: Any) -> object:
    return splits.train.classes, splits.train.labels.tolist()


def flat_imagenet(directory: Path) -> None:
    layouts.imagenet_flat(directory / "val")
    layouts.devkit(directory)


CSV = "path,label,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,cat,val\n3.jpg,dog,val\n"
JSONL = "".join(json.dumps({"path": f"{number}.jpg", "label": ["cat", "dog"][number % 2]}) + "\n" for number in range(4))
CHECKPOINT = "checkpoints/epoch-000000-step-00000000/"
READERS = {
    "safetensors": Reader(lambda path: save_file(state(), path / "weights"), "weights", tensors),
    "torch.save": Reader(torch_file(True), "weights", tensors, checked=True),
    "torch.save, legacy": Reader(torch_file(False), "weights", tensors),
    "index of shards": Reader(sharded, "index.json", read_shards),
    "model configuration": Reader(
        lambda path: write_json(path / "config.json", tiny_deit().to_dict()),
        "config.json",
        lambda path: config_from_dict(read_json(path / "config.json")).to_dict(),
    ),
    "configuration of a model": Reader(tiny_model, "config.json", lambda path: open_checkpoint(path).config),
    "configuration of timm": Reader(
        lambda path: make_timm_model(path / "m"), "m/config.json", lambda path: read_metadata(path / "m")
    ),
    "image processor": Reader(
        lambda path: DeiTImageProcessor.for_size(32, 32).save_pretrained(path),
        "preprocessor_config.json",
        lambda path: DeiTImageProcessor.from_pretrained(path).to_dict(),
    ),
    "hashes of images": Reader(image_hashes, "training_images.bin", read_hashes),
    "ImageNet real.json": Reader(real_labels, "real.json", lambda path: imagenet_real(path).labels.tolist()),
    "data record": Reader(make_model, "training.json", read_record),
    **{
        f"{name} of a run": Reader(run, file, read_run_metadata)
        for name, file in (("recipe", "recipe.toml"), ("evaluation", "evaluation.json"), ("settings", "run.json"))
    },
    "log of a run": Reader(run, "log.jsonl", read_run_metadata),
    "recipe": Reader(settings, "recipe.toml", lambda path: Recipe.load(path / "recipe.toml")),
    "settings": Reader(settings, "run.json", read_run),
    "log": Reader(log, "log.jsonl", read_whole_log, checked=True),
    **{
        f"{file} of a checkpoint": Reader(checkpoint, CHECKPOINT + file, read_checkpoint, checked=True)
        for file in ("manifest.json", "train_state.json", "model.safetensors", "optimizer.safetensors", "training.json")
    },
    "bundle": Reader(bundle, "bundle.json", read_bundle),
    "graph of a bundle": Reader(bundle, "model.onnx", read_bundle, checked=True),
    "processor of a bundle": Reader(bundle, "preprocessor_config.json", read_bundle, checked=True),
    "cache": Reader(cache, "cache.json", read_cache),
    "view of a cache": Reader(cache, "view-000000.bin", read_cache, checked=True),
    "CSV": Reader(manifest("a.csv", CSV), "a.csv", lambda path: split_names(path, "a.csv")),
    "JSON Lines": Reader(manifest("a.jsonl", JSONL), "a.jsonl", lambda path: split_names(path, "a.jsonl")),
    **{
        f"CIFAR {file}": Reader(
            layouts.cifar10, f"cifar-10-batches-bin/{file}", lambda path: labels(cifar_splits(CIFAR10, path))
        )
        for file in ("data_batch_1.bin", "batches.meta.txt")
    },
    **{
        f"flowers {file}": Reader(layouts.flowers, file, lambda path: labels(flowers_splits(path)))
        for file in ("imagelabels.mat", "setid.mat")
    },
    **{
        f"iNaturalist {file}": Reader(
            lambda path: layouts.inaturalist(path, 2018),
            file,
            lambda path: labels(inaturalist_splits(INATURALIST_2018, path)),
        )
        for file in ("train2018.json", "val2018.json", "categories.json")
    },
    **{
        f"ImageNet {file}": Reader(
            flat_imagenet, f"ILSVRC2012_devkit_t12/data/{file}", lambda path: imagenet_validation(path).labels.tolist()
        )
        for file in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
    },
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about damaged content
def test_damaged_file_is_read_as_it_was_or_refused(tmp_path: Path, kind: str) -> None:
    reader = READERS[kind]
    reader.make(tmp_path)
    file = tmp_path / reader.file
    content = file.read_bytes()
    expected = reader.read(tmp_path)
    refused = 0
    for version in damaged(content, VERSIONS):
        file.write_bytes(version)
        try:
            found = reader.read(tmp_path)
        except DeiTError:
            refused += 1
            continue
        assert not reader.checked or found == expected, version
    assert refused
    file.write_bytes(content)
    assert reader.read(tmp_path) == expected
