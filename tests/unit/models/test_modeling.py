"""The model: shapes, gradients, what each token and factor does, and the way from and to disk."""

from __future__ import annotations

import copy
import json
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deit.config import DeiTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from deit.models.losses import Distillation, training_loss
from deit.models.modeling import (
    ACTIVATIONS,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
    load_model,
    new_classifier,
)
from deit.models.pretrained import PreTrainedModel
from tests.helpers import backward, noise, randomized, tiny_deit, tiny_vit

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
    return dict(output)


def answer(model: Callable[..., Any], pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
    """All that the model says, end to end."""
    return torch.cat([value.flatten(1) for value in tensors(model(pixel_values, **options)).values()], dim=1)


@every_model
def test_every_parameter_gets_a_gradient(make: Callable[[], PreTrainedModel]) -> None:
    model = randomized(make()).train()
    backward(answer(model, noise(2, 3, 32, 32)).square().sum())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_the_model_trains_as_one_graph() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
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
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=1)))
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
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    output = model(noise(2, 3, 32, 32))
    assert not torch.allclose(output.cls_logits, output.distillation_logits)
    assert torch.allclose(output.logits, (output.cls_logits + output.distillation_logits) / 2)


def test_each_head_looks_at_its_own_token() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(1, 3, 32, 32)
    tokens = model.deit(images).last_hidden_state
    output = model(images)
    assert torch.equal(output.cls_logits, model.cls_classifier(tokens[:, 0]))
    assert torch.equal(output.distillation_logits, model.distillation_classifier(tokens[:, 1]))


def test_the_prefix_tokens_come_before_the_patches_in_reading_order() -> None:
    embeddings = randomized(DeiTModel(tiny_deit())).embeddings
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
    model = randomized(make())
    images = noise(4, 3, 32, 32)
    assert torch.allclose(answer(model, images)[:batch], answer(model, images[:batch]), atol=1e-4)


def test_training_mode_changes_nothing_without_dropout() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(2, 3, 32, 32)
    assert torch.equal(answer(model.train(), images), answer(model.eval(), images))


def test_dropout_acts_in_training_alone() -> None:
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = randomized(DeiTModel(tiny_deit(**{field: 0.5})))
        images = noise(2, 3, 32, 32)
        assert torch.equal(answer(model, images), answer(model, images))
        assert not torch.equal(answer(model.train(), images), answer(model, images))


def test_a_residual_scale_of_ones_changes_nothing_and_of_zeros_skips_every_branch() -> None:
    model = randomized(DeiTModel(tiny_deit(), add_pooling_layer=False))
    images = noise(3, 3, 32, 32)
    assert torch.equal(answer(model, images, residual_scale=torch.ones(2, 2, 3)), answer(model, images))
    skipped = model(images, residual_scale=torch.zeros(2, 2, 3)).last_hidden_state
    assert torch.allclose(skipped, model.layernorm(model.embeddings(images)), atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("branch", [0, 1])
def test_a_residual_scale_reaches_one_branch_of_one_image(layer: int, branch: int) -> None:
    model = randomized(DeiTModel(tiny_deit()))
    images = noise(3, 3, 32, 32)
    factors = torch.ones(2, 2, 3)
    factors[layer, branch, 1] = 0.0
    same = torch.isclose(answer(model, images, residual_scale=factors), answer(model, images), atol=1e-5).all(dim=1)
    assert same.tolist() == [True, False, True]


def test_a_residual_scale_skips_the_branch_that_it_names() -> None:
    model = randomized(ViTModel(tiny_vit(num_hidden_layers=1), add_pooling_layer=False))
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
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    with pytest.raises(UserError, match="40 x 32, this model takes 32 x 32"):
        model(noise(1, 3, 40, 32))
    assert model(noise(1, 3, 40, 32), interpolate_pos_encoding=True).logits.shape == (1, 5)
    assert model(noise(1, 3, 45, 33), interpolate_pos_encoding=True).logits.shape == (1, 5)  # 5 x 4 whole patches
    with pytest.raises(UserError, match="smaller than one patch"):
        model(noise(1, 3, 7, 32), interpolate_pos_encoding=True)
    with pytest.raises(UserError, match="1 channels: this model takes 3"):
        model(noise(1, 1, 32, 32))


def test_a_size_asked_for_needlessly_changes_nothing() -> None:
    model = randomized(DeiTModel(tiny_deit()))
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
    model = randomized(make())
    model.save_pretrained(tmp_path)
    without: dict[str, Any] = (
        {"add_pooling_layer": False} if isinstance(model, ViTModel) and not hasattr(model, "pooler") else {}
    )
    twin = type(model).from_pretrained(tmp_path, **without)
    assert twin.config.to_dict() == {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert not twin.training
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_a_model_directory_says_which_class_it_holds(tmp_path: Path, kind: Any) -> None:
    model = randomized(kind(tiny_vit() if kind is ViTForImageClassification else tiny_deit()))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is kind
    images = noise(1, 3, 32, 32)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_a_missing_model_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist: check the path"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_a_configuration_of_other_classes_than_the_file_is_refused(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=5)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cls_classifier\.\w+ in .* has shape \(5,.*\), but the configuration gives \(2"):
        load_model(tmp_path)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit()))
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


