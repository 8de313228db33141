"""The shape of a model as JSON: what is written comes back, and nothing hostile gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.config import MAX_TOKENS, DeiTConfig, ViTConfig, config_from_dict
from deit.errors import CheckpointError, ConfigError
from tests.helpers import tiny_deit


def test_the_defaults_are_those_of_the_base_model() -> None:
    config = DeiTConfig()
    shape = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    assert shape == (768, 12, 12, 3072)
    assert (config.image_size, config.patch_size, config.layer_norm_eps, config.qkv_bias) == (224, 16, 1e-12, True)


def test_the_distillation_token_is_one_more() -> None:
    assert ViTConfig().tokens == 14 * 14 + 1
    assert DeiTConfig().tokens == 14 * 14 + 2
    assert DeiTConfig(image_size=384).tokens == 24 * 24 + 2


def test_sizes_may_differ_by_side() -> None:
    config = ViTConfig(image_size=[64, 96], patch_size=(8, 16))
    assert (config.image_hw, config.patch_hw, config.grid, config.tokens) == ((64, 96), (8, 16), (8, 6), 49)


@pytest.mark.parametrize("config", [ViTConfig(), tiny_deit(), tiny_deit(image_size=(32, 48)), ViTConfig(num_labels=0)])
def test_a_configuration_comes_back_from_disk(tmp_path: Path, config: ViTConfig) -> None:
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config
    assert config_from_dict(json.loads((tmp_path / "config.json").read_text())) == config


def test_unknown_fields_are_kept_for_the_way_back() -> None:
    assert DeiTConfig.from_dict({"torch_dtype": "float32"}).to_dict()["torch_dtype"] == "float32"


def test_class_names_are_numbered_and_found_again() -> None:
    config = tiny_deit().with_classes(("猫", "dog"))
    assert config.classes == ("猫", "dog")
    assert config.label2id == {"猫": 0, "dog": 1}
    assert config.to_dict()["id2label"] == {"0": "猫", "1": "dog"}
    assert tiny_deit(num_labels=3).classes == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_replacing_checks_again_and_leaves_the_rest() -> None:
    config = tiny_deit(num_labels=7).replace(image_size=64)
    assert (config.grid, config.num_labels, config.hidden_size) == ((8, 8), 7, 24)
    with pytest.raises(ConfigError, match="does not divide"):
        config.replace(image_size=65)


def test_replacing_the_number_of_classes_renames_them() -> None:
    assert tiny_deit(num_labels=7).replace(num_labels=2).classes == ("LABEL_0", "LABEL_1")


def test_assigning_checks_the_whole_again() -> None:
    config = tiny_deit()
    config.num_labels = 2  # type: ignore[misc]
    config.image_size = (64, 32)
    config.label2id = {"cat": 1, "dog": 0}  # type: ignore[misc]
    config.note = "of a user"
    assert (config.classes, config.grid, config.to_dict()["note"]) == (("dog", "cat"), (8, 4), "of a user")
    with pytest.raises(ConfigError, match="does not divide"):
        config.hidden_size = 23
    assert config.hidden_size == 24


def test_a_mistyped_name_is_no_field() -> None:
    with pytest.raises(ConfigError, match="no field 'imge_size': did you mean image_size"):
        tiny_deit().override({"imge_size": 64})


def test_pruned_heads_leave_one_at_least() -> None:
    assert DeiTConfig.from_dict(tiny_deit(pruned_heads={0: [1]}).to_dict()).pruned_heads == {0: [1]}
    for heads in ({0: [0, 1, 2]}, {2: [0]}, {0: [3]}, {-1: [0]}):
        with pytest.raises(ConfigError, match="leaves no head, or there is no such"):
            tiny_deit(pruned_heads=heads)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, "100 does not divide by 12 heads"),
        ({"image_size": 225}, "225 x 225 does not divide into 16 x 16 patches"),
        ({"image_size": [224, 224, 3]}, "image_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_act": "swiglu"}, "hidden_act"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"initializer_range": 0}, "initializer_range"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"id2label": {0: "a", 2: "b"}}, "number its classes"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"id2label": {"first": "a"}}, "id2label"),
        ({"image_size": 16_384, "patch_size": 1}, f"more than {MAX_TOKENS}"),
        ({"num_labels": -1}, "num_labels"),
        ({"num_labels": "many"}, "num_labels"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels"),
        ({"pooler_act": "relu"}, "pooler_act"),
    ],
)
def test_a_shape_that_cannot_be_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ViTConfig(**fields)


def test_the_class_follows_the_model_type() -> None:
    assert type(config_from_dict({"model_type": "deit"})) is DeiTConfig
    assert type(config_from_dict({"model_type": "vit"})) is ViTConfig
    for kind in ("swin", None, 3, ["deit"]):
        with pytest.raises(ConfigError, match="only deit and vit"):
            config_from_dict({"model_type": kind})
    with pytest.raises(ConfigError, match="this class reads 'vit'"):
        ViTConfig.from_dict({"model_type": "deit"})


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DeiTConfig.from_pretrained(tmp_path)


scalar = st.none() | st.booleans() | st.integers() | st.integers(1, 64) | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
hostile_labels = st.dictionaries(st.text(max_size=3) | st.integers(-1, 3).map(str), anything, max_size=4)
known = st.sampled_from([*DeiTConfig.model_fields, "num_labels", "label2id", "self", "model_config", "tokens", "__class__"])
hostile = st.dictionaries(known | st.text(max_size=12), anything | hostile_labels, max_size=6)


@given(hostile, st.sampled_from(["deit", "vit", None]))
@settings(max_examples=60, deadline=None)
def test_a_hostile_configuration_is_refused_or_sound(content: dict[str, Any], kind: str | None) -> None:
    if kind is not None:
        content = {**content, "model_type": kind}
    try:
        config = config_from_dict(content)
    except ConfigError:
        return
    rows, columns = config.grid
    assert 0 < rows * columns < config.tokens <= MAX_TOKENS
    assert config.hidden_size % config.num_attention_heads == 0
    assert len(config.classes) == config.num_labels <= 1_000_000
    assert all(isinstance(name, str) for name in config.classes)
    assert config_from_dict(config.to_dict()).to_dict() == config.to_dict()


@given(st.dictionaries(known, st.integers(-3, 10**20) | st.integers(1, 400).map(float), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_number_makes_a_configuration_slow_or_huge(content: dict[str, Any]) -> None:
    try:
        config = DeiTConfig.from_dict(content)
    except ConfigError:
        return
    assert config.num_labels <= 1_000_000
