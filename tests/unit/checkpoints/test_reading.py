"""Every published format of a saved model can be opened, bit for bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.checkpoints.key_maps import to_layout
from deit.checkpoints.reading import Checkpoint, open_checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError
from deit.models.modeling import ViTForImageClassification
from tests.helpers import tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import (
    assert_equal,
    canonical_state,
    heads_of,
    shapes_of,
    timm_model,
    to_canonical,
    transformers_model,
)

CLASSES = [
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "ViTModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
]


def as_saved(_: Path) -> None:
    """Keeps the format of transformers 5."""


def as_pickle(folder: Path) -> None:
    """Converts to the default format of transformers 4, in which the published models are on the hub."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_pickle_shards(folder: Path, extension: str = "bin", stem: str = "pytorch_model") -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"{stem}-{index % 3 + 1:05d}-of-00003.{extension}" for index, name in enumerate(state)}
    for file_name in set(weight_map.values()):
        shard = {name: tensor for name, tensor in state.items() if weight_map[name] == file_name}
        save_file(shard, folder / file_name) if extension == "safetensors" else torch.save(shard, folder / file_name)
    (folder / f"{stem}.{extension}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_safetensors_shards(folder: Path) -> None:
    as_pickle_shards(folder, "safetensors", "model")


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("original", [True, False], ids=["names of 4", "names of 5"])
@pytest.mark.parametrize("convert", [as_saved, as_pickle, as_pickle_shards, as_safetensors_shards])
def test_transformers_directory(tmp_path: Path, class_name: str, original: bool, convert: Callable[[Path], None]) -> None:
    model = transformers_model(class_name)
    model.save_pretrained(tmp_path, save_original_format=original)
    convert(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    expected = to_canonical(model.state_dict())
    assert (checkpoint.path, checkpoint.layout, checkpoint.dtype) == (tmp_path, "transformers", torch.float32)
    assert (checkpoint.architecture, checkpoint.config.model_type) == (class_name, model.config.model_type)
    assert (checkpoint.config.hidden_size, checkpoint.config.image_size, checkpoint.preprocessing) == (24, 32, {})
    assert checkpoint.shapes == shapes_of(expected)
    assert_equal(checkpoint.read(), expected)


def test_shards_written_by_transformers(tmp_path: Path) -> None:
    model = transformers_model("DeiTForImageClassificationWithTeacher")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal(open_checkpoint(tmp_path).read(), to_canonical(model.state_dict()))
    index = tmp_path / "model.safetensors.index.json"
    assert_equal(open_checkpoint(index).read(), to_canonical(model.state_dict()))
    with pytest.raises(CheckpointError, match="has no moving average of the weights"):
        open_checkpoint(index, ema=True)


@pytest.mark.parametrize("fields", [{"qkv_bias": False}, {"image_size": (32, 48), "patch_size": (16, 8)}, {"num_channels": 1}])
def test_other_architectures(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = transformers_model("ViTForImageClassification", **fields)
    model.save_pretrained(tmp_path)
    assert_equal(open_checkpoint(tmp_path).read(), to_canonical(model.state_dict()))


def test_read_returns_only_the_named_tensors(tmp_path: Path) -> None:
    model = transformers_model("DeiTForImageClassification")
    model.save_pretrained(tmp_path)
    as_pickle_shards(tmp_path)
    names = ["layers.1.attention.qkv.bias", "classifier.weight"]
    expected = to_canonical(model.state_dict())
    checkpoint = open_checkpoint(tmp_path)
    assert_equal(checkpoint.read(names), {name: expected[name] for name in names})
    assert checkpoint.read([]) == {}
    with pytest.raises(CheckpointError, match=r"has no cls_classifier\.weight"):
        checkpoint.read(["cls_classifier.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = transformers_model("ViTForImageClassification").to(dtype)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == dtype
    assert_equal(checkpoint.read(), to_canonical(model.state_dict()))


def test_dtype_of_mixed_weights_is_the_widest(tmp_path: Path) -> None:
    state = canonical_state(tiny_vit())
    state["layernorm.bias"] = state["layernorm.bias"].half()
    save_file(state, tmp_path / "a.safetensors")
    assert open_checkpoint(tmp_path / "a.safetensors", fields={"num_attention_heads": 3}).dtype == torch.float32


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("classes", [5, 0])
def test_timm_directory(tmp_path: Path, safe: bool, name: str, classes: int) -> None:
    model = timm_model(name, num_classes=classes, num_heads=6, act_layer="gelu_tanh", qkv_bias=False, drop_path_rate=0.1)
    labels = ["n1", "n2", "ñ3", "n4", "n5"]
    library: Any = timm
    library.models.save_for_hf(model, str(tmp_path), {"label_names": labels[:classes] or None}, safe_serialization=safe)
    checkpoint = open_checkpoint(tmp_path)
    suffix = "Model"
    if classes:
        suffix = "ForImageClassificationWithTeacher" if "distilled" in name else "ForImageClassification"
    assert checkpoint.architecture == ("DeiT" if "distilled" in name else "ViT") + suffix
    assert checkpoint.layout == "timm"
    config = checkpoint.config
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (6, "gelu_pytorch_tanh", 1e-6)
    assert (config.image_size, config.patch_size, config.qkv_bias) == (32, 8, False)
    assert config.classes == tuple(labels[:classes])
    assert checkpoint.preprocessing["input_size"] == [3, 32, 32]
    assert checkpoint.preprocessing["mean"] == list(model.pretrained_cfg["mean"])
    assert_equal(checkpoint.read(), to_canonical(model.state_dict()))


def test_fields_do_not_override_the_configuration_of_timm(tmp_path: Path) -> None:
    library: Any = timm
    library.models.save_for_hf(timm_model(num_heads=6), str(tmp_path), safe_serialization=True)
    checkpoint = open_checkpoint(tmp_path, fields={"num_attention_heads": 2, "image_size": 64, "layer_norm_eps": 0.1})
    config = checkpoint.config
    assert (config.num_attention_heads, config.image_size, config.layer_norm_eps) == (6, 32, 1e-6)


def training_checkpoint(state: dict[str, Tensor], **entries: Any) -> dict[str, Any]:
    """Returns the content of a checkpoint of the original DeiT code."""
    return {
        "model": state,
        "optimizer": {"state": {}},
        "epoch": 299,
        "args": argparse.Namespace(lr=5e-4),
        "scaler": {},
        **entries,
    }


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_files_of_the_original_code_and_of_timm(tmp_path: Path, name: str, wrapper: str) -> None:
    model = timm_model(name)
    state = {wrapper + key: tensor for key, tensor in model.state_dict().items()}
    for number, content in enumerate([state, training_checkpoint(state), {"state_dict": state, "arch": name, "metric": 72.2}]):
        torch.save(content, tmp_path / f"{number}.pth.tar")
        torch.save(content, tmp_path / f"{number}.old", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "timm.safetensors")
    for file in tmp_path.iterdir():
        checkpoint = open_checkpoint(file, fields={"num_attention_heads": 3})
        assert (checkpoint.path, checkpoint.layout) == (file, "timm")
        assert (checkpoint.config.num_labels, checkpoint.config.layer_norm_eps, checkpoint.config.image_size) == (5, 1e-6, 32)
        assert_equal(checkpoint.read(), to_canonical(model.state_dict()))


def test_ema_of_a_training_checkpoint(tmp_path: Path) -> None:
    model = timm_model()
    ema_state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    fields = {"num_attention_heads": 3}
    for key in ("model_ema", "state_dict_ema"):
        torch.save(training_checkpoint(model.state_dict(), **{key: ema_state}), tmp_path / "a.pth")
        plain, averaged = (open_checkpoint(tmp_path / "a.pth", ema=ema, fields=fields).read() for ema in (False, True))
        assert_equal(averaged, {name: tensor + 1 for name, tensor in plain.items()})
    model.eval()
    torch.save(training_checkpoint(model.state_dict()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="has no moving average"):
        open_checkpoint(tmp_path / "a.pth", ema=True, fields=fields)


def save_run_checkpoint(folder: Path, config: ViTConfig, architecture: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Saves a training checkpoint as a run does; returns its weights and their moving average."""
    folder.mkdir(parents=True)
    states = canonical_state(config), canonical_state(config, seed=1)
    for name, state in zip(("model", "ema"), states, strict=True):
        save_file(to_layout(state, "deit", f"{config.model_type}."), folder / f"{name}.safetensors")
    save_file({"deit.layernorm.bias/exp_avg": torch.ones(24)}, folder / "optimizer.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [architecture]}))
    return states


def test_training_checkpoint_of_a_run(tmp_path: Path) -> None:
    config = tiny_deit().with_classes(["кошка", "b", "c"])
    path = tmp_path / "checkpoints" / "epoch-000003-step-00000000"
    state, ema_state = save_run_checkpoint(path, config, "DeiTForImageClassificationWithTeacher")
    for source in (path, path / "model.safetensors"):
        checkpoint = open_checkpoint(source)
        assert (checkpoint.layout, checkpoint.architecture) == ("deit", "DeiTForImageClassificationWithTeacher")
        assert (checkpoint.config.classes, checkpoint.config.tokens) == (config.classes, config.tokens)
        assert_equal(checkpoint.read(), state)
    assert_equal(open_checkpoint(path, ema=True).read(), ema_state)
    assert_equal(open_checkpoint(path / "ema.safetensors").read(), ema_state)
    (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000000 has no ema\.safetensors: load it without ema"):
        open_checkpoint(path, ema=True)


def test_run_refers_to_its_best_model(tmp_path: Path) -> None:
    model = transformers_model("ViTForImageClassification")
    model.save_pretrained(tmp_path / "best")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path / "best"
    assert_equal(checkpoint.read(), to_canonical(model.state_dict()))


@pytest.mark.parametrize("layout", ["deit", "transformers-4"])
@pytest.mark.parametrize(
    "config", [tiny_deit(hidden_size=64, num_attention_heads=1), tiny_vit(hidden_size=64, num_attention_heads=1)]
)
def test_weights_without_configuration(tmp_path: Path, layout: str, config: ViTConfig) -> None:
    state = canonical_state(config)
    save_file(to_layout(state, layout, f"{config.model_type}."), tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(source, fields={"num_labels": 99, "image_size": 384})  # ignored, as shapes determine both
        assert checkpoint.config == config.replace(layer_norm_eps=1e-6 if layout == "deit" else 1e-12)
        assert checkpoint.architecture.endswith(
            "ClassificationWithTeacher" if config.model_type == "deit" else "Classification"
        )
        assert_equal(checkpoint.read(), state)


def test_configuration_beside_a_file_of_another_name_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"model": timm_model().state_dict()}, tmp_path / "mine.pth")
    assert open_checkpoint(tmp_path / "mine.pth", fields={"num_attention_heads": 3}).layout == "timm"


def test_fields_do_not_override_a_stored_configuration(tmp_path: Path) -> None:
    transformers_model("ViTForImageClassification").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(
        tmp_path, fields={"image_size": 64, "num_labels": 3, "num_attention_heads": 8, "layer_norm_eps": 0.1}
    )
    assert (checkpoint.config.image_size, checkpoint.config.num_labels, checkpoint.config.num_attention_heads) == (32, 5, 3)


def test_checkpoint_repr_and_equality(tmp_path: Path) -> None:
    transformers_model("ViTForImageClassification").save_pretrained(tmp_path)
    checkpoint: Checkpoint = open_checkpoint(tmp_path)
    assert checkpoint == open_checkpoint(tmp_path)
    assert "sources" not in repr(checkpoint)


def test_every_combination_of_heads_has_a_class(tmp_path: Path) -> None:
    for config in (tiny_deit(hidden_size=64, num_attention_heads=1), tiny_vit(hidden_size=64, num_attention_heads=1)):
        for heads in ((), heads_of(config), ("classifier",), ("decoder.0", "embeddings.mask_token"), ("pooler.dense",)):
            save_file(canonical_state(config, heads), tmp_path / "a.safetensors")
            checkpoint = open_checkpoint(tmp_path / "a.safetensors")
            assert checkpoint.architecture.startswith("DeiT" if config.model_type == "deit" else "ViT")
            assert checkpoint.config.num_labels == (5 if any("classifier" in head for head in heads) else 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_must_be_floating_point(tmp_path: Path, dtype: torch.dtype) -> None:
    model = ViTForImageClassification(tiny_vit())
    state = {**model.state_dict(), "classifier.bias": torch.ones(5, dtype=dtype)}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias in .* has dtype torch\.\w+: use float16"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("create", [lambda path: path.symlink_to("nowhere"), lambda path: path.mkdir()], ids=["link", "folder"])
def test_configuration_that_is_not_a_file_is_an_error(tmp_path: Path, create: Callable[[Path], None]) -> None:
    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    create(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"Cannot read .*config\.json"):
        open_checkpoint(tmp_path)
