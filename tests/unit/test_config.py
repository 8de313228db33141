"""Model configurations: defaults, JSON round trips, and validation of hostile input."""

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


def test_defaults_are_the_base_model() -> None:
    config = DeiTConfig()
    shape = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    assert shape == (768, 12, 12, 3072)
    assert (config.image_size, config.patch_size, config.layer_norm_eps, config.qkv_bias) == (224, 16, 1e-12, True)


def test_deit_has_one_more_token_than_vit() -> None:
    assert ViTConfig().tokens == 14 * 14 + 1
    assert DeiTConfig().tokens == 14 * 14 + 2
    assert DeiTConfig(image_size=384).tokens == 24 * 24 + 2


def test_image_and_patches_may_be_rectangular() -> None:
    config = ViTConfig(image_size=[64, 96], patch_size=(8, 16))
    assert (config.image_hw, config.patch_hw, config.grid, config.tokens) == ((64, 96), (8, 16), (8, 6), 49)


@pytest.mark.parametrize("config", [ViTConfig(), tiny_deit(), tiny_deit(image_size=(32, 48)), ViTConfig(num_labels=0)])
def test_configuration_round_trips_through_disk(tmp_path: Path, config: ViTConfig) -> None:
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config
    assert config_from_dict(json.loads((tmp_path / "config.json").read_text())) == config


def test_unknown_fields_are_kept() -> None:
    assert DeiTConfig.from_dict({"torch_dtype": "float32"}).to_dict()["torch_dtype"] == "float32"


def test_class_names_are_numbered_and_looked_up() -> None:
    config = tiny_deit().with_classes(("猫", "dog"))
    assert config.classes == ("猫", "dog")
    assert config.label2id == {"猫": 0, "dog": 1}
    assert config.to_dict()["id2label"] == {"0": "猫", "1": "dog"}
    assert tiny_deit(num_labels=3).classes == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_replace_validates_and_keeps_other_fields() -> None:
    config = tiny_deit(num_labels=7).replace(image_size=64)
    assert (config.grid, config.num_labels, config.hidden_size) == ((8, 8), 7, 24)
    with pytest.raises(ConfigError, match="is not divisible"):
        config.replace(image_size=65)


def test_replacing_num_labels_resets_class_names() -> None:
    assert tiny_deit(num_labels=7).replace(num_labels=2).classes == ("LABEL_0", "LABEL_1")


def test_assignment_validates_the_whole_configuration() -> None:
    config = tiny_deit()
    config.num_labels = 2  # type: ignore[misc]
    config.image_size = (64, 32)
    config.label2id = {"cat": 1, "dog": 0}  # type: ignore[misc]
    config.note = "a comment"
    assert (config.classes, config.grid, config.to_dict()["note"]) == (("dog", "cat"), (8, 4), "a comment")
    with pytest.raises(ConfigError, match="is not divisible"):
        config.hidden_size = 23
    assert config.hidden_size == 24


def test_override_refuses_a_misspelled_field() -> None:
    with pytest.raises(ConfigError, match="no field 'imge_size': did you mean image_size"):
        tiny_deit().override({"imge_size": 64})


def test_pruning_leaves_at_least_one_head() -> None:
    assert DeiTConfig.from_dict(tiny_deit(pruned_heads={0: [1]}).to_dict()).pruned_heads == {0: [1]}
    for heads in ({0: [0, 1, 2]}, {2: [0]}, {0: [3]}, {-3: [0]}):
        with pytest.raises(ConfigError, match="leaves no head, or names a layer or head that does not exist"):
            tiny_deit(pruned_heads=heads)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, "100 is not divisible by 12 heads"),
        ({"image_size": 225}, "225 x 225 is not divisible by patches of 16 x 16"),
        ({"image_size": [224, 224, 3]}, "image_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_act": "swiglu"}, "hidden_act"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"initializer_range": 0}, "initializer_range"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"id2label": {0: "a", 2: "b"}}, "must number the classes"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"id2label": {"first": "a"}}, "id2label"),
        ({"image_size": 16_384, "patch_size": 1}, f"exceed the limit of {MAX_TOKENS}"),
        ({"num_labels": -1}, "num_labels"),
        ({"num_labels": "many"}, "num_labels"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels"),
        ({"pooler_act": "relu"}, "pooler_act"),
    ],
)
def test_invalid_value_is_reported(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**fields)


def test_model_type_selects_the_class() -> None:
    assert type(config_from_dict({"model_type": "deit"})) is DeiTConfig
    assert type(config_from_dict({"model_type": "vit"})) is ViTConfig
    for model_type in ("swin", None, 3, ["deit"]):
        with pytest.raises(ConfigError, match="only deit and vit"):
            config_from_dict({"model_type": model_type})
    with pytest.raises(ConfigError, match="ViTConfig needs 'vit'"):
        ViTConfig.from_dict({"model_type": "deit"})


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DeiTConfig.from_pretrained(tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.integers(1, 64) | st.floats() | st.text(max_size=8)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
label_maps = st.dictionaries(st.text(max_size=3) | st.integers(-1, 3).map(str), json_values, max_size=4)
field_names = st.sampled_from(
    [*DeiTConfig.model_fields, "num_labels", "label2id", "self", "model_config", "tokens", "__class__"]
)
configurations = st.dictionaries(field_names | st.text(max_size=12), json_values | label_maps, max_size=6)


@given(configurations, st.sampled_from(["deit", "vit", None]))
@settings(max_examples=60, deadline=None)
def test_any_configuration_is_refused_or_consistent(content: dict[str, Any], model_type: str | None) -> None:
    if model_type is not None:
        content = {**content, "model_type": model_type}
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


@given(st.dictionaries(field_names, st.integers(-3, 10**20) | st.integers(1, 400).map(float), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_number_makes_validation_slow_or_large(content: dict[str, Any]) -> None:
    try:
        config = DeiTConfig.from_dict(content)
    except ConfigError:
        return
    assert config.num_labels <= 1_000_000
