"""Every published form of a saved model opens, to the last bit; what is wrong with one is said before a tensor is read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.checkpoints.key_maps import locate, to_layout
from deit.checkpoints.reading import Checkpoint, model_path, open_checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError
from deit.models.modeling import ViTForImageClassification
from tests.helpers import TINY, randomized, tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import assert_equal, canonical_state, heads_of, shapes_of

CLASSES = [
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "ViTModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
]
library: Any = transformers


def theirs(kind: str, **fields: Any) -> Any:
    config = library.DeiTConfig if kind.startswith("DeiT") else library.ViTConfig
    return randomized(getattr(library, kind)(config(**{**TINY, "num_labels": 5, "encoder_stride": 8, **fields})))


def by_canonical_name(model: Any) -> dict[str, Tensor]:
    state = model.state_dict()
    return {ours: torch.cat([state[name] for name in names]) for ours, names in locate(state)[1].items()}


def whole(_: Path) -> None:
    """As transformers 5 writes it."""


def pickled(folder: Path) -> None:
    """As transformers 4 wrote it by default, and the hub holds the authors' models."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path, ending: str = "bin", stem: str = "pytorch_model") -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"{stem}-{place % 3 + 1:05d}-of-00003.{ending}" for place, name in enumerate(state)}
    for shard in set(places.values()):
        part = {name: tensor for name, tensor in state.items() if places[name] == shard}
        save_file(part, folder / shard) if ending == "safetensors" else torch.save(part, folder / shard)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def in_safe_shards(folder: Path) -> None:
    in_shards(folder, "safetensors", "model")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("original", [True, False], ids=["names of 4", "names of 5"])
@pytest.mark.parametrize("form", [whole, pickled, in_shards, in_safe_shards])
def test_a_directory_of_transformers(tmp_path: Path, kind: str, original: bool, form: Callable[[Path], None]) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path, save_original_format=original)
    form(tmp_path)
    found = open_checkpoint(tmp_path)
    expected = by_canonical_name(model)
    assert (found.path, found.layout, found.architecture, found.dtype) == (tmp_path, "transformers", kind, torch.float32)
    assert found.config.model_type == model.config.model_type
    assert (found.config.hidden_size, found.config.image_size, found.preprocessing) == (24, 32, {})
    assert found.shapes == shapes_of(expected)
    assert_equal(found.read(), expected)


def test_shards_that_transformers_itself_wrote(tmp_path: Path) -> None:
    model = theirs("DeiTForImageClassificationWithTeacher")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal(open_checkpoint(tmp_path).read(), by_canonical_name(model))
    index = tmp_path / "model.safetensors.index.json"
    assert_equal(open_checkpoint(index).read(), by_canonical_name(model))
    with pytest.raises(CheckpointError, match="one set of weights and no average"):
        open_checkpoint(index, ema=True)


