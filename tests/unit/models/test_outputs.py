"""Model outputs: attributes, keys and positions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from deit.models.outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
    ImageClassifierWithTeacherOutput,
    MaskedImageModelingOutput,
)

LOGITS = torch.arange(6.0).reshape(2, 3)


def test_field_is_an_attribute_a_key_and_a_position() -> None:
    output = ImageClassifierOutput(loss=torch.tensor(1.0), logits=LOGITS)
    assert output.logits is output["logits"] is output[1]
    assert output[:2] == (output.loss, LOGITS)
    assert isinstance(output, dict)
    assert isinstance(output, Mapping)
    assert list(output) == list(output.keys()) == ["loss", "logits"]
    loss, logits = output.to_tuple()
    assert (loss, logits) == (output.loss, output.logits)
    assert {**output}.keys() == {"loss", "logits"}


def test_field_that_is_none_has_no_key_and_no_position() -> None:
    output = ImageClassifierOutput(loss=None, logits=LOGITS, attentions=None)
    assert output.loss is None
    assert output.hidden_states is None
    assert output[0] is LOGITS
    assert "loss" not in output
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]


def test_unknown_field_is_an_error() -> None:
    with pytest.raises(AttributeError, match="ImageClassifierOutput has no field 'logit'"):
        _ = ImageClassifierOutput(logits=LOGITS).logit


def test_assignment_changes_attribute_key_and_position() -> None:
    output = ImageClassifierOutput(logits=LOGITS)
    output.logits = LOGITS + 1
    assert torch.equal(output["logits"], LOGITS + 1)
    assert torch.equal(output[0], LOGITS + 1)


@pytest.mark.parametrize(
    "output",
    [
        BaseModelOutput(last_hidden_state=LOGITS),
        ImageClassifierOutput(logits=LOGITS, attentions=(LOGITS,)),
        ImageClassifierWithTeacherOutput(logits=LOGITS, cls_logits=LOGITS, distillation_logits=LOGITS),
        MaskedImageModelingOutput(reconstruction=LOGITS),
    ],
    ids=lambda output: type(output).__name__,
)
def test_output_survives_copy_pickle_pytree_and_reconstruction(output: Any) -> None:
    leaves, structure = pytree.tree_flatten(output)
    for restored in (
        copy.deepcopy(output),
        pickle.loads(pickle.dumps(output)),  # noqa: S301
        pytree.tree_unflatten(leaves, structure),
        type(output)(dict(output)),  # as Accelerate converts outputs
        type(output)((name, value) for name, value in output.items()),  # as torch gathers outputs of several devices
    ):
        assert type(restored) is type(output)
        assert list(restored) == list(output)
        assert torch.equal(restored[0], output[0])
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)


def test_heads_are_named_and_the_last_is_the_prediction() -> None:
    two = ImageClassifierWithTeacherOutput(logits=LOGITS, cls_logits=LOGITS - 1, distillation_logits=LOGITS + 1)
    assert list(two.heads) == ["class", "distillation", "both"]
    assert two.heads["both"] is two.logits
    assert list(ImageClassifierOutput(logits=LOGITS).heads) == ["class"]


def test_assigning_none_removes_a_field() -> None:
    output = ImageClassifierOutput(loss=torch.tensor(1.0), logits=LOGITS)
    output.loss = None
    output.attentions = None
    assert list(output) == ["logits"]
    assert output[0] is LOGITS
    assert output.loss is None
