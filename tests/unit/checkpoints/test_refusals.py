"""What is wrong with a saved model is said before a tensor is read, with the file's name."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.checkpoints.key_maps import to_layout
from deit.checkpoints.reading import open_checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from tests.helpers import TINY, randomized, tiny_vit
from tests.unit.checkpoints.samples import canonical_state

library: Any = transformers


def theirs(kind: str, **fields: Any) -> Any:
    config = library.DeiTConfig if kind.startswith("DeiT") else library.ViTConfig
    return randomized(getattr(library, kind)(config(**{**TINY, "num_labels": 5, "encoder_stride": 8, **fields})))


def timm_model(name: str = "deit_tiny_distilled_patch16_224", **arguments: Any) -> Any:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}
    return randomized(timm.create_model(name, **{**shape, **arguments}))


def changed(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_hidden_layers": 3}, r"lacks layers\.2\."),
        ({"num_hidden_layers": 1}, r"holds layers\.1\..* a model of its configuration does not have"),
        ({"hidden_size": 48}, r"is \(.*24.*\), and the configuration makes it \(.*48"),
        ({"image_size": 64}, r"position_embeddings in .* is \(1, 18, 24\), and the configuration makes it \(1, 66, 24\)"),
        ({"qkv_bias": False}, r"holds layers\.0\.attention\.qkv\.bias"),
        ({"pruned_heads": {"0": [1]}}, r"layers\.0\.attention\.qkv\.\w+ in .* makes it \(48,"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier\.\w+ in .* is \(5"),
        ({"model_type": "vit"}, r"holds embeddings\.distillation_token"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    theirs("DeiTForImageClassification", id2label={i: f"c{i}" for i in range(5)}).save_pretrained(tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(tmp_path)


def test_another_number_of_classes_is_let_in_where_the_caller_names_them(tmp_path: Path) -> None:
    theirs("DeiTForImageClassification").save_pretrained(tmp_path)
    changed(tmp_path, id2label={"0": "a"}, label2id={"a": 0})
    assert open_checkpoint(tmp_path, fields={"num_labels": 1}).shapes["classifier.weight"] == (5, 24)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["vit"]}, "model_type"),
        ({"image_size": [32]}, "image_size"),
        ({"hidden_size": {"a": 1}}, "hidden_size"),
        ({"id2label": {"0": "a", "7": "b"}}, "does not number its classes from 0"),
        ({"num_attention_heads": 5}, "does not divide by 5 heads"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
    ],
)
def test_a_configuration_that_cannot_be_names_its_file(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(ConfigError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "[" * 100_000, '{"a":' * 100_000, " " * (17 * 2**20)])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*ViTConfig.model_fields, "architectures", "num_labels", "label2id"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    theirs("ViTForImageClassification").save_pretrained(folder)
    shutil.copy(folder / "config.json", folder / "original.json")
    return folder


@given(st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_opens_or_is_a_clear_error(saved: Path, fields: dict[str, Any]) -> None:
    original = json.loads((saved / "original.json").read_text())
    (saved / "config.json").write_text(json.dumps({**original, **fields}))
    try:
        found = open_checkpoint(saved)
    except UserError as error:
        assert str(saved) in str(error)
    else:
        assert len(found.read()) == len(found.shapes)


ARGUMENTS = ["num_heads", "depth", "embed_dim", "img_size", "patch_size", "act_layer", "global_pool", "mlp_ratio", "x"]


@given(
    st.dictionaries(st.sampled_from(["architecture", "num_classes", "pretrained_cfg", "model_args", "label_names"]), values),
    st.dictionaries(st.sampled_from(ARGUMENTS), values, max_size=2),
    st.dictionaries(st.sampled_from(["input_size", "fixed_input_size", "mean", "crop_pct", "label_names"]), values, max_size=2),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_of_timm_opens_or_is_a_clear_error(
    tmp_path: Path, top: dict[str, Any], arguments: dict[str, Any], settings_: dict[str, Any]
) -> None:
    if not (tmp_path / "model.safetensors").exists():
        save_file(to_layout(canonical_state(tiny_vit()), "timm"), tmp_path / "model.safetensors")
    content = {
        "architecture": "deit_tiny_patch16_224",
        "model_args": {"num_heads": 3, **arguments},
        "pretrained_cfg": settings_,
        **top,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    try:
        found = open_checkpoint(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert found.config.hidden_size == 24


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path} holds no weights: looked for model\.safetensors, .*found config\.json"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="found nothing"):
        (tmp_path / "config.json").unlink()
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="none does not exist"):
        open_checkpoint(tmp_path / "none")


def edited(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """With double underscores for points; None takes a tensor out."""
    both = {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"surprise": torch.ones(1)}, "holds an unknown tensor, surprise"),
        ({"vit__layernorm__bias": None}, "lacks layernorm.bias"),
        ({"classifier__bias": None}, "lacks classifier.bias"),
        ({"cls_classifier__bias": torch.ones(5)}, "lacks cls_classifier.weight"),
        ({"vit__encoder__layer__0__attention__attention__key__bias": None}, "a part of layers.0.attention.qkv.bias is missing"),
        (
            {"vit__encoder__layer__0__attention__attention__key__bias": torch.ones(25)},
            "parts of layers.0.*bias in .* do not fit",
        ),
        (
            {"vit__encoder__layer__0__attention__attention__key__bias": torch.ones(())},
            "parts of layers.0.*bias in .* do not fit",
        ),
        ({"vit__encoder__layer__7__output__dense__bias": torch.ones(24)}, "holds layers.7.mlp.fc2.bias, which"),
        ({"vit__embeddings__distillation_token": torch.ones(1, 1, 24)}, "holds embeddings.distillation_token"),
    ],
)
def test_a_tensor_that_is_missing_or_too_many_is_named(tmp_path: Path, changes: dict[str, Tensor | None], problem: str) -> None:
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(edited(load_file(path), **changes), path)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_header_may_claim_any_shape_and_takes_no_memory(tmp_path: Path) -> None:
    header = json.dumps({"vit.layernorm.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_a_torch_file_may_claim_any_shape_and_takes_no_memory(tmp_path: Path) -> None:
    state = {name: torch.ones(1).expand(16_384, *tensor.shape) for name, tensor in timm_model().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="claims to hold more values than it has bytes"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_key_that_takes_forever_to_hash_is_refused(tmp_path: Path, zipped: bool) -> None:
    """A tuple of twice a tuple of twice a tuple: a hundred bytes, and two to the sixty steps to hash it."""
    memo = b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(60))
    pickled = b"\x80\x02}(" + b"K\x01\x85" + memo + b"K\x01u."
    path = tmp_path / "model.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", b"3")
    else:
        path.write_bytes(pickled)
    with pytest.raises(CheckpointError, match="nested beyond measure"):
        open_checkpoint(path)