@pytest.mark.parametrize("fields", [{"qkv_bias": False}, {"image_size": (32, 48), "patch_size": (16, 8)}, {"num_channels": 1}])
def test_shapes_of_other_kinds(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = theirs("ViTForImageClassification", **fields)
    model.save_pretrained(tmp_path)
    assert_equal(open_checkpoint(tmp_path).read(), by_canonical_name(model))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    model = theirs("DeiTForImageClassification")
    model.save_pretrained(tmp_path)
    in_shards(tmp_path)
    names = ["layers.1.attention.qkv.bias", "classifier.weight"]
    expected = by_canonical_name(model)
    found = open_checkpoint(tmp_path)
    assert_equal(found.read(names), {name: expected[name] for name in names})
    assert found.read([]) == {}
    with pytest.raises(CheckpointError, match=r"holds no cls_classifier\.weight"):
        found.read(["cls_classifier.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = theirs("ViTForImageClassification").to(dtype)
    model.save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    assert found.dtype == dtype
    assert_equal(found.read(), by_canonical_name(model))


def test_the_widest_of_mixed_types_is_told(tmp_path: Path) -> None:
    state = canonical_state(tiny_vit())
    state["layernorm.bias"] = state["layernorm.bias"].half()
    save_file(state, tmp_path / "a.safetensors")
    assert open_checkpoint(tmp_path / "a.safetensors", fields={"num_attention_heads": 3}).dtype == torch.float32


def timm_model(name: str = "deit_tiny_distilled_patch16_224", **arguments: Any) -> Any:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}
    return randomized(timm.create_model(name, **{**shape, **arguments}))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("classes", [5, 0])
def test_a_directory_of_timm(tmp_path: Path, safe: bool, name: str, classes: int) -> None:
    model = timm_model(name, num_classes=classes, num_heads=6, act_layer="gelu_tanh", qkv_bias=False, drop_path_rate=0.1)
    labels = ["n1", "n2", "ñ3", "n4", "n5"]
    library: Any = timm
    library.models.save_for_hf(model, str(tmp_path), {"label_names": labels[:classes] or None}, safe_serialization=safe)
    found = open_checkpoint(tmp_path)
    heads = {5: ["ForImageClassification", "ForImageClassificationWithTeacher"], 0: ["Model", "Model"]}[classes]
    assert found.architecture == (f"DeiT{heads[1]}" if "distilled" in name else f"ViT{heads[0]}")
    assert found.layout == "timm"
    config = found.config
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (6, "gelu_pytorch_tanh", 1e-6)
    assert (config.image_size, config.patch_size, config.qkv_bias) == (32, 8, False)
    assert config.classes == tuple(labels[:classes])
    assert found.preprocessing["input_size"] == [3, 32, 32]
    assert found.preprocessing["mean"] == list(model.pretrained_cfg["mean"])
    assert_equal(found.read(), by_canonical_name(model))


def test_what_timm_stored_is_not_changed_by_wishes_either(tmp_path: Path) -> None:
    library: Any = timm
    library.models.save_for_hf(timm_model(num_heads=6), str(tmp_path), safe_serialization=True)
    found = open_checkpoint(tmp_path, fields={"num_attention_heads": 2, "image_size": 64, "layer_norm_eps": 0.1})
    assert (found.config.num_attention_heads, found.config.image_size, found.config.layer_norm_eps) == (6, 32, 1e-6)


def authors(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    return {"model": state, "optimizer": {"state": {}}, "epoch": 299, "args": argparse.Namespace(lr=5e-4), "scaler": {}, **more}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_files_of_the_authors_and_of_timm(tmp_path: Path, name: str, wrapper: str) -> None:
    model = timm_model(name)
    state = {wrapper + key: tensor for key, tensor in model.state_dict().items()}
    for number, content in enumerate([state, authors(state), {"state_dict": state, "arch": name, "metric": 72.2}]):
        torch.save(content, tmp_path / f"{number}.pth.tar")
        torch.save(content, tmp_path / f"{number}.old", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "timm.safetensors")
    for file in tmp_path.iterdir():
        found = open_checkpoint(file, fields={"num_attention_heads": 3})
        assert (found.path, found.layout) == (file, "timm")
        assert (found.config.num_labels, found.config.layer_norm_eps, found.config.image_size) == (5, 1e-6, 32)
        assert_equal(found.read(), by_canonical_name(model))


def test_the_average_of_a_training_checkpoint(tmp_path: Path) -> None:
    model, mean = timm_model(), {name: tensor + 1 for name, tensor in timm_model().state_dict().items()}
    fields = {"num_attention_heads": 3}
    for key in ("model_ema", "state_dict_ema"):
        torch.save(authors(model.state_dict(), **{key: mean}), tmp_path / "a.pth")
        plain, average = (open_checkpoint(tmp_path / "a.pth", ema=ema, fields=fields).read() for ema in (False, True))
        assert_equal(average, {name: tensor + 1 for name, tensor in plain.items()})
    model.eval()
    torch.save(authors(model.state_dict()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no average"):
        open_checkpoint(tmp_path / "a.pth", ema=True, fields=fields)


def run_checkpoint(folder: Path, config: ViTConfig, architecture: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    folder.mkdir(parents=True)
    states = canonical_state(config), canonical_state(config, seed=1)
    for name, state in zip(("model", "average"), states, strict=True):
        save_file(to_layout(state, "deit", f"{config.model_type}."), folder / f"{name}.safetensors")
    save_file({"deit.layernorm.bias/exp_avg": torch.ones(24)}, folder / "optimizer.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [architecture]}))
    return states


def test_a_checkpoint_of_a_run_and_its_average(tmp_path: Path) -> None:
    config = tiny_deit().with_classes(["кошка", "b", "c"])
    path = tmp_path / "checkpoints" / "epoch-000003-step-00000000"
    state, mean = run_checkpoint(path, config, "DeiTForImageClassificationWithTeacher")
    for place in (path, path / "model.safetensors"):
        found = open_checkpoint(place)
        assert (found.layout, found.architecture) == ("deit", "DeiTForImageClassificationWithTeacher")
        assert (found.config.classes, found.config.tokens) == (config.classes, config.tokens)
        assert_equal(found.read(), state)
    assert_equal(open_checkpoint(path, ema=True).read(), mean)
    assert_equal(open_checkpoint(path / "ema.safetensors").read(), mean)
    (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000000 holds no average\.safetensors: load it without ema"):
        open_checkpoint(path, ema=True)


def test_a_run_stands_for_its_best_model(tmp_path: Path) -> None:
    model = theirs("ViTForImageClassification")
    model.save_pretrained(tmp_path / "best")
    found = open_checkpoint(tmp_path)
    assert found.path == tmp_path / "best"
    assert_equal(found.read(), by_canonical_name(model))


def test_a_path_stands_for_itself_or_a_runs_best(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "weights.pth").touch()
    for path in (tmp_path, tmp_path / "best", tmp_path / "weights.pth"):
        assert model_path(path) == path
    (tmp_path / "recipe.toml").touch()
    for find in (model_path, open_checkpoint):
        with pytest.raises(CheckpointError, match=f"The run {tmp_path} has no finished epoch: go on with it: deit train --res"):
            find(tmp_path)
        with pytest.raises(CheckpointError, match="none does not exist: check the path of the model, checkpoint or run"):
            find(tmp_path / "none")
    (tmp_path / "best" / "config.json").touch()
    assert model_path(tmp_path) == tmp_path / "best"
    (tmp_path / "config.json").touch()
    assert model_path(tmp_path) == tmp_path


@pytest.mark.parametrize("layout", ["deit", "transformers-4"])
@pytest.mark.parametrize(
    "config", [tiny_deit(hidden_size=64, num_attention_heads=1), tiny_vit(hidden_size=64, num_attention_heads=1)]
)
def test_weights_alone(tmp_path: Path, layout: str, config: ViTConfig) -> None:
    state = canonical_state(config)
    save_file(to_layout(state, layout, f"{config.model_type}."), tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        found = open_checkpoint(place, fields={"num_labels": 99, "image_size": 384})  # wishes for later change nothing here
        assert found.config == config.replace(layer_norm_eps=1e-6 if layout == "deit" else 1e-12)
        assert found.architecture.endswith("ClassificationWithTeacher" if config.model_type == "deit" else "Classification")
        assert_equal(found.read(), state)


def test_a_file_beside_a_foreign_configuration_is_taken_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"model": timm_model().state_dict()}, tmp_path / "mine.pth")
    assert open_checkpoint(tmp_path / "mine.pth", fields={"num_attention_heads": 3}).layout == "timm"


def test_a_stored_configuration_is_not_changed_by_wishes(tmp_path: Path) -> None:
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    found = open_checkpoint(
        tmp_path, fields={"image_size": 64, "num_labels": 3, "num_attention_heads": 8, "layer_norm_eps": 0.1}
    )
    assert (found.config.image_size, found.config.num_labels, found.config.num_attention_heads) == (32, 5, 3)


def test_a_checkpoint_is_plain_to_print_and_to_compare(tmp_path: Path) -> None:
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    found: Checkpoint = open_checkpoint(tmp_path)
    assert found == open_checkpoint(tmp_path)
    assert "sources" not in repr(found)


def test_every_head_has_its_class(tmp_path: Path) -> None:
    for config in (tiny_deit(hidden_size=64, num_attention_heads=1), tiny_vit(hidden_size=64, num_attention_heads=1)):
        for heads in ((), heads_of(config), ("classifier",), ("decoder.0", "embeddings.mask_token"), ("pooler.dense",)):
            save_file(canonical_state(config, heads), tmp_path / "a.safetensors")
            found = open_checkpoint(tmp_path / "a.safetensors")
            assert found.architecture.startswith("DeiT" if config.model_type == "deit" else "ViT")
            assert found.config.num_labels == (5 if any("classifier" in head for head in heads) else 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = ViTForImageClassification(tiny_vit())
    state = {**model.state_dict(), "classifier.bias": torch.ones(5, dtype=dtype)}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias in .* is of type torch\.\w+: float16"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), lambda path: path.mkdir()], ids=["link", "folder"])
def test_a_configuration_that_is_no_file_is_not_taken_for_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    make(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"Cannot read .*config\.json"):
        open_checkpoint(tmp_path)
