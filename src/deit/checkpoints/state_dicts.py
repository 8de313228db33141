"""Finds the state dict of a model in a checkpoint. One rule for models and teachers.

A training program saves weights beside optimizer, scheduler and arguments (*containers*: ``{"state_dict": ...}``), and wraps
the model (*prefixes*: ``module.``, ``model.backbone.``). Neither has a fixed name. Both are therefore found by an *anchor*: a
tensor name that every model of the wanted kind has, such as ``cls_token``. What precedes it is a container or a prefix.

If several state dicts fit, all but one must be moving averages of the weights, which ``ema`` selects. Otherwise the choice is
left to the user.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from deit.checkpoints.key_maps import printable
from deit.checkpoints.pickles import StoredTensor
from deit.errors import CheckpointError

MAX_DEPTH = 6  # of dicts in dicts; a state dict of a training program is at depth 1 or 2
MAX_VISITS = 200_000  # entries of these dicts; a model with its optimizer has 20,000

# Names of the class token, the longest first: the prefix of the trunk (deit., vit.) belongs to the model.
MODEL_ANCHORS = ("deit.embeddings.cls_token", "vit.embeddings.cls_token", "embeddings.cls_token", "cls_token", "class_token")

# Modules that wrap others at any depth: torch.compile, FSDP, activation checkpointing, Lightning Fabric.
_TRANSPARENT = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_AVERAGE_WORDS = frozenset({"ema", "swa", "average", "averaged", "averages", "avg", "momentum", "shadow"})
# Containers of what is not a model, by a word of their path. Optimizers may have tensors by the names of the weights.
_NO_MODEL = re.compile(
    r"(?:^|[._])(?:optim\w*|\w*sched\w*|\w*scaler|callbacks?|loops|rng|hyper\w*|amp|args|config|cfg|metrics?|criterion|loss"
    r"|history|meta)(?:[._]|$)",
    re.IGNORECASE,
)
# Tensors beside a model that do not take part in its predictions: losses, metrics, other networks of the training program,
# counters of moving averages, and the projection heads of self-supervised training.
_BESIDE = re.compile(
    r"n_averaged|num_updates|decay|step|\w*(?:loss|criterion|metric|accuracy|teacher|student|momentum|predictor|projector|queue"
    r"|center)\w*(?:\..+)?|(?:train|val|valid|test)_\w+(?:\..+)?|decoder_\w+(?:\..+)?|mask_token"
    r"|head\.(?:mlp|last_layer|\d+)\..+",
    re.IGNORECASE,
)


class StateDict(NamedTuple):
    """State dict in the content of a file.

    Attributes:
        values: name -> value, as stored.
        averaged: whether it is a moving average of the weights.
        notes: what else could have been chosen.
    """

    values: Mapping[Any, Any]
    averaged: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModelNames:
    """Tensor names of a model without the prefixes of the modules that wrapped it.

    Attributes:
        stored: name in the model -> name in the file.
        prefix: removed prefix.
        averaged: whether the prefix names a moving average of the weights.
        notes: what else could have been chosen, and what was left out.
    """

    stored: Mapping[str, str]
    prefix: str = ""
    averaged: bool = False
    notes: tuple[str, ...] = ()


def find_state_dict(content: Mapping[Any, Any], anchors: Sequence[str], ema: bool, source: str) -> StateDict | None:
    """Returns the state dict in the content of a training checkpoint; None if there is none.

    Args:
        content: content of the file.
        anchors: names that the wanted model has, possibly behind a prefix. If no state dict has one, all are candidates.
        ema: choose a moving average of the weights, if there is one.
        source: name of the file in error messages.

    Raises:
        CheckpointError: several state dicts fit.
    """
    found = dict(_state_dicts(content))
    wanted = frozenset(anchors)
    fitting = [path for path, state in found.items() if any(suffix in wanted for name in state for suffix in _suffixes(name))]
    candidates = [path for path in fitting or _outermost(list(found)) if not _NO_MODEL.search(path)]
    if not candidates:
        return None
    path, averaged, notes = _choose(candidates, ema, source)
    return StateDict(found[path], averaged, notes)


def unwrap_names(
    names: Collection[str], anchors: Sequence[str], ema: bool, source: str, known: Collection[str] | None = ()
) -> ModelNames:
    """Removes the prefixes of wrapping modules from tensor names.

    Args:
        names: tensor names of a state dict.
        anchors: names of tensors of the wanted model; the first that occurs decides.
        ema: choose a moving average of the weights, if there is one.
        source: name of the file in error messages.
        known: names of the model, which are kept whatever they are called; None keeps all.

    Returns:
        The names of the model, and those beside it that may belong to it, such as ``head.weight`` beside ``backbone.``, without
        the part of the prefix that they share with it.

    Raises:
        CheckpointError: several prefixes fit, or a name occurs twice without its prefix.
    """
    plain = {name: _without_wrappers(name) for name in names}
    candidates = _prefixes(plain.values(), anchors)
    prefix, averaged, notes = _choose(candidates, ema, source) if candidates else ("", False, ())
    others = [candidate for candidate in candidates if candidate != prefix]
    stored: dict[str, str] = {}
    beside = []
    for name, clean in plain.items():
        if any(_belongs_to(clean, other, prefix) for other in others):
            continue
        own = clean.removeprefix(prefix) if clean.startswith(prefix) else _without_shared_prefix(clean, prefix)
        if known is not None and own not in known and _BESIDE.fullmatch(own):
            beside.append(own)
        elif own in stored:
            raise CheckpointError(
                f"{source} has {printable(own)} twice, as {printable(stored[own])} and as {printable(name)}",
                "remove one of the two",
            )
        else:
            stored[own] = name
    if any(not name.endswith(("n_averaged", "num_updates", "decay", "step")) for name in beside):
        names_beside = f"{printable(min(beside))} and {len(beside) - 1} more" if len(beside) > 1 else printable(beside[0])
        notes = (*notes, f"Not part of the model: {names_beside}")
    return ModelNames(stored, prefix, averaged, notes)


def anchor_of(names: Collection[str]) -> tuple[str, ...]:
    """Returns an anchor for a network with these tensor names: a name that is not the end of another one."""
    return (max(names, key=lambda name: (name.count("."), len(name), name)),) if names else ()


def names_average(names: Collection[str]) -> bool:
    """Returns whether some of the names have a prefix of a moving average of the weights."""
    return any(_is_average(name) for name in names)


def no_average(source: object) -> CheckpointError:
    """Returns the error for a moving average that was requested and does not exist."""
    return CheckpointError(f"{source} has no moving average of the weights", "load it without ema")


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yields the path and the content of each dict that has tensors, and not only scalars, in nested dicts."""
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    visits = 0
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[str, Mapping[Any, Any]]] = []
        for path, values in level:
            visits += len(values)
            if visits > MAX_VISITS:
                return
            if any(isinstance(value, StoredTensor) and value.shape for value in values.values()):
                yield path, values
            deeper += [
                (f"{path}.{name}" if path else name, value)
                for name, value in values.items()
                if isinstance(name, str) and isinstance(value, dict)
            ]
        level = deeper


