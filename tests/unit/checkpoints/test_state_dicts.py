"""The state dict of a model is found in any container and behind any prefix, or the choice is left to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from deit.checkpoints.key_maps import to_layout
from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.state_dicts import anchor_of, unwrap_names
from deit.errors import CheckpointError
from tests.helpers import tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import assert_equal, canonical_state

HEADS = {"num_attention_heads": 3}
State = dict[str, Tensor]


def names_of_timm(seed: int = 0) -> State:
    return to_layout(canonical_state(tiny_vit(), seed=seed), "timm")


def expected(seed: int = 0) -> State:
    return canonical_state(tiny_vit(), seed=seed)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def opened(path: Path, content: object, ema: bool = False) -> tuple[State, tuple[str, ...]]:
    torch.save(content, path)
    checkpoint = open_checkpoint(path, ema=ema, fields=HEADS)
    return checkpoint.read(), checkpoint.notes


def wrap_layers(state: State) -> State:
    return {name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): tensor for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}
NAMED_OPTIMIZER = {"state": {"cls_token": {"exp_avg": torch.ones(2, 2)}, "head.weight": {"exp_avg": torch.ones(2)}}}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMIZER, "epoch": 3},
        lambda state: {"net": state, "acc": 0.7},
        lambda state: {"params": state},
        lambda state: {"module": prefixed("module.", state), "optimizer": NAMED_OPTIMIZER, "lr_scheduler": {"last": 1}},
        lambda state: {"any name": {"another": state}},
        lambda state: {"state_dict": prefixed("model.", state), "callbacks": {"best": torch.tensor(0.5)}, "loops": {}},
        lambda state: {"state_dict": prefixed("net._orig_mod.", state)},
        lambda state: {"state_dict": prefixed("module.model.", state), "ema": None},
        lambda state: {"model": wrap_layers(prefixed("_orig_mod.", state))},
        lambda state: {"n_averaged": torch.tensor(7), **prefixed("module.", state)},
        lambda state: {"optimizer": {"momentum_buffer": state, "lr": 0.1}, "model": state},
        lambda state: {"teacher": prefixed("module.backbone.", state)},
        lambda state: prefixed("my_network.", state),
        lambda state: {**prefixed("backbone.", {k: v for k, v in state.items() if "head" not in k}), **state_of(state, "head")},
        lambda state: prefixed(
            "model.", {("head." if "head" in k else "backbone.") + k.removeprefix("head."): v for k, v in state.items()}
        ),
    ],
)
def test_container_and_prefix_do_not_matter(tmp_path: Path, wrap: Callable[[State], dict[str, Any]]) -> None:
    state, notes = opened(tmp_path / "a.pth", wrap(names_of_timm()))
    assert_equal(state, expected())
    assert notes == ()


def state_of(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(part)}


WORDS = st.sampled_from(["module.", "model.", "net.", "_orig_mod.", "backbone.", "student.", "vit_model.", "_forward_module."])
CONTAINERS = st.lists(st.sampled_from(["state_dict", "model", "net", "weights", "checkpoint", "swa"]), max_size=3)


@given(
    st.lists(WORDS, max_size=4),
    CONTAINERS,
    st.booleans(),
    st.sampled_from(["timm", "transformers-4", "transformers-5", "deit"]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_containers_and_prefixes_combine(
    tmp_path: Path, prefixes: list[str], containers: list[str], distilled: bool, layout: str
) -> None:
    state = canonical_state((tiny_deit if distilled else tiny_vit)())
    names = f"{layout}-distilled" if layout == "timm" and distilled else layout
    content: dict[str, Any] = prefixed("".join(prefixes), to_layout(state, names, "" if "timm" in names else "vit."))
    for container in containers:
        content = {container: content, "epoch": 3, "optimizer": OPTIMIZER}
    assert_equal(opened(tmp_path / "a.pth", content)[0], state)


def averages(weights: State, average: State) -> dict[str, dict[str, Any]]:
    """Returns training checkpoints with weights and their moving average."""
    return {
        "the authors": {"model": weights, "model_ema": average},
        "timm": {"state_dict": weights, "state_dict_ema": prefixed("module.", average)},
        "torch": {"model": weights, "ema": {"n_averaged": torch.tensor(3), **prefixed("module.", average)}},
        "lightning": {"state_dict": {**prefixed("model.", weights), **prefixed("ema_model.module.", average)}},
        "moco": {"state_dict": {**prefixed("module.base.", weights), **prefixed("module.momentum_base.", average)}},
    }


@pytest.mark.parametrize("program", averages({}, {}))
def test_moving_average_is_chosen_by_ema_and_mentioned_otherwise(tmp_path: Path, program: str) -> None:
    content = averages(names_of_timm(0), names_of_timm(1))[program]
    state, notes = opened(tmp_path / "a.pth", content)
    assert_equal(state, expected(0))
    assert len(notes) == 1
    assert notes[0].startswith("The checkpoint also has a moving average of the weights")
    state, notes = opened(tmp_path / "a.pth", content, ema=True)
    assert_equal(state, expected(1))
    assert notes == ()


def test_moving_average_in_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**prefixed("model.", names_of_timm(0)), **prefixed("model_ema.", names_of_timm(1))}, path)
    assert_equal(open_checkpoint(path, fields=HEADS).read(), expected(0))
    assert_equal(open_checkpoint(path, ema=True, fields=HEADS).read(), expected(1))
    save_file(prefixed("model.", names_of_timm(0)), path)
    with pytest.raises(CheckpointError, match="no moving average of the weights: load it without ema"):
        open_checkpoint(path, ema=True, fields=HEADS)


def self_supervised() -> dict[str, Any]:
    trunk = {name: tensor for name, tensor in names_of_timm(0).items() if "head" not in name}
    other = {name: tensor for name, tensor in names_of_timm(1).items() if "head" not in name}
    projection = {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight": torch.ones(3, 3)}
    return {
        "student": prefixed("module.", {**prefixed("backbone.", trunk), **projection}),
        "teacher": {**prefixed("backbone.", other), **projection},
        "dino_loss": {"center": torch.ones(1, 4)},
    }


def test_student_and_teacher_are_a_choice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a student and its moving average, under `student` and `teacher`.*--ema"):
        opened(tmp_path / "a.pth", self_supervised())
    state, notes = opened(tmp_path / "a.pth", self_supervised(), ema=True)
    assert_equal(state, {name: tensor for name, tensor in expected(1).items() if "classifier" not in name})
    assert notes == ("Not part of the model: head.last_layer.weight and 1 more",)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda a, b: {"model": a, "state_dict": b}, "`model` and `state_dict`"),
        (lambda a, b: {**prefixed("model.", a), **prefixed("net.", b)}, "`model` and `net`"),
        (lambda a, b: {"state_dict": {**a, **prefixed("old.", b)}}, "no prefix and `old`"),
        (lambda a, b: {"ema": a, "swa_model": b}, "`ema` and `swa_model`"),
        (lambda a, b: {"nets": {"first": a, "second": b}}, r"`nets\.first` and `nets\.second`"),
    ],
)
def test_two_models_are_refused_with_their_names(
    tmp_path: Path, content: Callable[[State, State], dict[str, Any]], names: str
) -> None:
    with pytest.raises(CheckpointError, match=f"has several models, under {names}: save the one that you need alone"):
        opened(tmp_path / "a.pth", content(names_of_timm(0), names_of_timm(1)))


def test_tensors_beside_the_model_are_named(tmp_path: Path) -> None:
    beside = {"criterion.weight": torch.ones(5), "teacher.conv1.weight": torch.ones(2, 2), "val_acc.total": torch.ones(1)}
    state, notes = opened(tmp_path / "a.ckpt", {"state_dict": {**prefixed("model.", names_of_timm()), **beside}})
    assert_equal(state, expected())
    assert notes == ("Not part of the model: criterion.weight and 2 more",)


@pytest.mark.parametrize("extra", ["fc2.weight", "model.extra.bias", "adapter.0.weight"])
def test_unknown_tensor_beside_the_model_is_refused(tmp_path: Path, extra: str) -> None:
    content = {"state_dict": {**prefixed("model.", names_of_timm()), extra: torch.ones(5, 5)}}
    with pytest.raises(CheckpointError, match=rf"unknown tensor, .*{extra.split('.')[-2]}.*save the model's own state dict"):
        opened(tmp_path / "a.ckpt", content)


def test_same_tensor_twice_is_refused(tmp_path: Path) -> None:
    state = names_of_timm()
    with pytest.raises(CheckpointError, match=r"has norm\.weight twice, as norm\.weight and as module\.norm\.weight"):
        opened(tmp_path / "a.pth", {**state, "module.norm.weight": state["norm.weight"]})


def test_networks_are_found_by_their_own_names() -> None:
    network = ["stem.weight", "head.1.weight", "decoder_x", "s.0.b.weight", "b.weight"]
    assert anchor_of(network) == ("s.0.b.weight",)
    wrapped = [f"model.{name}" for name in network] + ["loss.weight", "n_averaged"]
    found = unwrap_names(wrapped, anchor_of(network), False, "a.pth", known=network)
    assert found.stored == {name: f"model.{name}" for name in network}
    assert found.notes == ("Not part of the model: loss.weight and 1 more",)
    assert unwrap_names([], (), False, "a.pth").stored == {}


names = st.lists(st.text("abcls_token.model", max_size=30), max_size=6, unique=True)


@given(names, st.booleans())
@settings(max_examples=100)
def test_any_names_are_unwrapped_or_refused(values: list[str], ema: bool) -> None:
    try:
        found = unwrap_names(values, ("a.cls_token", "cls_token"), ema, "x.pth")
    except CheckpointError as error:
        assert "x.pth" in str(error)
    else:
        assert set(found.stored.values()) <= set(values)
