"""What torch, torchvision, timm and PEFT do with any module: copies, pickles, casts, traces, functional calls, adapters."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from deit.checkpoints.adapting import LoadReport
from deit.config import DeiTConfig, ViTConfig
from deit.errors import ConfigError
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
)
from deit.models.pretrained import PreTrainedModel
from tests.helpers import noise, randomized, tiny_deit, tiny_vit
from tests.unit.models.factories import every_model

IMAGES = noise(2, 3, 32, 32)
Copy = Callable[[Any], Any]


def output(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    """Returns the first tensor of a model's output."""
    with torch.no_grad():
        first: Tensor = model(images)[0]
    return first


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301  # our own bytes


def torch_saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


every_copy = pytest.mark.parametrize("make_copy", [pickled, copy.deepcopy, torch_saved])


@every_model
@every_copy
def test_copy_equals_the_model(make: Callable[[], PreTrainedModel], make_copy: Copy) -> None:
    model = randomized(make())
    model.set_name("me/digits")
    copied = make_copy(model)
    assert torch.equal(output(copied), output(model))
    assert copied.config == model.config and copied.config is not model.config
    assert (copied.name_or_path, copied.config.name_or_path) == ("me/digits", "me/digits")
    assert copied.load_report == LoadReport()


@every_copy
def test_copy_is_independent_of_the_model(make_copy: Copy) -> None:
    model = randomized(DeiTForImageClassification(tiny_deit()))
    before = output(model)
    copied = make_copy(model)
    zeros = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    copied.load_state_dict(zeros)  # other names are still understood, and written into the copy
    copied.config.num_labels = 7
    copied.gradient_checkpointing_enable()
    assert not output(copied).any()
    assert torch.equal(output(model), before)
    assert model.config.num_labels == 5 and not model.is_gradient_checkpointing


@every_copy
def test_copies_keep_the_hook_of_frozen_embeddings(make_copy: Copy) -> None:
    model = ViTForImageClassification(tiny_vit())
    model.requires_grad_(False)
    model.enable_input_require_grads()
    copied = make_copy(model)
    assert copied(IMAGES).logits.requires_grad
    copied.disable_input_require_grads()
    assert not copied(IMAGES).logits.requires_grad
    assert model(IMAGES).logits.requires_grad


@pytest.mark.parametrize("model_class", [DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cast_models_compute_in_their_dtype(model_class: Any, dtype: torch.dtype, attention: Any) -> None:
    model = randomized(model_class(tiny_deit()))
    expected = output(model)
    model.set_attn_implementation(attention)
    cast = model.to(dtype)
    for images in (IMAGES, IMAGES.to(dtype)):
        result = output(cast, images)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)


def test_functional_call_uses_the_given_weights() -> None:
    model, other = (randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), seed) for seed in (0, 1))
    result = torch.func.functional_call(model, dict(other.named_parameters()), (IMAGES,))
    assert torch.equal(result.logits, other(IMAGES).logits)
    assert not torch.equal(result.logits, model(IMAGES).logits)


def test_functional_gradients_equal_those_of_backward() -> None:
    model = randomized(ViTForImageClassification(tiny_vit()))
    labels = torch.tensor([0, 1])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(state: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(model, state, (IMAGES,), {"labels": labels}).loss
        return result

    gradients = torch.func.grad(loss)(parameters)
    model(IMAGES, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("model_class", [ViTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_torchscript_returns_tuples_for_tracing(model_class: Any, tmp_path: Any) -> None:
    model = randomized(model_class(tiny_deit() if model_class.config_class is DeiTConfig else tiny_vit()))
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, torchscript=True)
    traced = torch.jit.trace(loaded, IMAGES)  # type: ignore[no-untyped-call]
    others = noise(3, 3, 32, 32)
    assert isinstance(loaded(others), tuple)
    torch.testing.assert_close(output(traced, others), output(model, others))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ViTConfig(torchscript=True), False),
        (ViTConfig().replace(torchscript=True), False),
        (DeiTConfig.from_dict({"model_type": "deit", "torchscript": True}), False),
        (ViTConfig(torchscript=True, return_dict=True), True),
        (ViTConfig(torchscript=True).replace(return_dict=True), True),
        (ViTConfig(torchscript=False), True),
    ],
)
def test_torchscript_sets_return_dict(config: ViTConfig, expected: bool) -> None:
    assert (config.return_dict, config.use_return_dict) == (expected, expected)


@pytest.mark.parametrize(
    ("target", "count"),
    [("all-linear", 2 * 4 + 2), (["qkv"], 2), (["qkv", "o_proj"], 4), (r".*layers\.1\.mlp\.fc\d", 2)],
)
def test_adapters_are_added_without_a_change_and_trained(target: Any, count: int) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    before = output(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=target, r=2))
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * count and all(".lora_" in name for name in trainable)
    assert torch.equal(output(adapted.eval()), before)
    adapted(IMAGES, labels=torch.tensor([0, 1])).loss.backward()
    gradients = [parameter.grad for name, parameter in adapted.named_parameters() if "lora_B" in name]
    assert len(gradients) == count and all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("model_class", [DeiTModel, DeiTForMaskedImageModeling])
def test_a_mask_token_that_a_file_lacks_is_zero(model_class: Any, tmp_path: Any) -> None:
    DeiTForImageClassification(tiny_deit()).save_pretrained(tmp_path)
    arguments = {"use_mask_token": True} if model_class is DeiTModel else {"encoder_stride": 8}
    model = model_class.from_pretrained(tmp_path, **arguments)
    assert "embeddings.mask_token" in model.load_report.new
    assert not model.base_model.embeddings.mask_token.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_new_heads_have_the_configured_deviation_in_every_dtype(dtype: torch.dtype, tmp_path: Any) -> None:
    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path)
    head = ViTForImageClassification.from_pretrained(tmp_path, num_labels=2000, dtype=dtype).classifier.weight
    assert head.dtype == dtype
    assert head.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert head.abs().max() < 0.2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({-1: [0]}, {1: [0]}), ({0: [1], -1: [2]}, {0: [1], 1: [2]}), ({-1: [0], 1: [2]}, {1: [0, 2]}), ({-2: [1]}, {0: [1]})],
)
def test_layers_of_pruned_heads_count_from_the_end(given: dict[int, list[int]], expected: dict[int, list[int]]) -> None:
    model: Any = DeiTModel(tiny_deit())
    model.prune_heads(given)
    created: Any = DeiTModel(tiny_deit(pruned_heads=given))
    assert model.config.pruned_heads == created.config.pruned_heads == expected
    heads = [[head for head in range(3) if head not in expected.get(layer, ())] for layer in range(2)]
    assert [layer.attention.heads for layer in model.layers] == [layer.attention.heads for layer in created.layers] == heads


@pytest.mark.parametrize("layer", [-3, 2, -100])
def test_layers_that_do_not_exist_are_refused(layer: int) -> None:
    for prune in (DeiTModel(tiny_deit()).prune_heads, lambda heads: tiny_deit(pruned_heads=heads)):
        with pytest.raises(ConfigError, match=f"pruned_heads of layer {layer} "):
            prune({layer: [0]})
