"""Attention as matrix products: agreement with torch's fused attention, and when the model uses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.config import DeiTConfig
from deit.models.cpu_attention import MAX_TOKENS, matmul_attention, prefers_matmul_attention
from deit.models.modeling import Attention, DeiTForImageClassificationWithTeacher, new_classifier

BF16_BOUND = 2**-6  # largest error relative to the largest value, for scores of a few units


def random_qkv(dtype: torch.dtype, shape: tuple[int, ...] = (3, 21, 3, 2, 16), spread: float = 1.5) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    return values.to(dtype).requires_grad_()


def fused(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def output_and_gradient(attend: Callable[[Tensor], Tensor], qkv: Tensor) -> tuple[Tensor, Tensor]:
    output = attend(qkv)
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    (gradient,) = torch.autograd.grad(output, qkv, weights)
    return output, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradient_are_those_of_scaled_dot_product_attention(dtype: torch.dtype) -> None:
    qkv = random_qkv(dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for actual, expected in zip(output_and_gradient(matmul_attention, qkv), output_and_gradient(fused, qkv), strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(matmul_attention, random_qkv(torch.float64, (2, 5, 3, 2, 4)))


@pytest.mark.parametrize("spread", [0.5, 1.5, 3.0])
def test_bf16_output_and_gradient_are_within_the_rounding_bound(spread: float) -> None:
    qkv = random_qkv(torch.bfloat16, (2, 198, 3, 3, 64), spread)
    exact = qkv.detach().double().requires_grad_()
    q, k, _ = exact.detach().permute(2, 0, 3, 1, 4).unbind(0)
    largest = float((q @ k.transpose(2, 3)).abs().max()) / 8
    # A score of 8 bits is rounded by up to half of the last bit, as are weights, products and sums.
    bound = 2**-9 * (4 + largest)
    results = output_and_gradient(matmul_attention, qkv), output_and_gradient(fused, exact)
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == torch.bfloat16
        assert (actual.double() - expected).abs().max() <= bound * expected.abs().max()


def test_input_may_be_non_contiguous() -> None:
    qkv = random_qkv(torch.float32)
    strided = qkv.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()
    for actual, expected in zip(
        output_and_gradient(matmul_attention, strided), output_and_gradient(matmul_attention, qkv), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_matmul_attention_is_preferred_where_it_is_faster() -> None:
    qkv = random_qkv(torch.bfloat16)
    assert prefers_matmul_attention(qkv)
    assert not prefers_matmul_attention(qkv.detach())
    assert not prefers_matmul_attention(random_qkv(torch.float32))
    assert not prefers_matmul_attention(torch.empty(1, MAX_TOKENS + 1, 3, 1, 1, dtype=torch.bfloat16, requires_grad=True))
    assert not prefers_matmul_attention(torch.empty(1, 4, 3, 1, 1, dtype=torch.bfloat16, device="meta", requires_grad=True))
    with torch.no_grad():
        assert not prefers_matmul_attention(qkv)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(DeiTConfig(hidden_size=48, num_attention_heads=3))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records what the model's calls of :func:`prefers_matmul_attention` return."""
    results: list[bool] = []

    def record(qkv: Tensor) -> bool:
        results.append(prefers_matmul_attention(qkv))
        return results[-1]

    monkeypatch.setattr("deit.models.modeling.prefers_matmul_attention", record)
    return results


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_layer_has_the_gradients_of_eager_attention(attention: Attention, used: list[bool], pruned: bool, masked: bool) -> None:
    if pruned:
        attention.prune({1})
    mask = torch.tensor([0.5, 0.0, 2.0])[attention.heads] if masked else None
    x = torch.randn(2, 9, 48)
    results = []
    for eager in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output, weights = attention(x, mask, eager)
        output.float().square().mean().backward()
        assert (weights is not None) == eager
        results.append(
            [output, *(parameter.grad.clone() for parameter in attention.parameters() if parameter.grad is not None)]
        )
    assert used == [True]
    assert len(results[0]) == 5
    for actual, expected in zip(*results, strict=True):
        assert actual.abs().max() > 0
        assert (actual - expected).abs().max() <= 2 * BF16_BOUND * expected.abs().max()


def test_dropout_uses_the_fused_attention(used: list[bool]) -> None:
    attention = Attention(DeiTConfig(hidden_size=48, num_attention_heads=3, attention_probs_dropout_prob=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 9, 48)
        assert not torch.equal(attention(x)[0], attention(x)[0])
        assert not used
        attention.eval()(x)
    assert used == [True]


@pytest.fixture
def classifier() -> DeiTForImageClassificationWithTeacher:
    config = DeiTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
    model = new_classifier(config, torch.Generator().manual_seed(0))
    assert isinstance(model, DeiTForImageClassificationWithTeacher)
    return model.train()


def gradients(model: torch.nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = run(torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin())
    torch.autograd.backward(logits.float().square().sum())
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_gradient_checkpointing_gives_the_same_gradients(classifier: DeiTForImageClassificationWithTeacher) -> None:
    expected_gradients = gradients(classifier, lambda x: classifier(x).logits)
    classifier.gradient_checkpointing_enable()
    for actual, expected in zip(gradients(classifier, lambda x: classifier(x).logits), expected_gradients, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_model_compiles_as_one_graph(classifier: DeiTForImageClassificationWithTeacher, dynamic: bool) -> None:
    expected_gradients = gradients(classifier, lambda x: classifier(x).logits)
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for actual, expected in zip(gradients(classifier, lambda x: compiled(x).logits), expected_gradients, strict=True):
        assert (actual - expected).abs().max() <= 2 * BF16_BOUND * expected.abs().max()


def test_functional_gradient_is_the_same() -> None:
    qkv = random_qkv(torch.bfloat16)
    functional = torch.func.grad(lambda values: matmul_attention(values).float().square().sum())(qkv.detach())
    (expected,) = torch.autograd.grad(matmul_attention(qkv).float().square().sum(), qkv)
    assert torch.equal(functional, expected)


def test_export_contains_the_fused_attention(classifier: DeiTForImageClassificationWithTeacher) -> None:
    program = torch.export.export(classifier.to(torch.bfloat16).eval(), (torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16),))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product_attention" in name for name in names) == 2
    assert not any("softmax" in name for name in names)
