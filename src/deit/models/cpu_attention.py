"""Self-attention as matrix products and a softmax, for training and the torch runtime on a CPU in bf16.

torch's fused attention processes the attention weights in small blocks, so that it need not store them. On a CPU in bf16 it
reaches about an eighth of the rate of torch's matrix products. For the few hundred tokens of an image the weights fit into
memory, and everything except the softmax is one batched matrix product.

Shapes: B images, N tokens, H heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_TOKENS = 1024  # with more, the stored attention weights would exceed all other activations of a layer


def prefers_matmul_attention(qkv: Tensor) -> bool:
    """Returns whether :func:`matmul_attention` should compute attention: on a CPU, in bf16, if a gradient is needed.

    Without a gradient, the fused attention stores nothing and rounds less. In float32, both are equally fast.

    Args:
        qkv: (B, N, 3, H, E), queries, keys and values.
    """
    if qkv.device.type != "cpu" or qkv.dtype != torch.bfloat16 or qkv.shape[1] > MAX_TOKENS:
        return False
    return torch.is_grad_enabled() and qkv.requires_grad and not torch.compiler.is_exporting()


def matmul_attention(qkv: Tensor) -> Tensor:
    """Computes scaled dot-product attention. It can be differentiated once.

    The attention weights (B, H, N, N) are stored for the gradient, in the dtype of ``qkv``. In bf16, the scores are rounded to
    bf16 as well; the softmax is computed in float32.

    Args:
        qkv: (B, N, 3, H, E), queries, keys and values, of any floating-point dtype.

    Returns:
        (B, N, H, E).
    """
    output: Tensor = _MatmulAttention.apply(qkv)[0]
    return output


class _MatmulAttention(torch.autograd.Function):
    """Also returns the tensors that the gradient needs, so that transforms such as ``torch.func.grad`` can store them."""

    @staticmethod
    def forward(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _, heads, head_dim = qkv.shape
        # Batched products are only fast on contiguous tensors.
        by_head = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, head_dim)  # (3, B H, N, E)
        q, k, v = by_head.unbind(0)  # (B H, N, E) each
        weights = _scaled_bmm(q, k.transpose(1, 2), head_dim**-0.5).softmax(dim=-1)  # (B H, N, N)
        output = torch.bmm(weights, v).view(batch, heads, tokens, head_dim).transpose(1, 2)  # (B, N, H, E)
        return output.contiguous(), by_head, weights

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # saves zero tensors of the size of the weights
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Tensor | None:
        if grad is None:
            return None
        by_head, weights = ctx.saved_tensors
        batch, tokens, heads, head_dim = grad.shape
        q, k, v = by_head.unbind(0)  # (B H, N, E) each
        grad_output = grad.transpose(1, 2).reshape(batch * heads, tokens, head_dim)  # (B H, N, E)
        grad_by_head = torch.empty_like(by_head)  # (3, B H, N, E)
        grad_q, grad_k, grad_v = grad_by_head.unbind(0)
        torch.bmm(weights.transpose(1, 2), grad_output, out=grad_v)
        grad_weights = torch.bmm(grad_output, v.transpose(1, 2))  # (B H, N, N)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        _scaled_bmm(grad_scores, k, head_dim**-0.5, out=grad_q)
        _scaled_bmm(grad_scores.transpose(1, 2), q, head_dim**-0.5, out=grad_k)
        return grad_by_head.view(3, batch, heads, tokens, head_dim).permute(1, 3, 0, 2, 4).contiguous()  # (B, N, 3, H, E)


def _scaled_bmm(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Returns the batched product of (B H, N, M) and (B H, M, L), scaled before it is rounded: (B H, N, L)."""
    unused = left.new_zeros(1)  # only baddbmm takes a factor; beta = 0 ignores the addend
    return torch.baddbmm(unused, left, right, beta=0, alpha=scale, out=out)