def explicit(model: Any, images: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(images).logits
    model.set_attn_implementation("sdpa")
    return logits


def test_attentions_are_answered_when_they_are_asked_for() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), std=0.1)
    images = noise(2, 3, 32, 32)
    output = model(images, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 3, 18, 18)] * 2
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 18, 24)] * 3
    for weights in output.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 18))
    assert torch.equal(output.hidden_states[0], model.deit.embeddings(images))
    assert torch.allclose(output.logits, model(images).logits, atol=1e-6)
    assert torch.allclose(explicit(model, images), model(images).logits, atol=1e-6)
    assert model(images).attentions is None
    model.config.output_attentions = model.config.output_hidden_states = True
    assert list(model(images))[-2:] == ["hidden_states", "attentions"]


@torch.inference_mode()
def test_what_was_not_asked_for_is_not_kept() -> None:
    model: Any = DeiTModel(tiny_deit(num_hidden_layers=4)).eval()
    model.set_attn_implementation("eager")
    seen: list[Any] = []
    alive: list[int] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        alive.append(sum(reference() is not None for reference in seen))
        seen.extend(weakref.ref(part) for part in output)  # tokens and attentions

    for layer in model.layers:
        layer.register_forward_hook(note)
    model(noise(1, 3, 32, 32))
    assert max(alive) <= 2  # at most those of the layer before
    model(noise(1, 3, 32, 32), output_attentions=True, output_hidden_states=True)
    assert max(alive) >= 6


def test_a_tuple_is_answered_when_it_is_asked_for() -> None:
    model = randomized(DeiTForImageClassification(tiny_deit()))
    images = noise(2, 3, 32, 32)
    loss, logits, states = model(images, labels=torch.tensor([0, 1]), output_hidden_states=True, return_dict=False)
    assert loss.ndim == 0
    assert torch.equal(logits, model(images).logits)
    assert len(states) == 3
    model.config.return_dict = False
    assert isinstance(model(images), tuple)
    assert isinstance(model.deit(images), tuple)


@pytest.mark.parametrize("explicitly", [False, True])
def test_a_masked_head_is_as_good_as_gone(explicitly: bool) -> None:
    model = randomized(DeiTModel(tiny_deit()))
    model.set_attn_implementation("eager" if explicitly else "sdpa")
    images = noise(2, 3, 32, 32)
    whole = model(images).last_hidden_state
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    masked = model(images, head_mask=mask).last_hidden_state
    assert not torch.allclose(masked, whole)
    assert torch.equal(model(images, head_mask=torch.ones(3)).last_hidden_state, whole)
    pruned = copy.deepcopy(model)
    pruned.prune_heads({0: [1]})
    pruned.prune_heads({1: [0, 2]})
    assert torch.allclose(pruned(images).last_hidden_state, masked, atol=1e-5)
    assert torch.allclose(pruned(images, head_mask=mask).last_hidden_state, masked, atol=1e-5)
    assert pruned.num_parameters() < model.num_parameters()
    assert (pruned.config.pruned_heads, model.config.pruned_heads) == ({0: [1], 1: [0, 2]}, {})
    answer = model(images, head_mask=mask, output_attentions=True)
    assert answer.attentions[0][:, 1].abs().sum() == 0
    with pytest.raises(UserError, match="head_mask is \\(2,\\): pass 3 heads, or 2 layers x 3 heads"):
        model(images, head_mask=torch.ones(2))


def test_pruning_takes_numbers_in_any_form_or_nothing_at_all() -> None:
    model: Any = randomized(DeiTModel(tiny_deit())).requires_grad_(False)
    with pytest.raises(ConfigError, match="leaves no head"):
        model.prune_heads({0: [0], 1: [0, 1, 2]})
    assert [layer.attention.heads for layer in model.layers] == [[0, 1, 2]] * 2
    model.prune_heads({"0": [1]})
    assert [layer.attention.heads for layer in model.layers] == [[0, 2], [0, 1, 2]]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_model_can_be_pickled(activation: str) -> None:
    model = randomized(ViTForImageClassification(tiny_vit(hidden_act=activation)))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(again(noise(1, 3, 32, 32)).logits, model(noise(1, 3, 32, 32)).logits)


def test_images_that_are_no_batch_are_named() -> None:
    with pytest.raises(UserError, match=r"\(3, 32, 32\): pass images x channels x height x width"):
        ViTModel(tiny_vit())(noise(3, 32, 32))


def test_a_pruned_model_comes_back_from_disk(tmp_path: Path) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    model.prune_heads({1: [1]})
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(noise(1, 3, 32, 32)).logits, model(noise(1, 3, 32, 32)).logits)


