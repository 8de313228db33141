from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.config import DeiTConfig
from deit.models.cpu_attention import MAX_TOKENS, self_attention, trains_faster
from deit.models.modeling import Attention, DeiTForImageClassificationWithTeacher, new_classifier

BF16_BOUND = 2**-6  # of scores of a few units: largest error, as a part of the largest value


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
def test_it_is_scaled_dot_product_attention(dtype: torch.dtype) -> None:
    qkv = random_qkv(dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for ours, theirs in zip(output_and_gradient(self_attention, qkv), output_and_gradient(fused, qkv), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_the_gradient_is_that_of_differences() -> None:
    assert torch.autograd.gradcheck(self_attention, random_qkv(torch.float64, (2, 5, 3, 2, 4)))


@pytest.mark.parametrize("spread", [0.5, 1.5, 3.0])
def test_in_bf16_output_and_gradient_are_within_the_bound(spread: float) -> None:
    qkv = random_qkv(torch.bfloat16, (2, 198, 3, 3, 64), spread)
    exact = qkv.detach().double().requires_grad_()
    q, k, _ = exact.detach().permute(2, 0, 3, 1, 4).unbind(0)
    largest = float((q @ k.transpose(2, 3)).abs().max()) / 8
    # Of the 8 bits of a score, half of the last one is what its weight is wrong by; weights, products and sums add theirs.
    bound = 2**-9 * (4 + largest)
    results = output_and_gradient(self_attention, qkv), output_and_gradient(fused, exact)
    for ours, best in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - best).abs().max() <= bound * best.abs().max()


def test_tokens_may_lie_apart_in_memory() -> None:
    qkv = random_qkv(torch.float32)
    apart = qkv.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()
    for ours, theirs in zip(output_and_gradient(self_attention, apart), output_and_gradient(self_attention, qkv), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_is_used_where_it_is_faster() -> None:
    qkv = random_qkv(torch.bfloat16)
    assert trains_faster(qkv)
    assert not trains_faster(qkv.detach())
    assert not trains_faster(random_qkv(torch.float32))
    assert not trains_faster(torch.empty(1, MAX_TOKENS + 1, 3, 1, 1, dtype=torch.bfloat16, requires_grad=True))
    assert not trains_faster(torch.empty(1, 4, 3, 1, 1, dtype=torch.bfloat16, device="meta", requires_grad=True))
    with torch.no_grad():
        assert not trains_faster(qkv)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(DeiTConfig(hidden_size=48, num_attention_heads=3))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the model's calls of :func:`trains_faster` answered."""
    answers: list[bool] = []

    def asked(qkv: Tensor) -> bool:
        answers.append(trains_faster(qkv))
        return answers[-1]

    monkeypatch.setattr("deit.models.modeling.trains_faster", asked)
    return answers


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_layer_trains_as_its_explicit_form(attention: Attention, used: list[bool], pruned: bool, masked: bool) -> None:
    if pruned:
        attention.prune({1})
    mask = torch.tensor([0.5, 0.0, 2.0])[attention.heads] if masked else None
    x = torch.randn(2, 9, 48)
    results = []
    for explicit in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output, weights = attention(x, mask, explicit)
        output.float().square().mean().backward()
        assert (weights is not None) == explicit
        results.append(
            [output, *(parameter.grad.clone() for parameter in attention.parameters() if parameter.grad is not None)]
        )
    assert used == [True]
    assert len(results[0]) == 5
    for ours, explicitly in zip(*results, strict=True):
        assert ours.abs().max() > 0
        assert (ours - explicitly).abs().max() <= 2 * BF16_BOUND * explicitly.abs().max()


def test_dropout_is_left_to_the_fused_attention(used: list[bool]) -> None:
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
    plain = gradients(classifier, lambda x: classifier(x).logits)
    classifier.gradient_checkpointing_enable()
    for ours, theirs in zip(gradients(classifier, lambda x: classifier(x).logits), plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_in_one_graph(classifier: DeiTForImageClassificationWithTeacher, dynamic: bool) -> None:
    plain = gradients(classifier, lambda x: classifier(x).logits)
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for ours, theirs in zip(gradients(classifier, lambda x: compiled(x).logits), plain, strict=True):
        assert (ours - theirs).abs().max() <= 2 * BF16_BOUND * theirs.abs().max()


def test_functional_gradients_agree() -> None:
    qkv = random_qkv(torch.bfloat16)
    functional = torch.func.grad(lambda values: self_attention(values).float().square().sum())(qkv.detach())
    (usual,) = torch.autograd.grad(self_attention(qkv).float().square().sum(), qkv)
    assert torch.equal(functional, usual)


def test_an_export_holds_the_fused_attention(classifier: DeiTForImageClassificationWithTeacher) -> None:
    program = torch.export.export(classifier.to(torch.bfloat16).eval(), (torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16),))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product_attention" in name for name in names) == 2
    assert not any("softmax" in name for name in names)
