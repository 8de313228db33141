"""Written models load in transformers, timm and the original code, bit for bit; what they cannot represent is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.writing import timm_architecture, write_authors, write_timm, write_transformers
from deit.config import DeiTConfig, ViTConfig, variant_config
from deit.errors import CheckpointError
from deit.models.modeling import ViTForImageClassification
from deit.variants import VARIANTS
from tests.helpers import tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import WITH_TEACHER, assert_equal, canonical_state, heads_of, to_canonical

MODULES = {  # class -> modules beside the trunk
    "DeiTModel": ("pooler.dense",),
    "DeiTForImageClassification": ("classifier",),
    "DeiTForImageClassificationWithTeacher": WITH_TEACHER,
    "DeiTForMaskedImageModeling": ("decoder.0", "embeddings.mask_token"),
    "ViTModel": ("pooler.dense",),
    "ViTForImageClassification": ("classifier",),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias, one channel": {"qkv_bias": False, "num_channels": 1},
    "not square": {"image_size": (32, 48), "patch_size": (16, 8)},
    "another activation": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12},
    "relu": {"hidden_act": "relu", "num_attention_heads": 4},
}


def write_vit(directory: Path, config: ViTConfig, state: dict[str, Tensor]) -> None:
    write_transformers(directory, config, state, "ViTForImageClassification")


def write_plain_timm(directory: Path, config: ViTConfig, state: dict[str, Tensor]) -> None:
    write_timm(directory, config, state, {})


@pytest.mark.parametrize("class_name", MODULES)
def test_transformers_loads_every_class(tmp_path: Path, class_name: str) -> None:
    config = (tiny_deit if class_name.startswith("DeiT") else tiny_vit)(encoder_stride=8)
    state = canonical_state(config, MODULES[class_name])
    write_transformers(tmp_path, config, state, class_name)
    library: Any = transformers
    model, report = getattr(library, class_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert_equal(to_canonical(model.state_dict()), state)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.architecture == class_name
    assert checkpoint.config.to_dict() == {**config.to_dict(), "architectures": [class_name]}
    assert_equal(checkpoint.read(), state)


def test_tensor_names_are_those_of_transformers_4(tmp_path: Path) -> None:
    names = {"DeiTModel": "embeddings.cls_token", "DeiTForImageClassification": "deit.embeddings.cls_token"}
    for class_name, first in names.items():
        write_transformers(tmp_path, tiny_deit(), canonical_state(tiny_deit(), MODULES[class_name]), class_name)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers requires it
            assert first in file.keys()  # noqa: SIM118
            assert not any("qkv" in name for name in file.keys())  # noqa: SIM118


def test_other_files_of_the_directory_are_kept(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{}")
    write_transformers(tmp_path, tiny_vit(), canonical_state(tiny_vit()), "ViTForImageClassification")
    write_timm(tmp_path, tiny_vit(), canonical_state(tiny_vit()), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "training.json"]


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("create", [tiny_deit, tiny_vit])
@pytest.mark.parametrize("headless", [False, True])
def test_timm_loads_a_directory_in_both_ways(tmp_path: Path, fields: dict[str, Any], create: Any, headless: bool) -> None:
    config = create(**{"layer_norm_eps": 1e-6, **fields})
    state = canonical_state(config, () if headless else None)
    write_timm(tmp_path, config, state, {})
    architecture, arguments = timm_architecture(config)
    classes = 0 if headless else 5
    for model in (
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        timm.create_model(architecture, checkpoint_path=tmp_path / "model.safetensors", num_classes=classes, **arguments),
    ):
        loaded: Any = model
        assert_equal(to_canonical(loaded.state_dict()), state)
        assert loaded.blocks[0].attn.num_heads == config.num_attention_heads
        assert loaded.patch_embed.img_size == config.image_hw
    checkpoint = open_checkpoint(tmp_path)
    assert_equal(checkpoint.read(), state)
    activation = "gelu_pytorch_tanh" if config.hidden_act == "gelu_new" else config.hidden_act
    expected = config.replace(layer_norm_eps=1e-6, hidden_act=activation, num_labels=classes)
    assert {**checkpoint.config.to_dict(), "id2label": 0, "label2id": 0} == {**expected.to_dict(), "id2label": 0, "label2id": 0}


def test_timm_gets_classes_and_preprocessing(tmp_path: Path) -> None:
    config = tiny_deit().with_classes(["golden retriever", "кошка", "鳥"])
    preprocessing = {
        "mean": (0.1, 0.2, 0.3),
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "input_size": [3, 9, 9],
    }
    write_timm(tmp_path, config, canonical_state(config), preprocessing)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.classes == config.classes
    assert checkpoint.preprocessing == {**preprocessing, "mean": [0.1, 0.2, 0.3], "input_size": [3, 32, 32]}
    model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    data: Any = timm.data
    resolved = data.resolve_data_config(model.pretrained_cfg)
    assert (resolved["input_size"], resolved["mean"], resolved["crop_pct"]) == ((3, 32, 32), (0.1, 0.2, 0.3), 1.0)
    assert model.pretrained_cfg["label_names"] == list(config.classes)


def test_unknown_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="preprocessing has no 'size': use input_size"):
        write_timm(tmp_path, tiny_vit(), canonical_state(tiny_vit()), {"size": 3})


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_architectures_of_timm(name: str) -> None:
    assert timm_architecture(variant_config(name)) == (name.replace("-", "_"), {})
    shallow = variant_config(name, num_labels=3, num_hidden_layers=2)
    assert timm_architecture(shallow) == (name.replace("-", "_"), {"depth": 2})


@given(st.integers(1, 400), st.integers(1, 3000))
@settings(max_examples=100)
def test_mlp_ratio_is_exact(width: int, mlp_width: int) -> None:
    config = ViTConfig(hidden_size=width, num_attention_heads=1, intermediate_size=mlp_width)
    _, arguments = timm_architecture(config)
    assert int(width * arguments.get("mlp_ratio", 4.0)) == mlp_width


@pytest.mark.parametrize("distilled", [True, False])
def test_authors_file_loads_in_timm(tmp_path: Path, distilled: bool) -> None:
    config = (tiny_deit if distilled else tiny_vit)(layer_norm_eps=1e-6)
    state = canonical_state(config)
    transposed = {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in state.items()}
    write_authors(tmp_path / "new" / "a.pth", config, transposed)
    content = torch.load(tmp_path / "new" / "a.pth", weights_only=True)
    assert list(content) == ["model"]
    architecture, arguments = timm_architecture(config)
    model: Any = timm.create_model(architecture, num_classes=5, **arguments)
    model.load_state_dict(content["model"], strict=True)
    assert_equal(to_canonical(model.state_dict()), state)
    checkpoint = open_checkpoint(tmp_path / "new" / "a.pth", fields={"num_attention_heads": 3})
    assert checkpoint.config == config
    assert_equal(checkpoint.read(), state)


REFUSED: list[tuple[ViTConfig, tuple[str, ...] | None, str]] = [
    (tiny_vit(layer_norm_eps=1e-5), None, "does not store layer_norm_eps, here 1e-05"),
    (tiny_vit(pruned_heads={0: [1]}), None, "pruned attention heads"),
    (tiny_deit(), ("classifier",), "a single `classifier`"),
    (tiny_deit(), ("cls_classifier",), "The model has a DeiT trunk and the heads cls_classifier"),
    (tiny_vit(), ("pooler.dense",), "pooler.dense.weight has no name in that format"),
    (tiny_vit(), ("decoder.0", "embeddings.mask_token"), "has no name in that format"),
]


@pytest.mark.parametrize(("config", "modules", "problem"), REFUSED)
def test_what_timm_cannot_represent_is_refused_before_writing(
    tmp_path: Path, config: ViTConfig, modules: tuple[str, ...] | None, problem: str
) -> None:
    state = canonical_state(config, modules)
    with pytest.raises(CheckpointError, match=problem):
        write_timm(tmp_path / "t", config, state, {})
    with pytest.raises(CheckpointError, match=problem):
        write_authors(tmp_path / "a.pth", config, state)
    assert list(tmp_path.iterdir()) == []


def test_authors_format_has_one_activation(tmp_path: Path) -> None:
    config = tiny_vit(hidden_act="relu")
    with pytest.raises(CheckpointError, match="does not store the activation, here relu"):
        write_authors(tmp_path / "a.pth", config, canonical_state(config))


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    state = canonical_state(tiny_vit())
    del state["layernorm.bias"]
    for write in (write_plain_timm, write_authors, write_vit):
        with pytest.raises(CheckpointError, match=r"The model lacks layernorm\.bias"):
            write(tmp_path / "x", tiny_vit(), state)


def test_dtype_is_kept(tmp_path: Path) -> None:
    config = tiny_vit()
    state = {name: tensor.half() for name, tensor in canonical_state(config).items()}
    write_timm(tmp_path / "t", config, state, {})
    write_transformers(tmp_path / "h", config, state, "ViTForImageClassification")
    write_authors(tmp_path / "a", config, state)
    for name in ("t", "h", "a"):
        assert_equal(open_checkpoint(tmp_path / name, fields={"num_attention_heads": 3}).read(), state)


@given(
    st.sampled_from([DeiTConfig, ViTConfig]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (2, 3)]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_round_trips(
    tmp_path: Path, config_class: type[ViTConfig], heads: int, layers: int, mlp_width: int, grid: tuple[int, int]
) -> None:
    config = config_class(
        hidden_size=4 * heads,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=mlp_width,
        image_size=(4 * grid[0], 4 * grid[1]),
        patch_size=4,
        num_labels=mlp_width,
        layer_norm_eps=1e-6,
    )
    state = canonical_state(config)
    family = config_class.__name__.removesuffix("Config")
    name = f"{family}ForImageClassification{'WithTeacher' if heads_of(config)[1:] else ''}"
    write_transformers(tmp_path / "h", config, state, name)
    write_timm(tmp_path / "t", config, state, {})
    write_authors(tmp_path / "a", config, state)
    hints = {"num_attention_heads": heads, "image_size": config.image_size}
    for path in ("h", "t", "a"):
        checkpoint = open_checkpoint(tmp_path / path, fields=hints)
        assert checkpoint.architecture == name
        assert (checkpoint.config.image_hw, checkpoint.config.num_attention_heads) == (config.image_hw, heads)
        assert_equal(checkpoint.read(), state)
    assert json.loads((tmp_path / "h" / "config.json").read_text())["architectures"] == [name]


def test_failed_write_keeps_the_old_model(tmp_path: Path) -> None:
    old = ViTForImageClassification(tiny_vit())
    old.save_pretrained(tmp_path)
    new = ViTForImageClassification(tiny_vit(num_labels=3))
    for name, value in (("torch_dtype", torch.float32), ("note", "\ud800")):
        setattr(new.config, name, value)  # JSON has neither
    new.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == "float32"
    previous = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("deit.system.files.os.fsync", _fail_at_second_call())
        new.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == previous


def _fail_at_second_call() -> Callable[[int], None]:
    calls: list[int] = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 1:
            raise OSError("the disk is full")

    return fsync


def test_authors_format_has_one_head_width(tmp_path: Path) -> None:
    model = ViTForImageClassification(tiny_vit(hidden_size=128, num_attention_heads=4, layer_norm_eps=1e-6))
    with pytest.raises(CheckpointError, match="number of attention heads, here 4 for a width of 128"):
        write_authors(tmp_path / "a.pth", model.config, model.canonical_state())