def test_recomputing_blocks_changes_no_gradient() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=3))).train()
    grads = []
    for every in (None, 1, 2):
        model.zero_grad()
        if every is not None:
            model.activation_checkpointing_enable(every_n_layers=every)
        backward(model(noise(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss)
        grads.append([parameter.grad for parameter in model.parameters()])
    for other in grads[1:]:
        assert all(torch.equal(one, two) for one, two in zip(grads[0], other, strict=True))  # type: ignore[arg-type]
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(UserError, match="leave offload out"):
        model.activation_checkpointing_enable(offload=True)


def test_recomputed_blocks_really_run_twice() -> None:
    model: Any = DeiTModel(tiny_deit()).train()
    model.gradient_checkpointing_enable()
    runs: list[int] = []
    model.layers[0].attention.register_forward_pre_hook(lambda *_: runs.append(1))
    backward(model(noise(1, 3, 32, 32)).last_hidden_state.sum())
    assert len(runs) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_answer_nearly_the_same(dtype: torch.dtype) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), std=0.1)
    images = noise(2, 3, 32, 32)
    expected = model(images).logits
    half = copy.deepcopy(model).to(dtype)
    output = half(images, output_attentions=True)  # float32 images are cast, as transformers does
    assert (output.logits.dtype, half.dtype) == (dtype, dtype)
    assert torch.allclose(output.logits.float(), expected, atol=0.05)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    model = DeiTForImageClassification(tiny_deit(num_channels=channels))
    assert model(noise(2, channels, 32, 32)).logits.shape == (2, 5)
    with pytest.raises(UserError, match=f"7 channels: this model takes {channels}"):
        model(noise(2, 7, 32, 32))


def test_a_model_without_classes_answers_its_token() -> None:
    model = randomized(ViTForImageClassification(tiny_vit(num_labels=0)))
    images = noise(2, 3, 32, 32)
    assert torch.equal(model(images).logits, model.vit(images).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_it_is_exported_with_a_free_batch(name: str, tmp_path: Path) -> None:
    model = randomized(MAKERS[name]())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (noise(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {0: batch}})
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    images = noise(5, 3, 32, 32, seed=1)
    output = again(images)
    assert type(output) is type(model(images))
    assert torch.allclose(output.logits, model(images).logits, atol=1e-5)


def test_a_copy_is_another_model() -> None:
    model: Any = randomized(DeiTForImageClassification(tiny_deit()))
    other = copy.deepcopy(model)
    other.config.num_labels = 2
    with torch.no_grad():
        other.classifier.weight.zero_()
    assert model.config.num_labels == 5
    assert model.classifier.weight.abs().sum() > 0
    assert other.deit.config is other.config


def test_masked_patches_are_not_seen_and_their_pixels_are_the_loss() -> None:
    model = randomized(DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8, image_size=(32, 16))), std=0.1)
    images = noise(2, 3, 32, 16)
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, 3] = True  # the second row, second column
    changed = images.clone()
    changed[:, :, 8:16, 8:16] = 7.0
    one, other = model(images, bool_masked_pos=hidden), model(changed, bool_masked_pos=hidden)
    assert torch.equal(one.reconstruction, other.reconstruction)
    assert one.reconstruction.shape == images.shape
    wrong = (images - one.reconstruction)[:, :, 8:16, 8:16].abs().mean()
    assert torch.allclose(one.loss, wrong, atol=1e-5)
    with pytest.raises(UserError, match=r"bool_masked_pos is \(2, 7\): pass images x patches, 2 x 8"):
        model(images, bool_masked_pos=hidden[:, 1:])
    with pytest.raises(UserError, match="20 x 16: both must divide by 8"):
        model(noise(1, 3, 20, 16), interpolate_pos_encoding=True)
    with pytest.raises(UserError, match="no mask token"):
        DeiTModel(tiny_deit())(noise(1, 3, 32, 32), bool_masked_pos=torch.zeros(1, 16))
    with pytest.raises(UserError, match="encoder_stride is 16"):
        DeiTForMaskedImageModeling(tiny_deit(encoder_stride=16))


def test_the_loss_of_two_heads_is_the_papers() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images, labels, teacher = noise(3, 3, 32, 32), torch.tensor([0, 1, 4]), noise(3, 5, seed=3)
    output = model(images, labels=labels, teacher_logits=teacher)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    for kind in ("hard", "soft"):
        model.config.distillation_type = kind
        given = training_loss(Distillation(mode=kind), output.cls_logits, one_hot, output.distillation_logits, teacher)
        for targets in (labels, one_hot):
            assert torch.allclose(model(images, labels=targets, teacher_logits=teacher).loss, given)
    assert torch.allclose(model(images, labels=labels.int(), teacher_logits=teacher).loss, given)
    with pytest.raises(UserError, match=r"teacher_logits are \(3, 7\): images x classes is \(3, 5\)"):
        model(images, labels=labels, teacher_logits=noise(3, 7))
    with pytest.raises(UserError, match="teacher_logits and no labels"):
        model(images, teacher_logits=teacher)
    alone = model(images, labels=labels).loss
    each = [torch.nn.functional.cross_entropy(head, labels) for head in (output.cls_logits, output.distillation_logits)]
    assert torch.allclose(alone, (each[0] + each[1]) / 2)
    assert model(images).loss is None
