"""Against transformers: the same weights give the same numbers, whoever wrote the directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import deit
from deit.config import DeiTConfig, ViTConfig, variant_config
from tests.helpers import TINY, backward, noise, randomized, tiny_deit, tiny_vit

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow and deep": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 5, "intermediate_size": 3},
    "no qkv bias": {"qkv_bias": False},
    "tanh gelu": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "silu": {"hidden_act": "silu"},
    "relu": {"hidden_act": "relu", "layer_norm_eps": 0.1},
    "not square": {"image_size": (32, 48), "patch_size": (16, 8)},
    "one channel": {"num_channels": 1, "num_labels": 2},
}
# Fields that they have not, or write out where ours is None.
OURS = {"pooler_output_size", "pruned_heads", "distillation_type", "layer_scale"}
KINDS = ["ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"]
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def ours(kind: str, **shape: Any) -> Any:
    config = tiny_vit(**shape) if kind.startswith("ViT") else tiny_deit(**shape)
    return randomized(getattr(deit, kind)(config))


def theirs(kind: str, **shape: Any) -> Any:
    config = (transformers.ViTConfig if kind.startswith("ViT") else transformers.DeiTConfig)(
        **{**TINY, "num_labels": 5, **shape}
    )
    return randomized(getattr(transformers, kind)(config))


def images(config: ViTConfig, count: int = 2) -> torch.Tensor:
    return noise(count, config.num_channels, *config.image_hw)


def logits(output: Any) -> dict[str, torch.Tensor]:
    return {name: getattr(output, name) for name in ("logits", "cls_logits", "distillation_logits") if hasattr(output, name)}


def assert_same(one: Any, other: Any) -> None:
    mine, yours = logits(one), logits(other)
    assert mine.keys() == yours.keys()
    for name, values in mine.items():
        assert values.std() > 0.01
        assert torch.allclose(values, yours[name], atol=1e-5, rtol=0), name


def loaded_whole(model_class: Any, directory: Path, **options: Any) -> nn.Module:
    model, report = model_class.from_pretrained(directory, output_loading_info=True, **options)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
@every_kind
@every_shape
def test_we_read_what_transformers_saves(tmp_path: Path, kind: str, shape: dict[str, Any]) -> None:
    model = theirs(kind, **shape)
    model.save_pretrained(tmp_path)
    mine = deit.load_model(tmp_path)
    assert type(mine) is getattr(deit, kind)
    x = images(mine.config)
    assert_same(mine(x), model(x))


@torch.no_grad()
@every_kind
def test_we_read_the_newer_names_too(tmp_path: Path, kind: str) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any(".q_proj." in name for name in load_file(tmp_path / "model.safetensors"))
    mine = deit.load_model(tmp_path)
    x = images(mine.config)
    assert_same(mine(x), model(x))


@torch.no_grad()
@every_kind
def test_the_automatic_class_finds_ours(tmp_path: Path, kind: str) -> None:
    model = ours(kind)
    model.save_pretrained(tmp_path)
    loaded = loaded_whole(transformers.AutoModelForImageClassification, tmp_path)
    assert type(loaded).__name__ == kind
    x = images(model.config)
    assert torch.allclose(model(x).logits, loaded(x).logits, atol=1e-5)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_of_theirs_gives_our_numbers(tmp_path: Path, kind: str, attention: str) -> None:
    model = ours(kind)
    model.save_pretrained(tmp_path)
    x = images(model.config)
    assert_same(model(x), loaded_whole(getattr(transformers, kind), tmp_path, attn_implementation=attention)(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel"])
@pytest.mark.parametrize("pooler", [None, 7])
def test_the_model_without_a_head_says_the_same_of_every_token(tmp_path: Path, kind: str, pooler: int | None) -> None:
    model = ours(kind, pooler_output_size=pooler)
    model.save_pretrained(tmp_path / "ours")
    other = theirs(kind, pooler_output_size=pooler)
    other.save_pretrained(tmp_path / "theirs")
    x = images(model.config)
    for mine, yours in (
        (model, loaded_whole(getattr(transformers, kind), tmp_path / "ours")),
        (getattr(deit, kind).from_pretrained(tmp_path / "theirs"), other),
    ):
        assert torch.allclose(mine(x).last_hidden_state, yours(x).last_hidden_state, atol=1e-5)
        assert torch.allclose(mine(x).pooler_output, yours(x).pooler_output, atol=1e-5)


@torch.no_grad()
@every_kind
def test_another_image_size_is_interpolated_alike(tmp_path: Path, kind: str) -> None:
    model = ours(kind)
    model.save_pretrained(tmp_path)
    other = getattr(transformers, kind).from_pretrained(tmp_path)
    for size in ((48, 48), (40, 64), (24, 24)):
        x = noise(1, 3, *size)
        assert_same(model(x, interpolate_pos_encoding=True), other(x, interpolate_pos_encoding=True))


@torch.no_grad()
def test_gradients_agree(tmp_path: Path) -> None:
    model = ours("DeiTForImageClassification")
    model.save_pretrained(tmp_path)
    other = transformers.DeiTForImageClassification.from_pretrained(tmp_path)
    x = images(model.config)
    with torch.enable_grad():
        for network in (model, other):
            network(x).logits.square().sum().backward()
    mine, yours = dict(model.named_parameters()), dict(other.named_parameters())
    for name in (
        "embeddings.position_embeddings",
        "embeddings.distillation_token",
        "embeddings.patch_embeddings.projection.weight",
    ):
        assert torch.allclose(mine[f"deit.{name}"].grad, yours[f"deit.{name}"].grad, atol=1e-4, rtol=1e-4), name  # type: ignore[arg-type]


@torch.no_grad()
def test_the_full_size_model_agrees_both_ways(tmp_path: Path) -> None:
    model = randomized(
        deit.DeiTForImageClassificationWithTeacher(variant_config("deit-tiny-distilled-patch16-224", layer_norm_eps=1e-12)),  # type: ignore[arg-type]
        std=0.03,
    )
    model.save_pretrained(tmp_path / "ours")
    other = loaded_whole(transformers.DeiTForImageClassificationWithTeacher, tmp_path / "ours")
    x = images(model.config, count=1)
    assert_same(model(x), other(x))
    other.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    assert_same(deit.load_model(tmp_path / "theirs")(x), other(x))


@torch.no_grad()
@every_kind
@every_shape
def test_transformers_reads_what_we_save_and_every_layer_says_the_same(
    tmp_path: Path, kind: str, shape: dict[str, Any]
) -> None:
    model = ours(kind, **shape)
    model.save_pretrained(tmp_path)
    other = loaded_whole(getattr(transformers, kind), tmp_path, attn_implementation="eager")
    x = images(model.config)
    asked = {"output_attentions": True, "output_hidden_states": True}
    one, two = model(x, **asked), other(x, **asked)
    assert_same(one, two)
    layers = model.config.num_hidden_layers
    for part, count in (("hidden_states", layers + 1), ("attentions", layers)):
        mine, yours = getattr(one, part), getattr(two, part)
        assert len(mine) == len(yours) == count
        for depth, (left, right) in enumerate(zip(mine, yours, strict=True)):
            assert left.shape == right.shape
            assert torch.allclose(left, right, atol=1e-5, rtol=1e-5), f"{part} {depth}"


@pytest.mark.parametrize("shape", [{}, {"num_channels": 1}], ids=["color", "gray"])
def test_hidden_patches_are_filled_in_alike(tmp_path: Path, shape: dict[str, Any]) -> None:
    other = theirs("DeiTForMaskedImageModeling", encoder_stride=8, **shape)
    other.save_pretrained(tmp_path / "theirs")
    model = deit.DeiTForMaskedImageModeling.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    back = loaded_whole(transformers.DeiTForMaskedImageModeling, tmp_path / "ours")
    x = images(model.config)
    hidden = torch.arange(32).reshape(2, 16) % 3 == 0
    for network in (other, back):
        one, two = model(x, bool_masked_pos=hidden), network(x, bool_masked_pos=hidden)
        assert torch.allclose(one.reconstruction, two.reconstruction, atol=1e-5)
        assert torch.allclose(one.loss, two.loss, atol=1e-6)
        assert torch.allclose(model(x).reconstruction, network(x).reconstruction, atol=1e-5)


LABELS = {
    "single": (5, None, torch.tensor([0, 4])),
    "single, as int32": (5, None, torch.tensor([0, 4], dtype=torch.int32)),
    "several": (5, None, torch.tensor([[0.0, 1, 0, 1, 0], [1.0, 0, 0, 0, 0]])),
    "several, said": (5, "multi_label_classification", torch.tensor([[0.0, 1, 0, 1, 0], [1.0, 0, 0, 0, 0]])),
    "values": (5, "regression", torch.randn(2, 5, generator=torch.Generator().manual_seed(0))),
    "one value": (1, None, torch.tensor([0.5, -1.0])),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("case", LABELS.values(), ids=LABELS)
def test_labels_give_the_same_loss_and_gradients(tmp_path: Path, kind: str, case: Any) -> None:
    classes, problem, labels = case
    model = ours(kind, num_labels=classes, problem_type=problem)
    model.save_pretrained(tmp_path)
    other: Any = loaded_whole(getattr(transformers, kind), tmp_path)
    assert other.config.problem_type == problem
    x = images(model.config)
    given = labels.long() if labels.dtype == torch.int32 else labels  # torch's cross-entropy takes no int32
    one, two = model(x, labels=labels), other(x, labels=given)
    assert list(one) == list(two) == ["loss", "logits"]
    assert torch.allclose(one[0], two[0], atol=1e-5)
    backward(one.loss)
    backward(two.loss)
    assert torch.allclose(model.classifier.weight.grad, other.classifier.weight.grad, atol=1e-5)
    assert model.config.problem_type == problem


def test_two_heads_answer_in_the_same_order(tmp_path: Path) -> None:
    model = ours(KINDS[2])
    model.save_pretrained(tmp_path)
    other = loaded_whole(getattr(transformers, KINDS[2]), tmp_path)
    x = images(model.config)
    asked = {"output_hidden_states": True}
    assert list(model(x, **asked)) == list(other(x, **asked))
    one, two = (network(x, return_dict=False) for network in (model, other))
    assert len(one) == len(two) == 3
    for left, right in zip(one, two, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("distilled", [True, False])
def test_the_configurations_mean_the_same(tmp_path: Path, distilled: bool) -> None:
    name, mine = ("DeiTConfig", DeiTConfig) if distilled else ("ViTConfig", ViTConfig)
    fields: dict[str, Any] = {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "image_size": 64,
        "id2label": {0: "猫", 1: "dog", 2: "c"},
    }
    mine(**fields).save_pretrained(tmp_path / "ours")
    read = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    getattr(transformers, name)(**fields).save_pretrained(tmp_path / "theirs")
    back = mine.from_pretrained(tmp_path / "theirs")
    for key in mine.model_fields:
        default = 96 if key == "pooler_output_size" else None  # theirs writes out what None stands for
        if key in OURS - {"pooler_output_size"}:
            continue
        assert (getattr(read, key) or default) == (getattr(mine(**fields), key) or default), key
        assert (getattr(back, key) or default) == (getattr(mine(**fields), key) or default), key
    assert read.num_labels == back.num_labels == 3
    assert read.label2id == back.label2id == {"猫": 0, "dog": 1, "c": 2}


def test_the_defaults_of_the_configurations_are_the_same() -> None:
    for mine, yours in ((DeiTConfig(), transformers.DeiTConfig()), (ViTConfig(), transformers.ViTConfig())):
        for key in type(mine).model_fields:
            if key not in OURS:
                assert getattr(mine, key) == getattr(yours, key), key
