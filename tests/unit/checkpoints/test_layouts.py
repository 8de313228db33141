"""The key tables: every tensor of every model there and back, and nothing unknown gets in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deit.checkpoints.layouts import TIMM_DEIT, TIMM_VIT, TRANSFORMERS, Rows, from_ours, to_ours
from deit.errors import CheckpointError
from deit.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
)
from tests.helpers import randomised, tiny_deit, tiny_vit

MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Any], Rows]] = {
    "ViTModel": (ViTModel, tiny_vit, TRANSFORMERS),
    "DeiTModel": (DeiTModel, tiny_deit, TRANSFORMERS),
    "ViTForImageClassification": (ViTForImageClassification, tiny_vit, TRANSFORMERS),
    "DeiTForImageClassification": (DeiTForImageClassification, tiny_deit, TRANSFORMERS),
    "DeiTForImageClassificationWithTeacher": (DeiTForImageClassificationWithTeacher, tiny_deit, TRANSFORMERS),
    "ViTForImageClassification in timm": (ViTForImageClassification, tiny_vit, TIMM_VIT),
    "DeiTForImageClassificationWithTeacher in timm": (DeiTForImageClassificationWithTeacher, tiny_deit, TIMM_DEIT),
}


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_tensor_comes_back(name: str, layers: int, heads: int, width: int, bias: bool) -> None:
    kind, config, rows = MODELS[name]
    shape = {"hidden_size": heads * width, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": 3}
    state = randomised(kind(config(**shape, qkv_bias=bias))).state_dict()
    theirs = from_ours(state, rows)
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in state.values())
    assert not any("{" in key for key in theirs)
    back = to_ours(theirs, rows)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_queries_keys_and_values_are_told_apart() -> None:
    prefix = "deit.encoder.layer.11.attention.attention"
    qkv = torch.arange(6.0)[:, None].expand(6, 2)
    theirs = from_ours({"deit.layers.11.attention.qkv.weight": qkv}, TRANSFORMERS)
    assert {key: tensor[:, 0].tolist() for key, tensor in theirs.items()} == {
        f"{prefix}.query.weight": [0, 1],
        f"{prefix}.key.weight": [2, 3],
        f"{prefix}.value.weight": [4, 5],
    }
    shuffled = {key: theirs[key] for key in sorted(theirs)}  # the order on disk says nothing
    assert torch.equal(to_ours(shuffled, TRANSFORMERS)["deit.layers.11.attention.qkv.weight"], qkv)


def test_a_missing_part_of_a_joined_tensor_is_named() -> None:
    names = [f"deit.encoder.layer.0.attention.attention.{part}.bias" for part in ("query", "value")]
    with pytest.raises(CheckpointError, match=r"A part of deit\.layers\.0\.attention\.qkv\.bias is missing"):
        to_ours({name: torch.zeros(2) for name in names}, TRANSFORMERS)


def test_a_tensor_under_two_names_at_once_is_an_error() -> None:
    names = ["deit.encoder.layer.0.output.dense.bias", "deit.layers.0.mlp.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"holds deit\.layers\.0\.mlp\.fc2\.bias twice"):
        to_ours({name: torch.zeros(2) for name in names}, TRANSFORMERS)


def test_parts_of_different_widths_are_named() -> None:
    sizes = {"query": 2, "key": 2, "value": 3}
    state = {f"vit.encoder.layer.0.attention.attention.{part}.weight": torch.zeros(2, n) for part, n in sizes.items()}
    with pytest.raises(CheckpointError, match=r"The parts of vit\.layers\.0\.attention\.qkv\.weight do not fit"):
        to_ours(state, TRANSFORMERS)


@given(
    st.text(max_size=30)
    | st.from_regex(r"deit\.(encoder\.layer|blocks)\.\d{1,6}\.\w{1,9}\.(weight|bias|scale)", fullmatch=True)
)
@settings(max_examples=60, deadline=None)
def test_a_name_that_no_table_knows_is_an_error(name: str) -> None:
    for rows in (TRANSFORMERS, TIMM_DEIT, TIMM_VIT):
        with pytest.raises(CheckpointError, match="unknown tensor"):
            to_ours({f"{name}.x": torch.zeros(1)}, rows)


@pytest.mark.parametrize(
    "name",
    ["embeddings.cls_tokenX", "Xembeddings.cls_token", "layernorm.weight\n", "layernormXweight", "deit.vit.layernorm.weight"],
)
def test_a_name_must_fit_as_a_whole(name: str) -> None:
    with pytest.raises(CheckpointError, match="unknown tensor"):
        to_ours({name: torch.zeros(1)}, TRANSFORMERS)


def test_a_tensor_that_the_other_format_lacks_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"distillation_classifier\.weight has no name in that format"):
        from_ours({"distillation_classifier.weight": torch.zeros(1)}, TIMM_VIT)
