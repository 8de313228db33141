"""Self-attention for training on a CPU in bf16: matrix products and a softmax.

torch's fused attention goes through the attention weights in small pieces, so as not to hold them all; on a CPU it reaches
about an eighth of the rate of its own matrix products in bf16. The weights of the few hundred tokens of an image fit into
memory as they are, and then everything but the softmax is one batched product.

Shapes: B images, N tokens, H heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_TOKENS = 1024  # above it the weights kept for the gradient would be larger than all else that a layer keeps


def trains_faster(qkv: Tensor) -> bool:
    """Whether :func:`self_attention` is the way to go: on a CPU, in bf16, where a gradient will be asked for.

    Without a gradient the fused attention keeps nothing, and rounds less. In float32 neither is faster than the other.

    Args:
        qkv: (B, N, 3, H, E).
    """
    if qkv.device.type != "cpu" or qkv.dtype != torch.bfloat16 or qkv.shape[1] > MAX_TOKENS:
        return False
    return torch.is_grad_enabled() and qkv.requires_grad and not torch.compiler.is_exporting()


def self_attention(qkv: Tensor) -> Tensor:
    """Attention of each token to all tokens of its image; its gradient can be taken once.

    Keeps the attention weights for the gradient, (B, H, N, N) in the type of ``qkv``. In bf16 the scores too are rounded to
    bf16; the softmax works in float32.

    Args:
        qkv: (B, N, 3, H, E), of any floating type: queries, keys and values.

    Returns:
        (B, N, H, E).
    """
    output: Tensor = _SelfAttention.apply(qkv)[0]
    return output


class _SelfAttention(torch.autograd.Function):
    """The tensors that the gradient needs are answered too, so that functions such as ``torch.func.grad`` can keep them."""

    @staticmethod
    def forward(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _, heads, width = qkv.shape
        # Batched products run at full rate only on tensors without gaps.
        by_head = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, width)
        q, k, v = by_head.unbind(0)
        weights = _product(q, k.transpose(1, 2), width**-0.5).softmax(dim=-1)  # (B H, N, N)
        output = torch.bmm(weights, v).view(batch, heads, tokens, width).transpose(1, 2)
        return output.contiguous(), by_head, weights

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros as large as the weights
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Tensor | None:
        if grad is None:
            return None
        by_head, weights = ctx.saved_tensors
        batch, tokens, heads, width = grad.shape
        q, k, v = by_head.unbind(0)
        grad = grad.transpose(1, 2).reshape(batch * heads, tokens, width)
        for_q, for_k, for_v = (for_all := torch.empty_like(by_head)).unbind(0)
        torch.bmm(weights.transpose(1, 2), grad, out=for_v)
        for_weights = torch.bmm(grad, v.transpose(1, 2))  # (B H, N, N)
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        _product(for_scores, k, width**-0.5, out=for_q)
        _product(for_scores.transpose(1, 2), q, width**-0.5, out=for_k)
        return for_all.view(3, batch, heads, tokens, width).permute(1, 3, 0, 2, 4).contiguous()  # (B, N, 3, H, E)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """(B H, N, M) x (B H, M, L) x scale -> (B H, N, L), scaled before it is rounded."""
    nothing = left.new_zeros(1)  # baddbmm alone takes a factor
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale, out=out)
