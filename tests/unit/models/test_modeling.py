"""The models: shapes, gradients, tokens, masks, options of ``forward``, losses, compilation and export."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deit.errors import UserError
from deit.models.losses import Distillation, training_loss
from deit.models.modeling import (
    ACTIVATIONS,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
    new_classifier,
)
from deit.models.pretrained import PreTrainedModel
from tests.helpers import backward, noise, randomized, tiny_deit, tiny_vit
from tests.unit.models.factories import MAKERS, every_model


def all_outputs(model: Callable[..., Any], pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
    """Returns all tensors of the output, flattened and concatenated: (B, values)."""
    return torch.cat([tensor.flatten(1) for tensor in model(pixel_values, **options).values()], dim=1)


@every_model
def test_every_parameter_gets_a_gradient(make: Callable[[], PreTrainedModel]) -> None:
    model = randomized(make()).train()
    backward(all_outputs(model, noise(2, 3, 32, 32)).square().sum())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_compiled_model_has_the_same_gradients() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images, factors = noise(2, 3, 32, 32), torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    grads = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        backward(all_outputs(network, images, residual_scale=factors).square().mean())
        grads.append([parameter.grad for parameter in model.parameters()])
    for expected, compiled in zip(*grads, strict=True):
        assert torch.allclose(expected, compiled, rtol=1e-4, atol=1e-5)


def test_compiled_model_has_the_same_output() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=1)))
    images = noise(2, 3, 32, 32)
    torch.compiler.reset()
    with torch.inference_mode():
        assert torch.allclose(all_outputs(torch.compile(model, fullgraph=True), images), all_outputs(model, images), atol=1e-4)


def test_outputs_have_the_documented_shapes() -> None:
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


def test_prediction_of_two_heads_is_the_mean_of_their_logits() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    output = model(noise(2, 3, 32, 32))
    assert not torch.allclose(output.cls_logits, output.distillation_logits)
    assert torch.allclose(output.logits, (output.cls_logits + output.distillation_logits) / 2)


def test_each_head_reads_its_own_token() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(1, 3, 32, 32)
    tokens = model.deit(images).last_hidden_state
    output = model(images)
    assert torch.equal(output.cls_logits, model.cls_classifier(tokens[:, 0]))
    assert torch.equal(output.distillation_logits, model.distillation_classifier(tokens[:, 1]))


def test_prefix_tokens_precede_patches_in_row_major_order() -> None:
    embeddings = randomized(DeiTModel(tiny_deit())).embeddings
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 0:8, 8:16] = 1.0  # the patch in the first row and second column
    changed = (embeddings(images) - embeddings(torch.zeros(1, 3, 32, 32))).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 + 1]
    tokens = embeddings(images)[0] - embeddings.position_embeddings[0]
    assert torch.allclose(tokens[0], embeddings.cls_token[0, 0], atol=1e-6)
    assert torch.allclose(tokens[1], embeddings.distillation_token[0, 0], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@every_model
def test_output_does_not_depend_on_the_batch(make: Callable[[], PreTrainedModel], batch: int) -> None:
    model = randomized(make())
    images = noise(4, 3, 32, 32)
    assert torch.allclose(all_outputs(model, images)[:batch], all_outputs(model, images[:batch]), atol=1e-4)


def test_training_mode_changes_nothing_without_dropout() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images = noise(2, 3, 32, 32)
    assert torch.equal(all_outputs(model.train(), images), all_outputs(model.eval(), images))


def test_dropout_acts_only_in_training() -> None:
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = randomized(DeiTModel(tiny_deit(**{field: 0.5})))
        images = noise(2, 3, 32, 32)
        assert torch.equal(all_outputs(model, images), all_outputs(model, images))
        assert not torch.equal(all_outputs(model.train(), images), all_outputs(model, images))


def test_residual_scale_of_ones_changes_nothing_and_of_zeros_skips_every_branch() -> None:
    model = randomized(DeiTModel(tiny_deit(), add_pooling_layer=False))
    images = noise(3, 3, 32, 32)
    assert torch.equal(all_outputs(model, images, residual_scale=torch.ones(2, 2, 3)), all_outputs(model, images))
    skipped = model(images, residual_scale=torch.zeros(2, 2, 3)).last_hidden_state
    assert torch.allclose(skipped, model.layernorm(model.embeddings(images)), atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("branch", [0, 1])
def test_residual_scale_affects_one_image(layer: int, branch: int) -> None:
    model = randomized(DeiTModel(tiny_deit()))
    images = noise(3, 3, 32, 32)
    factors = torch.ones(2, 2, 3)
    factors[layer, branch, 1] = 0.0
    same = torch.isclose(all_outputs(model, images, residual_scale=factors), all_outputs(model, images), atol=1e-5).all(dim=1)
    assert same.tolist() == [True, False, True]


def test_residual_scale_skips_the_first_branch() -> None:
    model = randomized(ViTModel(tiny_vit(num_hidden_layers=1), add_pooling_layer=False))
    images = noise(1, 3, 32, 32)
    block, x = model.layers[0], model.embeddings(images)
    without_attention = model(images, residual_scale=torch.tensor([[[0.0], [1.0]]])).last_hidden_state
    assert torch.allclose(without_attention, model.layernorm(x + block.mlp(block.layernorm_after(x))), atol=1e-5)  # type: ignore[operator]


def test_kept_patches_are_those_that_attention_sees() -> None:
    model = randomized(DeiTModel(tiny_deit(), add_pooling_layer=False))
    images, kept = noise(2, 3, 32, 32), torch.tensor([[0, 2, 15], [1, 2, 3]])
    states = model(images, kept_patches=kept).last_hidden_state
    tokens = model.embeddings(images)
    for image, patches in enumerate(kept.tolist()):
        x = tokens[image : image + 1, [0, 1, *(2 + patch for patch in patches)]]
        for layer in model.layers:
            x = layer(x)
        torch.testing.assert_close(states[image : image + 1], model.layernorm(x))
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(all_outputs(model, images, kept_patches=everything), all_outputs(model, images))


def test_activations() -> None:
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


def test_images_of_another_size_need_interpolation() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    with pytest.raises(UserError, match="40 x 32, this model takes 32 x 32"):
        model(noise(1, 3, 40, 32))
    assert model(noise(1, 3, 40, 32), interpolate_pos_encoding=True).logits.shape == (1, 5)
    assert model(noise(1, 3, 45, 33), interpolate_pos_encoding=True).logits.shape == (1, 5)  # 5 x 4 whole patches
    with pytest.raises(UserError, match="smaller than one patch"):
        model(noise(1, 3, 7, 32), interpolate_pos_encoding=True)
    with pytest.raises(UserError, match="1 channels: this model takes 3"):
        model(noise(1, 1, 32, 32))


def test_interpolation_to_the_same_size_changes_nothing() -> None:
    model = randomized(DeiTModel(tiny_deit()))
    images = noise(1, 3, 32, 32)
    assert torch.equal(all_outputs(model, images, interpolate_pos_encoding=True), all_outputs(model, images))


def test_images_and_patches_need_not_be_square() -> None:
    model = new_classifier(tiny_vit(image_size=(32, 48), patch_size=(16, 8), num_channels=1))
    assert model(noise(2, 1, 32, 48)).logits.shape == (2, 5)


def test_new_classifier_has_two_heads_for_a_distilled_configuration() -> None:
    assert type(new_classifier(tiny_deit())) is DeiTForImageClassificationWithTeacher
    assert type(new_classifier(tiny_vit())) is ViTForImageClassification


def eager_logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(images).logits
    model.set_attn_implementation("sdpa")
    return logits


def test_attentions_and_hidden_states_are_returned_on_request() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), std=0.1)
    images = noise(2, 3, 32, 32)
    output = model(images, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 3, 18, 18)] * 2
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 18, 24)] * 3
    for weights in output.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 18))
    assert torch.equal(output.hidden_states[0], model.deit.embeddings(images))
    assert torch.allclose(output.logits, model(images).logits, atol=1e-6)
    assert torch.allclose(eager_logits(model, images), model(images).logits, atol=1e-6)
    assert model(images).attentions is None
    model.config.output_attentions = model.config.output_hidden_states = True
    assert list(model(images))[-2:] == ["hidden_states", "attentions"]


@torch.inference_mode()
def test_outputs_that_are_not_requested_are_freed() -> None:
    model: Any = DeiTModel(tiny_deit(num_hidden_layers=4)).eval()
    model.set_attn_implementation("eager")
    outputs: list[Any] = []  # weak references
    alive: list[int] = []

    def count_alive(_module: Any, _inputs: Any, output: Any) -> None:
        alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output))

    for layer in model.layers:
        layer.register_forward_hook(count_alive)
    model(noise(1, 3, 32, 32))
    assert max(alive) <= 1  # at most that of the previous layer
    model(noise(1, 3, 32, 32), output_attentions=True, output_hidden_states=True)
    assert max(alive) >= 3


@pytest.mark.parametrize(
    "model_class",
    [ViTModel, ViTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling],
)
def test_arguments_of_forward_have_the_order_of_transformers(model_class: Any) -> None:
    """All may be passed by position, as the older ONNX exporter of torch does."""
    parameters = inspect.signature(model_class.forward).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    theirs = inspect.signature(getattr(transformers, model_class.__name__).forward).parameters
    order = [name for name in theirs if name not in ("attention_mask", "kwargs")]
    assert [parameter.name for parameter in parameters][: len(order)] == order
    options = ["head_mask", "output_attentions", "output_hidden_states", "return_dict", "residual_scale", "kept_patches"]
    given = [parameter.name for parameter in parameters]
    assert [name for name in given if name in options] == options[: 5 if model_class is DeiTForMaskedImageModeling else 6]
    assert set(given[-5:]) < set(options)


@pytest.mark.parametrize(
    "make", [*MAKERS.values(), lambda: DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8))], ids=[*MAKERS, "masked"]
)
def test_unknown_keyword_is_an_error(make: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_attention'"):
        make()(noise(1, 3, 32, 32), output_attention=True)


def test_return_dict_false_returns_a_tuple() -> None:
    model = randomized(DeiTForImageClassification(tiny_deit()))
    images = noise(2, 3, 32, 32)
    loss, logits, states = model(images, labels=torch.tensor([0, 1]), output_hidden_states=True, return_dict=False)
    assert loss.ndim == 0
    assert torch.equal(logits, model(images).logits)
    assert len(states) == 3
    model.config.return_dict = False
    assert isinstance(model(images), tuple)
    assert isinstance(model.deit(images), tuple)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masked_head_equals_pruned_head(attention: Any) -> None:
    model = randomized(DeiTModel(tiny_deit()))
    model.set_attn_implementation(attention)
    images = noise(2, 3, 32, 32)
    expected = model(images).last_hidden_state
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    masked = model(images, head_mask=mask).last_hidden_state
    assert not torch.allclose(masked, expected)
    assert torch.equal(model(images, head_mask=torch.ones(3)).last_hidden_state, expected)
    pruned = copy.deepcopy(model)
    pruned.prune_heads({0: [1]})
    pruned.prune_heads({1: [0, 2]})
    assert torch.allclose(pruned(images).last_hidden_state, masked, atol=1e-5)
    assert torch.allclose(pruned(images, head_mask=mask).last_hidden_state, masked, atol=1e-5)
    assert pruned.num_parameters() < model.num_parameters()
    assert (pruned.config.pruned_heads, model.config.pruned_heads) == ({0: [1], 1: [0, 2]}, {})
    output = model(images, head_mask=mask, output_attentions=True)
    assert output.attentions[0][:, 1].abs().sum() == 0
    with pytest.raises(UserError, match="head_mask has shape \\(2,\\): pass 3 heads, or 2 layers x 3 heads"):
        model(images, head_mask=torch.ones(2))


def test_images_without_batch_dimension_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(3, 32, 32\): pass images x channels x height x width"):
        ViTModel(tiny_vit())(noise(3, 32, 32))


def test_activation_checkpointing_keeps_gradients_unchanged() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_hidden_layers=3))).train()
    grads = []
    for every_n_layers in (None, 1, 2):
        model.zero_grad()
        if every_n_layers is not None:
            model.activation_checkpointing_enable(every_n_layers=every_n_layers)
        backward(model(noise(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss)
        grads.append([parameter.grad for parameter in model.parameters()])
    for checkpointed in grads[1:]:
        assert all(torch.equal(*pair) for pair in zip(grads[0], checkpointed, strict=True))  # type: ignore[arg-type]
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(UserError, match="omit offload"):
        model.activation_checkpointing_enable(offload=True)


def test_checkpointed_layers_run_twice() -> None:
    model: Any = DeiTModel(tiny_deit()).train()
    model.gradient_checkpointing_enable()
    runs: list[int] = []
    model.layers[0].attention.register_forward_pre_hook(lambda *_: runs.append(1))
    backward(model(noise(1, 3, 32, 32)).last_hidden_state.sum())
    assert len(runs) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_output_is_close(dtype: torch.dtype) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), std=0.1)
    images = noise(2, 3, 32, 32)
    expected = model(images).logits
    half = copy.deepcopy(model).to(dtype)
    output = half(images, output_attentions=True)  # float32 images are cast, as in transformers
    assert (output.logits.dtype, half.dtype) == (dtype, dtype)
    assert torch.allclose(output.logits.float(), expected, atol=0.05)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    model = DeiTForImageClassification(tiny_deit(num_channels=channels))
    assert model(noise(2, channels, 32, 32)).logits.shape == (2, 5)
    with pytest.raises(UserError, match=f"7 channels: this model takes {channels}"):
        model(noise(2, 7, 32, 32))


def test_model_without_classes_returns_its_token() -> None:
    model = randomized(ViTForImageClassification(tiny_vit(num_labels=0)))
    images = noise(2, 3, 32, 32)
    assert torch.equal(model(images).logits, model.vit(images).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_export_with_dynamic_batch_size(name: str, tmp_path: Path) -> None:
    model = randomized(MAKERS[name]())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (noise(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {0: batch}})
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    images = noise(5, 3, 32, 32, seed=1)
    output = exported(images)
    assert type(output) is type(model(images))
    assert torch.allclose(output.logits, model(images).logits, atol=1e-5)


def test_masked_image_modeling_ignores_masked_patches_and_scores_only_them() -> None:
    model = randomized(DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8, image_size=(32, 16))), std=0.1)
    images = noise(2, 3, 32, 16)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, 3] = True  # second row, second column
    changed = images.clone()
    changed[:, :, 8:16, 8:16] = 7.0
    output = model(images, bool_masked_pos=mask)
    assert torch.equal(output.reconstruction, model(changed, bool_masked_pos=mask).reconstruction)
    assert output.reconstruction.shape == images.shape
    expected = (images - output.reconstruction)[:, :, 8:16, 8:16].abs().mean()
    assert torch.allclose(output.loss, expected, atol=1e-5)


def test_invalid_masks_are_refused() -> None:
    model = DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8, image_size=(32, 16)))
    with pytest.raises(UserError, match=r"bool_masked_pos has shape \(2, 7\): pass images x patches, 2 x 8"):
        model(noise(2, 3, 32, 16), bool_masked_pos=torch.zeros(2, 7))
    with pytest.raises(UserError, match="20 x 16: both sides must be divisible by 8"):
        model(noise(1, 3, 20, 16), interpolate_pos_encoding=True)
    with pytest.raises(UserError, match="no mask token"):
        DeiTModel(tiny_deit())(noise(1, 3, 32, 32), bool_masked_pos=torch.zeros(1, 16))
    with pytest.raises(UserError, match="encoder_stride is 16"):
        DeiTForMaskedImageModeling(tiny_deit(encoder_stride=16))


def test_loss_of_two_heads_is_that_of_the_paper() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    images, labels, teacher = noise(3, 3, 32, 32), torch.tensor([0, 1, 4]), noise(3, 5, seed=3)
    output = model(images, labels=labels, teacher_logits=teacher)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    for mode in ("hard", "soft"):
        model.config.distillation_type = mode
        expected = training_loss(Distillation(mode=mode), output.cls_logits, one_hot, output.distillation_logits, teacher)
        for targets in (labels, one_hot):
            assert torch.allclose(model(images, labels=targets, teacher_logits=teacher).loss, expected)
    assert torch.allclose(model(images, labels=labels.int(), teacher_logits=teacher).loss, expected)
    with pytest.raises(UserError, match=r"teacher_logits has shape \(3, 7\): pass images x classes, \(3, 5\)"):
        model(images, labels=labels, teacher_logits=noise(3, 7))
    with pytest.raises(UserError, match="teacher_logits but no labels"):
        model(images, teacher_logits=teacher)
    losses = [torch.nn.functional.cross_entropy(logits, labels) for logits in (output.cls_logits, output.distillation_logits)]
    assert torch.allclose(model(images, labels=labels).loss, (losses[0] + losses[1]) / 2)
    assert model(images).loss is None
