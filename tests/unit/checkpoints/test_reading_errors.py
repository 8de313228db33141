"""Errors of saved models are reported with the name of the file, before any tensor is read."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.checkpoints.key_maps import to_layout
from deit.checkpoints.reading import open_checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from tests.helpers import tiny_vit
from tests.unit.checkpoints.samples import canonical_state, timm_model, transformers_model


def edit_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_hidden_layers": 3}, r"lacks layers\.2\."),
        ({"num_hidden_layers": 1}, r"has layers\.1\..* a model of its configuration does not have"),
        ({"hidden_size": 48}, r"has shape \(.*24.*\), but the configuration gives \(.*48"),
        ({"image_size": 64}, r"position_embeddings in .* has shape \(1, 18, 24\), but the configuration gives \(1, 66, 24\)"),
        ({"qkv_bias": False}, r"has layers\.0\.attention\.qkv\.bias"),
        ({"pruned_heads": {"0": [1]}}, r"layers\.0\.attention\.qkv\.\w+ in .* configuration gives \(48,"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier\.\w+ in .* has shape \(5"),
        ({"model_type": "vit"}, r"has embeddings\.distillation_token"),
    ],
)
def test_configuration_of_another_model_is_refused(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    transformers_model("DeiTForImageClassification", id2label={i: f"c{i}" for i in range(5)}).save_pretrained(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(tmp_path)


def test_other_number_of_classes_is_accepted_if_the_caller_sets_classes(tmp_path: Path) -> None:
    transformers_model("DeiTForImageClassification").save_pretrained(tmp_path)
    edit_config(tmp_path, id2label={"0": "a"}, label2id={"a": 0})
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
        ({"id2label": {"0": "a", "7": "b"}}, "must number the classes"),
        ({"num_attention_heads": 5}, "is not divisible by 5 heads"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
    ],
)
def test_invalid_configuration_names_its_file(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    transformers_model("ViTForImageClassification").save_pretrained(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(ConfigError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "[" * 100_000, '{"a":' * 100_000, " " * (17 * 2**20)])
def test_configuration_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    transformers_model("ViTForImageClassification").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*ViTConfig.model_fields, "architectures", "num_labels", "label2id"]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    transformers_model("ViTForImageClassification").save_pretrained(folder)
    shutil.copy(folder / "config.json", folder / "original.json")
    return folder


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_opens_or_is_a_user_error(model_directory: Path, fields: dict[str, Any]) -> None:
    original = json.loads((model_directory / "original.json").read_text())
    (model_directory / "config.json").write_text(json.dumps({**original, **fields}))
    try:
        checkpoint = open_checkpoint(model_directory)
    except UserError as error:
        assert str(model_directory) in str(error)
    else:
        assert len(checkpoint.read()) == len(checkpoint.shapes)


ARGUMENTS = ["num_heads", "depth", "embed_dim", "img_size", "patch_size", "act_layer", "global_pool", "mlp_ratio", "x"]


@given(
    st.dictionaries(
        st.sampled_from(["architecture", "num_classes", "pretrained_cfg", "model_args", "label_names"]), json_values
    ),
    st.dictionaries(st.sampled_from(ARGUMENTS), json_values, max_size=2),
    st.dictionaries(
        st.sampled_from(["input_size", "fixed_input_size", "mean", "crop_pct", "label_names"]), json_values, max_size=2
    ),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_of_timm_opens_or_is_a_user_error(
    tmp_path: Path, entries: dict[str, Any], arguments: dict[str, Any], pretrained_cfg: dict[str, Any]
) -> None:
    if not (tmp_path / "model.safetensors").exists():
        save_file(to_layout(canonical_state(tiny_vit()), "timm"), tmp_path / "model.safetensors")
    content = {
        "architecture": "deit_tiny_patch16_224",
        "model_args": {"num_heads": 3, **arguments},
        "pretrained_cfg": pretrained_cfg,
        **entries,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    try:
        checkpoint = open_checkpoint(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert checkpoint.config.hidden_size == 24


def test_directory_without_weights_lists_the_names_looked_for(tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path} has no weights: looked for model\.safetensors, .*found config\.json"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="found nothing"):
        (tmp_path / "config.json").unlink()
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="none does not exist"):
        open_checkpoint(tmp_path / "none")


def edit_state(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """Adds, replaces or, with None, removes tensors. Names have double underscores in place of dots."""
    edited = {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in edited.items() if tensor is not None}


KEY_BIAS = "vit__encoder__layer__0__attention__attention__key__bias"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"surprise": torch.ones(1)}, "has an unknown tensor, surprise"),
        ({"vit__layernorm__bias": None}, "lacks layernorm.bias"),
        ({"classifier__bias": None}, "lacks classifier.bias"),
        ({"cls_classifier__bias": torch.ones(5)}, "lacks cls_classifier.weight"),
        ({KEY_BIAS: None}, "a slice of layers.0.attention.qkv.bias is missing"),
        ({KEY_BIAS: torch.ones(25)}, "slices of layers.0.*bias in .* have different shapes"),
        ({KEY_BIAS: torch.ones(())}, "slices of layers.0.*bias in .* have different shapes"),
        ({"vit__encoder__layer__7__output__dense__bias": torch.ones(24)}, "has layers.7.mlp.fc2.bias, which"),
        ({"vit__embeddings__distillation_token": torch.ones(1, 1, 24)}, "has embeddings.distillation_token"),
    ],
)
def test_missing_or_unexpected_tensor_is_reported(tmp_path: Path, changes: dict[str, Tensor | None], problem: str) -> None:
    transformers_model("ViTForImageClassification").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(edit_state(load_file(path), **changes), path)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_huge_shape_in_a_header_allocates_no_memory(tmp_path: Path) -> None:
    header = json.dumps({"vit.layernorm.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_huge_shape_in_a_torch_file_allocates_no_memory(tmp_path: Path) -> None:
    state = {name: torch.ones(1).expand(16_384, *tensor.shape) for name, tensor in timm_model().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="claims more values than it has bytes"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_key_with_exponential_hash_time_is_refused(tmp_path: Path, zipped: bool) -> None:
    """Nested tuples that each contain the next one twice: a hundred bytes, and 2**60 steps to hash."""
    tuples = b"".join(b"q" + bytes([index]) + b"h" + bytes([index]) + b"\x86" for index in range(60))
    pickled = b"\x80\x02}(" + b"K\x01\x85" + tuples + b"K\x01u."
    path = tmp_path / "model.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", b"3")
    else:
        path.write_bytes(pickled)
    with pytest.raises(CheckpointError, match="corrupt"):
        open_checkpoint(path)