def _outermost(paths: Sequence[str]) -> list[str]:
    """Leaves out the paths of dicts within others of the list."""
    return [
        path for path in paths if not any(path != other and path.startswith(f"{other}." if other else "") for other in paths)
    ]


def _choose(candidates: Sequence[str], ema: bool, source: str) -> tuple[str, bool, tuple[str, ...]]:
    """Chooses one of several containers or prefixes.

    Returns:
        The chosen one, whether it is a moving average of the weights, and a note on a moving average that was not chosen.

    Raises:
        CheckpointError: several fit.
    """
    ordered = sorted(candidates)
    named = " and ".join(f"`{printable(name.rstrip('.'))}`" if name else "no prefix" for name in ordered)
    students = [name for name in ordered if "student" in name.lower()]
    teachers = [name for name in ordered if "teacher" in name.lower()]
    self_supervised = len(students) == len(teachers) == 1 and len(ordered) == 2
    averages = teachers if self_supervised else [name for name in ordered if _is_average(name)]
    weights = [name for name in ordered if name not in averages]
    if self_supervised and not ema:
        raise CheckpointError(
            f"{source} has a student and its moving average, under {named}",
            "choose the average, the teacher, with ema=True (--ema); to use the student, save it alone",
        )
    chosen = averages if ema and averages else weights or averages
    if len(chosen) > 1:
        raise CheckpointError(
            f"{source} has several models, under {named}", "save the one that you need alone: torch.save({'model': ...}, path)"
        )
    if averages and chosen != averages:
        note = (
            f"The checkpoint also has a moving average of the weights, {printable(averages[0].rstrip('.'))}: "
            "ema=True (--ema) loads it"
        )
        return chosen[0], False, (note,)
    return chosen[0], chosen == averages, ()


def _prefixes(names: Collection[str], anchors: Sequence[str]) -> list[str]:
    """Returns what precedes the first anchor that occurs, each prefix once."""
    for anchor in anchors:
        prefixes = {name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")}
        if prefixes:
            return sorted(prefixes)
    return []


def _without_wrappers(name: str) -> str:
    name = _TRANSPARENT.sub("", name)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _without_shared_prefix(name: str, prefix: str) -> str:
    """Removes the leading parts that a name shares with a prefix: ``model.head.x`` beside ``model.backbone.`` -> ``head.x``."""
    for part in prefix.split(".")[:-1]:
        if not name.startswith(f"{part}."):
            break
        name = name.removeprefix(f"{part}.")
    return name


def _belongs_to(name: str, other: str, prefix: str) -> bool:
    """Returns whether a name belongs to a model that was not chosen, with the prefix ``other``."""
    parts, own = other.split("."), prefix.split(".")
    if other.startswith(prefix):  # within the chosen one: up to the first part that the chosen prefix lacks
        return name.startswith(f"{prefix}{other.removeprefix(prefix).partition('.')[0]}.")
    differing = next(index for index, part in enumerate(parts) if index >= len(own) or part != own[index])
    first = ".".join(parts[: differing + 1])  # up to the part that tells both prefixes apart; the chosen one may be within
    return name.startswith(f"{first.removesuffix('.')}." if first else "") and not name.startswith(prefix)


def _suffixes(name: object) -> Iterator[str]:
    """Yields a name, and what is left of it without its first parts, up to the number of parts of an anchor."""
    text = _TRANSPARENT.sub("", name) if isinstance(name, str) else ""
    while text:
        yield text
        text = text.partition(".")[2]


def _is_average(label: str) -> bool:
    return not _AVERAGE_WORDS.isdisjoint(re.split(r"[._]", label.lower()))
