"""Key maps: every tensor of every model is renamed in both directions, and unknown names are refused."""

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
from deit.checkpoints.key_maps import HEADS, identify_layout, to_layout
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from tests.helpers import TINY, tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import WITH_TEACHER, assert_equal, canonical_state, heads_of, shapes_of

MODULES: dict[str, tuple[str, ...]] = {  # suffix of the class -> modules beside the trunk
    "Model": ("pooler.dense",),
    "ForImageClassification": ("classifier",),
    "ForMaskedImageModeling": ("decoder.0", "embeddings.mask_token"),
    "ForImageClassificationWithTeacher": WITH_TEACHER,
}
CLASSES = [f"{family}{kind}" for family in ("DeiT", "ViT") for kind in MODULES][:-1]
PROJECTS = {"transformers-4": "transformers", "transformers-5": "transformers", "deit": "deit"}


def config_of(class_name: str, **fields: Any) -> ViTConfig:
    return (tiny_deit if class_name.startswith("DeiT") else tiny_vit)(**fields)


def modules_of(class_name: str) -> tuple[str, ...]:
    return MODULES[class_name.removeprefix("DeiT").removeprefix("ViT")]


def identify(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Returns the project of a state dict, and its tensors by canonical name."""
    project, sources = identify_layout(state)
    return project, {canonical: torch.cat([state[name] for name in names]) for canonical, names in sources.items()}


@pytest.mark.parametrize("class_name", CLASSES)
def test_all_names_of_transformers_are_known(class_name: str) -> None:
    config = config_of(class_name)
    expected = canonical_state(config, modules_of(class_name))
    with torch.device("meta"):
        library: Any = transformers
        fields = {**TINY, "num_labels": 5, "encoder_stride": 16}
        model = getattr(library, class_name)(getattr(library, type(config).__name__)(**fields))
    project, state = identify(model.state_dict())
    assert project == "transformers"
    assert shapes_of(state) == shapes_of(expected)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("classes", [0, 7])
def test_all_names_of_timm_are_known(name: str, classes: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes, depth=2)
    project, state = identify(model.state_dict())
    fields: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
    config = (DeiTConfig if "distilled" in name else ViTConfig)(num_labels=classes, **fields)
    expected = canonical_state(config, heads_of(config) if classes else ())
    assert project == "timm"
    assert shapes_of(state) == shapes_of(expected)


@pytest.mark.parametrize("class_name", [class_name for class_name in CLASSES if hasattr(deit, class_name)])
def test_all_own_names_are_known(class_name: str) -> None:
    with torch.device("meta"):
        state = getattr(deit, class_name)(config_of(class_name, encoder_stride=8)).state_dict()
    project, canonical = identify(state)
    assert project == "deit"
    assert [name.removeprefix("deit.").removeprefix("vit.") for name in state] == list(canonical)


@given(st.sampled_from(CLASSES), st.sampled_from(sorted(PROJECTS)), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=40)
def test_names_round_trip(class_name: str, layout: str, layers: int, width: int, bias: bool) -> None:
    prefix = "deit." if class_name.startswith("DeiT") else "vit."
    sizes = {"hidden_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": layers, "intermediate_size": 3}
    state = canonical_state(config_of(class_name, **sizes, qkv_bias=bias), modules_of(class_name))
    for trunk in ("", prefix):
        renamed = to_layout(state, layout, trunk)
        assert not any("{" in name for name in renamed)
        assert all(name.startswith((trunk, "decoder", *(f"{head}." for head in HEADS))) for name in renamed)
        project, restored = identify(dict(sorted(renamed.items(), reverse=True)))  # the order does not matter
        assert project == PROJECTS[layout]
        assert_equal(restored, state)


@given(st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=8)
def test_timm_names_round_trip(distilled: bool, heads: bool, bias: bool) -> None:
    config = (tiny_deit if distilled else tiny_vit)(qkv_bias=bias)
    state = canonical_state(config, None if heads else ())
    project, restored = identify(to_layout(state, "timm-distilled" if distilled else "timm"))
    assert project == "timm"
    assert_equal(restored, state)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("layout", ["transformers-4", "deit", "timm-distilled"])
def test_wrapper_prefixes_are_ignored(wrapper: str, layout: str) -> None:
    state = canonical_state(tiny_deit())
    wrapped = {wrapper + name: tensor for name, tensor in to_layout(state, layout).items()}
    assert_equal(identify(wrapped)[1], state)


def test_queries_keys_and_values_are_distinguished() -> None:
    prefix = "deit.encoder.layer.11.attention.attention"
    qkv = torch.arange(6.0)[:, None].expand(6, 2)
    renamed = to_layout({"layers.11.attention.qkv.weight": qkv}, "transformers-4", "deit.")
    assert {name: tensor[:, 0].tolist() for name, tensor in renamed.items()} == {
        f"{prefix}.query.weight": [0, 1],
        f"{prefix}.key.weight": [2, 3],
        f"{prefix}.value.weight": [4, 5],
    }
    assert_equal(identify(dict(sorted(renamed.items())))[1], {"layers.11.attention.qkv.weight": qkv})


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["head.weight"], "classifier.weight"),
        (["head.weight", "dist_token"], "cls_classifier.weight"),
        (["head.weight", "head_dist.bias"], "cls_classifier.weight"),
        (["module.head.weight", "module.dist_token"], "cls_classifier.weight"),
    ],
)
def test_timm_head_is_the_class_head_of_a_distilled_model(names: list[str], head: str) -> None:
    assert head in identify_layout(["cls_token", *names])[1]


def test_missing_slice_is_reported() -> None:
    names = [f"deit.encoder.layer.0.attention.attention.{projection}.bias" for projection in ("query", "value")]
    with pytest.raises(CheckpointError, match=r"A slice of layers\.0\.attention\.qkv\.bias is missing"):
        identify_layout(names)


@pytest.mark.parametrize(
    "names",
    [
        ["deit.layers.0.mlp.fc2.bias", "layers.0.mlp.fc2.bias"],
        ["deit.layers.0.mlp.fc2.bias", "vit.layers.0.mlp.fc2.bias"],
        ["module.layers.0.mlp.fc2.bias", "layers.0.mlp.fc2.bias"],
    ],
)
def test_duplicate_tensor_is_refused(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"has layers\.0\.mlp\.fc2\.bias twice"):
        identify_layout(names)


def test_mixed_layouts_are_refused() -> None:
    state = canonical_state(tiny_deit())
    names = [*to_layout(state, "transformers-5", "deit."), "deit.encoder.layer.0.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"unknown tensor, deit\.encoder\.layer\.0\.output\.dense\.bias"):
        identify_layout(names)


@given(
    st.text(max_size=30)
    | st.from_regex(r"deit\.(encoder\.layer|blocks|layers)\.\d{1,6}\.\w{1,9}\.(weight|bias|scale)", fullmatch=True)
)
@settings(max_examples=100)
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="unknown tensor"):
        identify_layout([f"{name}.x"])


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
def test_partially_matching_name_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="unknown tensor") as caught:
        identify_layout([name])
    assert len(str(caught.value)) < 300


def test_tensor_without_a_name_in_the_layout_is_reported() -> None:
    with pytest.raises(CheckpointError, match=r"distillation_classifier\.weight has no name in that format"):
        to_layout({"distillation_classifier.weight": torch.zeros(1)}, "timm")
