"""Resampling of position embeddings for another grid."""

from __future__ import annotations

import pytest
import torch

from deit.checkpoints.position_embeddings import resample_position_embeddings
from tests.helpers import backward, noise


def test_same_grid_returns_the_embeddings() -> None:
    embeddings = noise(1, 2 + 12, 5)
    assert resample_position_embeddings(embeddings, 2, (3, 4), (3, 4)) is embeddings


def test_prefix_tokens_keep_their_embeddings() -> None:
    embeddings = noise(1, 2 + 12, 5)
    resampled = resample_position_embeddings(embeddings, 2, (3, 4), (5, 7))
    assert resampled.shape == (1, 2 + 35, 5)
    assert torch.equal(resampled[:, :2], embeddings[:, :2])


def test_resampling_is_bicubic() -> None:
    # From four patches to eight: the fourth new one is at (3 + 0.5) / 2 - 0.5 = 1.25 of the old ones. The cubic kernel with
    # a = -0.75 at the distances 1.25, 0.25, 0.75 and 1.75 is -0.10546875, 0.87890625, 0.26171875 and -0.03515625.
    old = torch.tensor([3.0, 10.0, -2.0, 64.0]).reshape(1, 4, 1)
    new = resample_position_embeddings(old, 0, (4, 1), (8, 1))
    expected = -0.10546875 * 3 + 0.87890625 * 10 + 0.26171875 * -2 + -0.03515625 * 64
    assert new[0, 3, 0].item() == pytest.approx(expected, abs=1e-5)


def test_rows_and_columns_are_not_swapped() -> None:
    rows = torch.arange(3.0).repeat_interleave(4).reshape(1, 12, 1)  # the value is the row of the patch
    resampled = resample_position_embeddings(rows, 0, (3, 4), (3, 8)).reshape(3, 8)
    assert torch.allclose(resampled, torch.arange(3.0)[:, None].expand(3, 8), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    embeddings = noise(1, 5, 4).to(dtype)
    assert resample_position_embeddings(embeddings, 1, (2, 2), (3, 3)).dtype == dtype


def test_every_embedding_gets_a_gradient() -> None:
    embeddings = noise(1, 1 + 16, 3).requires_grad_()
    backward(resample_position_embeddings(embeddings, 1, (4, 4), (6, 6)).square().sum())
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(-1) > 0).all()
