"""The model: shapes, gradients, what each token and factor does, and the way from and to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deit.config import DeiTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from deit.modeling import (
    ACTIVATIONS,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
    load_model,
    new_classifier,
)
from tests.helpers import backward, noise, randomised, tiny_deit, tiny_vit

MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "ViTModel": lambda: ViTModel(tiny_vit()),
    "DeiTModel": lambda: DeiTModel(tiny_deit()),
    "DeiTModel, no pooler": lambda: DeiTModel(tiny_deit(), add_pooling_layer=False),
    "ViTForImageClassification": lambda: ViTForImageClassification(tiny_vit()),
    "DeiTForImageClassification": lambda: DeiTForImageClassification(tiny_deit()),
    "DeiTForImageClassificationWithTeacher": lambda: DeiTForImageClassificationWithTeacher(tiny_deit()),
    "no qkv bias": lambda: DeiTForImageClassificationWithTeacher(tiny_deit(qkv_bias=False)),
}
every_model = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def tensors(output: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(output).items() if value is not None}


def answer(model: Callable[..., Any], pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
    """All that the model says, end to end."""
    return torch.cat([value.flatten(1) for value in tensors(model(pixel_values, **options)).values()], dim=1)


@every_model
def test_every_parameter_gets_a_gradient(make: Callable[[], PreTrainedModel]) -> None:
    model = randomised(make()).train()
    backward(answer(model, noise(2, 3, 32, 32)).square().sum())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@pytest.mark.parametrize("name", ["DeiTModel", "ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_the_model_trains_as_one_graph(name: str) -> None:
    model = randomised(MAKERS[name]())
    images, factors = noise(2, 3, 32, 32), torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    grads = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        backward(answer(network, images, residual_scale=factors).square().mean())
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, compiled in zip(*grads, strict=True):
        assert torch.allclose(plain, compiled, rtol=1e-4, atol=1e-5)


def test_the_compiled_model_answers_as_the_plain_one() -> None:
    model = randomised(DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=1)))
    images = noise(2, 3, 32, 32)
    torch.compiler.reset()
    with torch.inference_mode():
        assert torch.allclose(answer(torch.compile(model, fullgraph=True), images), answer(model, images), atol=1e-4)


def test_the_outputs_have_the_documented_shapes() -> None:
    images = noise(2, 3, 32, 32)
    hidden = DeiTModel(tiny_deit(pooler_output_size=7))(images)
    assert hidden.last_hidden_state.shape == (2, 18, 24)
    assert hidden.pooler_output.shape == (2, 7)
    assert DeiTModel(tiny_deit(), add_pooling_layer=False)(images).pooler_output is None
    output = DeiTForImageClassificationWithTeacher(tiny_deit())(images)
    assert {name: tuple(logits.shape) for name, logits in output.heads.items()} == {
        "class": (2, 5),
        "distillation": (2, 5),
        "both": (2, 5),
    }
    assert list(ViTForImageClassification(tiny_vit())(images).heads) == ["class"]


def test_the_answer_of_two_heads_is_the_mean_of_their_logits() -> None:
    model = randomised(DeiTForImageClassificationWithTeacher(tiny_deit()))
    output = model(noise(2, 3, 32, 32))
    assert not torch.allclose(output.cls_logits, output.distillation_logits)
    assert torch.allclose(output.logits, (output.cls_logits + output.distillation_logits) / 2)


def test_each_head_looks_at_its_own_token() -> None:
    model = randomised(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(1, 3, 32, 32)
    tokens = model.deit(images).last_hidden_state
    output = model(images)
    assert torch.equal(output.cls_logits, model.cls_classifier(tokens[:, 0]))
    assert torch.equal(output.distillation_logits, model.distillation_classifier(tokens[:, 1]))


def test_the_prefix_tokens_come_before_the_patches_in_reading_order() -> None:
    embeddings = randomised(DeiTModel(tiny_deit())).embeddings
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 0:8, 8:16] = 1.0  # the patch in the first row and second column
    changed = (embeddings(images) - embeddings(torch.zeros(1, 3, 32, 32))).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 + 1]
    plain = embeddings(images)[0] - embeddings.position_embeddings[0]
    assert torch.allclose(plain[0], embeddings.cls_token[0, 0], atol=1e-6)
    assert torch.allclose(plain[1], embeddings.distillation_token[0, 0], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@every_model
def test_an_image_is_answered_alike_in_any_batch(make: Callable[[], PreTrainedModel], batch: int) -> None:
    model = randomised(make())
    images = noise(4, 3, 32, 32)
    assert torch.allclose(answer(model, images)[:batch], answer(model, images[:batch]), atol=1e-4)


def test_training_mode_changes_nothing_without_dropout() -> None:
    model = randomised(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(2, 3, 32, 32)
    assert torch.equal(answer(model.train(), images), answer(model.eval(), images))


def test_dropout_acts_in_training_alone() -> None:
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = randomised(DeiTModel(tiny_deit(**{field: 0.5})))
        images = noise(2, 3, 32, 32)
        assert torch.equal(answer(model, images), answer(model, images))
        assert not torch.equal(answer(model.train(), images), answer(model, images))


def test_a_residual_scale_of_ones_changes_nothing_and_of_zeros_skips_every_branch() -> None:
    model = randomised(DeiTModel(tiny_deit(), add_pooling_layer=False))
    images = noise(3, 3, 32, 32)
    assert torch.equal(answer(model, images, residual_scale=torch.ones(2, 2, 3)), answer(model, images))
    skipped = model(images, residual_scale=torch.zeros(2, 2, 3)).last_hidden_state
    assert torch.allclose(skipped, model.layernorm(model.embeddings(images)), atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("branch", [0, 1])
def test_a_residual_scale_reaches_one_branch_of_one_image(layer: int, branch: int) -> None:
    model = randomised(DeiTModel(tiny_deit()))
    images = noise(3, 3, 32, 32)
    factors = torch.ones(2, 2, 3)
    factors[layer, branch, 1] = 0.0
    same = torch.isclose(answer(model, images, residual_scale=factors), answer(model, images), atol=1e-5).all(dim=1)
    assert same.tolist() == [True, False, True]


def test_a_residual_scale_skips_the_branch_that_it_names() -> None:
    model = randomised(ViTModel(tiny_vit(num_hidden_layers=1), add_pooling_layer=False))
    images = noise(1, 3, 32, 32)
    block, x = model.layers[0], model.embeddings(images)
    without_attention = model(images, residual_scale=torch.tensor([[[0.0], [1.0]]])).last_hidden_state
    assert torch.allclose(without_attention, model.layernorm(x + block.mlp(block.layernorm_after(x))), atol=1e-5)  # type: ignore[operator]


def test_every_activation_is_what_its_name_says() -> None:
    x = torch.linspace(-3, 3, 7)
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    exact = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    swish = x / (1 + torch.exp(-x))
    expected = {
        "gelu": exact,
        "gelu_new": tanh,
        "gelu_pytorch_tanh": tanh,
        "relu": x.clamp(min=0),
        "silu": swish,
        "swish": swish,
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        assert torch.allclose(ACTIVATIONS[name](x), values, atol=1e-6), name


def test_images_of_another_size_are_refused_unless_asked_for() -> None:
    model = randomised(DeiTForImageClassificationWithTeacher(tiny_deit()))
    with pytest.raises(UserError, match="40 x 32, this model takes 32 x 32"):
        model(noise(1, 3, 40, 32))
    assert model(noise(1, 3, 40, 32), interpolate_pos_encoding=True).logits.shape == (1, 5)
    assert model(noise(1, 3, 45, 33), interpolate_pos_encoding=True).logits.shape == (1, 5)  # 5 x 4 whole patches
    with pytest.raises(UserError, match="smaller than one patch"):
        model(noise(1, 3, 7, 32), interpolate_pos_encoding=True)
    with pytest.raises(UserError, match="1 channels: this model takes 3"):
        model(noise(1, 1, 32, 32))


def test_a_size_asked_for_needlessly_changes_nothing() -> None:
    model = randomised(DeiTModel(tiny_deit()))
    images = noise(1, 3, 32, 32)
    assert torch.equal(answer(model, images, interpolate_pos_encoding=True), answer(model, images))


def test_images_and_patches_need_not_be_square() -> None:
    model = new_classifier(tiny_vit(image_size=(32, 48), patch_size=(16, 8), num_channels=1))
    assert model(noise(2, 1, 32, 48)).logits.shape == (2, 5)


def test_fresh_weights_are_truncated_normal_with_zero_biases_and_unit_norms() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit(hidden_size=192, intermediate_size=768, initializer_range=0.02))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.001, name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name


def test_fresh_weights_depend_on_the_generator_alone() -> None:
    states = [new_classifier(tiny_deit(), torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["cls_classifier.weight"], states[2]["cls_classifier.weight"])


def test_a_new_classifier_has_two_heads_where_there_is_a_distillation_token() -> None:
    assert type(new_classifier(tiny_deit())) is DeiTForImageClassificationWithTeacher
    assert type(new_classifier(tiny_vit())) is ViTForImageClassification


def test_a_model_refuses_the_other_models_configuration() -> None:
    with pytest.raises(UserError, match="DeiTModel takes a DeiTConfig: not a ViTConfig"):
        DeiTModel(tiny_vit())
    with pytest.raises(UserError, match="ViTModel takes a ViTConfig"):
        ViTModel(tiny_deit())


@every_model
def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    model = randomised(make())
    if hasattr(model, "pooler") or "Model" not in type(model).__name__:  # from_pretrained makes the pooler
        model.save_pretrained(tmp_path)
        twin = type(model).from_pretrained(tmp_path)
        assert twin.config.to_dict() == {**model.config.to_dict(), "architectures": [type(model).__name__]}
        assert not twin.training
        assert twin.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(twin.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_a_model_directory_says_which_class_it_holds(tmp_path: Path, kind: Any) -> None:
    model = randomised(kind(tiny_vit() if kind is ViTForImageClassification else tiny_deit()))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is kind
    images = noise(1, 3, 32, 32)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_a_missing_model_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is no model directory: check the path"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="download facebook/deit-tiny-patch16-224"):
        load_model("deit-tiny-patch16-224")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match="class 'BertModel': known are DeiTForImageClassification"):
        load_model(tmp_path)


def test_a_distilled_checkpoint_does_not_silently_lose_its_heads(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks classifier\.bias"):
        DeiTForImageClassification.from_pretrained(tmp_path)


def test_a_checkpoint_of_the_other_model_type_is_refused(tmp_path: Path) -> None:
    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type is 'vit'"):
        DeiTForImageClassification.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_shape_names_the_tensor(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=5)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cls_classifier\.weight is \(5, 24\) in the checkpoint and \(2, 24\)"):
        load_model(tmp_path)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    model = randomised(ViTForImageClassification(tiny_vit()))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = noise(1, 3, 32, 32)
    assert torch.allclose(loaded(images).logits, model(images).logits, atol=0.05)


def test_the_model_is_made_without_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = new_classifier(DeiTConfig(hidden_size=16_384, num_attention_heads=128, num_hidden_layers=4))
    assert model(torch.zeros(1, 3, 224, 224, device="meta")).logits.shape == (1, 2)
