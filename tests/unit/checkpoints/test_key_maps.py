"""The key tables: every tensor of every model there and back, and nothing unknown gets in."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deit
from deit.checkpoints.key_maps import locate, to_layout
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from tests.helpers import TINY, tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import WITH_TEACHER, assert_equal, canonical_state, heads_of

MASKED = ("decoder.0", "embeddings.mask_token")
KINDS: dict[str, tuple[str, ...]] = {
    "Model": ("pooler.dense",),
    "ForImageClassification": ("classifier",),
    "ForMaskedImageModeling": MASKED,
    "ForImageClassificationWithTeacher": WITH_TEACHER,
}
CLASSES = [f"{family}{kind}" for family in ("DeiT", "ViT") for kind in KINDS][:-1]
LAYOUTS = {"transformers-4": "transformers", "transformers-5": "transformers", "deit": "deit"}


def config_of(kind: str, **fields: Any) -> ViTConfig:
    return (tiny_deit if kind.startswith("DeiT") else tiny_vit)(**fields)


def joined(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    layout, names = locate(state)
    return layout, {ours: torch.cat([state[name] for name in theirs]) for ours, theirs in names.items()}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_names_of_transformers_are_known_to_the_last(kind: str) -> None:
    config = config_of(kind)
    expected = canonical_state(config, KINDS[kind.removeprefix("DeiT").removeprefix("ViT")])
    with torch.device("meta"):
        library: Any = transformers
        options = {**TINY, "num_labels": 5, "encoder_stride": 16}
        model = getattr(library, kind)(getattr(library, type(config).__name__)(**options))
    layout, found = joined(model.state_dict())
    assert layout == "transformers"
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("classes", [0, 7])
def test_the_names_of_timm_are_known_to_the_last(name: str, classes: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes, depth=2)
    layout, found = joined(model.state_dict())
    shape: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
    config = (DeiTConfig if "distilled" in name else ViTConfig)(num_labels=classes, **shape)
    expected = canonical_state(config, heads_of(config) if classes else ())
    assert layout == "timm"
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if hasattr(deit, kind)])
def test_our_own_names_are_known_to_the_last(kind: str) -> None:
    with torch.device("meta"):
        state = getattr(deit, kind)(config_of(kind, encoder_stride=8)).state_dict()
    layout, found = joined(state)
    assert layout == "deit"
    assert [name.removeprefix("deit.").removeprefix("vit.") for name in state] == list(found)


@given(st.sampled_from(CLASSES), st.sampled_from(sorted(LAYOUTS)), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=40)
def test_every_tensor_comes_back(kind: str, layout: str, layers: int, width: int, bias: bool) -> None:
    family = "deit." if kind.startswith("DeiT") else "vit."
    sizes = {"hidden_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": layers, "intermediate_size": 3}
    state = canonical_state(config_of(kind, **sizes, qkv_bias=bias), KINDS[kind[len(family) - 1 :]])
    for trunk in ("", family):
        theirs = to_layout(state, layout, trunk)
        assert not any("{" in key for key in theirs)
        assert all(
            name.startswith((trunk, "decoder", *(f"{head}." for head in ("classifier", *WITH_TEACHER)))) for name in theirs
        )
        found, back = joined(dict(sorted(theirs.items(), reverse=True)))  # the order on disk says nothing
        assert found == LAYOUTS[layout]
        assert_equal(back, state)


@given(st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=8)
def test_timms_names_come_back(distilled: bool, heads: bool, bias: bool) -> None:
    config = (tiny_deit if distilled else tiny_vit)(qkv_bias=bias)
    state = canonical_state(config, None if heads else ())
    layout, back = joined(to_layout(state, "timm-distilled" if distilled else "timm"))
    assert layout == "timm"
    assert_equal(back, state)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("layout", ["transformers-4", "deit", "timm-distilled"])
def test_what_wraps_a_model_leaves_no_trace(wrapper: str, layout: str) -> None:
    state = canonical_state(tiny_deit())
    wrapped = {wrapper + name: tensor for name, tensor in to_layout(state, layout).items()}
    assert_equal(joined(wrapped)[1], state)


def test_queries_keys_and_values_are_told_apart() -> None:
    prefix = "deit.encoder.layer.11.attention.attention"
    qkv = torch.arange(6.0)[:, None].expand(6, 2)
    theirs = to_layout({"layers.11.attention.qkv.weight": qkv}, "transformers-4", "deit.")
    assert {key: tensor[:, 0].tolist() for key, tensor in theirs.items()} == {
        f"{prefix}.query.weight": [0, 1],
        f"{prefix}.key.weight": [2, 3],
        f"{prefix}.value.weight": [4, 5],
    }
    assert_equal(joined(dict(sorted(theirs.items())))[1], {"layers.11.attention.qkv.weight": qkv})


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["head.weight"], "classifier.weight"),
        (["head.weight", "dist_token"], "cls_classifier.weight"),
        (["head.weight", "head_dist.bias"], "cls_classifier.weight"),
        (["module.head.weight", "module.dist_token"], "cls_classifier.weight"),
    ],
)
def test_timms_head_is_the_class_head_beside_a_distillation_token(names: list[str], head: str) -> None:
    assert head in locate(["cls_token", *names])[1]


def test_a_missing_part_of_a_joined_tensor_is_named() -> None:
    names = [f"deit.encoder.layer.0.attention.attention.{part}.bias" for part in ("query", "value")]
    with pytest.raises(CheckpointError, match=r"A part of layers\.0\.attention\.qkv\.bias is missing"):
        locate(names)


@pytest.mark.parametrize(
    "names",
    [
        ["deit.layers.0.mlp.fc2.bias", "layers.0.mlp.fc2.bias"],
        ["deit.layers.0.mlp.fc2.bias", "vit.layers.0.mlp.fc2.bias"],
        ["module.layers.0.mlp.fc2.bias", "layers.0.mlp.fc2.bias"],
    ],
)
def test_a_tensor_under_two_names_at_once_is_an_error(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"holds layers\.0\.mlp\.fc2\.bias twice"):
        locate(names)


def test_names_of_two_formats_do_not_mix() -> None:
    state = canonical_state(tiny_deit())
    names = [*to_layout(state, "transformers-5", "deit."), "deit.encoder.layer.0.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"unknown tensor, deit\.encoder\.layer\.0\.output\.dense\.bias"):
        locate(names)


@given(
    st.text(max_size=30)
    | st.from_regex(r"deit\.(encoder\.layer|blocks|layers)\.\d{1,6}\.\w{1,9}\.(weight|bias|scale)", fullmatch=True)
)
@settings(max_examples=100)
def test_a_name_that_no_table_knows_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match="unknown tensor"):
        locate([f"{name}.x"])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "embeddings.cls_tokenX",
        "Xembeddings.cls_token",
        "layernorm.weight\n",
        "layernormXweight",
        "deit.vit.layernorm.weight",
        "deit.classifier.weight",
        "layers.{n}.mlp.fc1.weight",
        "layers.00.mlp.fc1.weight",
        "layers.1000.mlp.fc1.weight",
        "layers.-1.mlp.fc1.weight",
        "layers.٣.mlp.fc1.weight",
        "module." * 1000 + "layernorm.weight",
        "a" * 10**6,
    ],
)
def test_a_name_must_fit_as_a_whole(name: str) -> None:
    with pytest.raises(CheckpointError, match="unknown tensor") as caught:
        locate([name])
    assert len(str(caught.value)) < 300


def test_a_tensor_that_the_other_format_lacks_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"distillation_classifier\.weight has no name in that format"):
        to_layout({"distillation_classifier.weight": torch.zeros(1)}, "timm")
