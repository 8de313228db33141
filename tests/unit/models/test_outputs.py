"""An answer is an object, a mapping and a tuple at once."""

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


def test_a_part_is_an_attribute_a_key_and_a_position() -> None:
    output = ImageClassifierOutput(loss=torch.tensor(1.0), logits=LOGITS)
    assert output.logits is output["logits"] is output[1]
    assert output[:2] == (output.loss, LOGITS)
    assert isinstance(output, dict)
    assert isinstance(output, Mapping)
    assert list(output) == list(output.keys()) == ["loss", "logits"]
    loss, logits = output.to_tuple()
    assert (loss, logits) == (output.loss, output.logits)
    assert {**output}.keys() == {"loss", "logits"}


def test_what_was_not_asked_for_is_none_and_has_no_place() -> None:
    output = ImageClassifierOutput(loss=None, logits=LOGITS, attentions=None)
    assert output.loss is None
    assert output.hidden_states is None
    assert output[0] is LOGITS
    assert "loss" not in output
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]


def test_a_part_of_no_such_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="ImageClassifierOutput has no part 'logit'"):
        _ = ImageClassifierOutput(logits=LOGITS).logit


def test_assigning_a_part_changes_all_three() -> None:
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
def test_it_survives_copies_pickles_trees_and_being_made_again(output: Any) -> None:
    leaves, structure = pytree.tree_flatten(output)
    for other in (
        copy.deepcopy(output),
        pickle.loads(pickle.dumps(output)),  # noqa: S301
        pytree.tree_unflatten(leaves, structure),
        type(output)(dict(output)),  # as Accelerate makes one of another type again
        type(output)((name, part) for name, part in output.items()),  # as torch gathers those of several devices
    ):
        assert type(other) is type(output)
        assert list(other) == list(output)
        assert torch.equal(other[0], output[0])
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)


def test_the_heads_are_named_and_the_last_is_the_answer() -> None:
    two = ImageClassifierWithTeacherOutput(logits=LOGITS, cls_logits=LOGITS - 1, distillation_logits=LOGITS + 1)
    assert list(two.heads) == ["class", "distillation", "both"]
    assert two.heads["both"] is two.logits
    assert list(ImageClassifierOutput(logits=LOGITS).heads) == ["class"]


def test_a_part_that_is_taken_away_has_no_place_any_more() -> None:
    output = ImageClassifierOutput(loss=torch.tensor(1.0), logits=LOGITS)
    output.loss = None
    output.attentions = None
    assert list(output) == ["logits"]
    assert output[0] is LOGITS
    assert output.loss is None
