"""What models answer: parts that are attributes, keys and positions at once.

Shapes: B images, C channels, N tokens, D width, H heads, L layers, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(dict[str, Any]):
    """An answer in parts.

    A part that was not asked for is None as an attribute, and no key and no position. ``dict``'s own methods work, iteration
    goes over the names, and :meth:`to_tuple` gives the parts alone.

    Example:
        >>> output = ImageClassifierOutput(logits="L", attentions=("A",))
        >>> output.logits, output["logits"], output[0], output[:1], output.loss
        ('L', 'L', 'L', ('L',), None)
        >>> list(output)
        ['logits', 'attentions']
    """

    def __init_subclass__(cls) -> None:
        # So that torch.export, DistributedDataParallel and the like find the tensors inside.
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(dict(zip(names, values, strict=True))),
            serialized_type_name=f"deit.{cls.__name__}",
        )

    def __init__(self, parts: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any) -> None:
        given = {**dict(parts), **named}
        super().__init__({name: value for name, value in given.items() if value is not None})

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in type(self).__annotations__:
            return None
        raise AttributeError(f"{type(self).__name__} has no part {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None:
            self.pop(name, None)
        else:
            self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The parts that are there, in order.

        Example:
            >>> ImageClassifierOutput(loss=0.5, logits="L").to_tuple()
            (0.5, 'L')
        """
        return tuple(self.values())


class BaseModelOutput(ModelOutput):
    """What the transformer says of each token.

    Attributes:
        last_hidden_state: (B, N, D), after the last layer norm.
        pooler_output: (B, pooler_output_size), or None without a pooler.
        hidden_states: L + 1 tensors of (B, N, D): the embeddings, then what each layer made of them, before the last norm.
        attentions: L tensors of (B, H, N, N); rows sum to 1 but for dropout and head masks.

    Example:
        >>> BaseModelOutput(last_hidden_state="x").pooler_output is None
        True
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ImageClassifierOutput(ModelOutput):
    """What a classifier with one head says.

    Attributes:
        loss: scalar, where labels were given.
        logits: (B, K).
        hidden_states: as in :class:`BaseModelOutput`; likewise ``attentions``.

    Example:
        >>> ImageClassifierOutput(logits="L").heads
        {'class': 'L'}
    """

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None

    @property
    def heads(self) -> dict[str, Tensor]:
        """Each head's logits by name; the last is the model's answer."""
        return {"class": self.logits}


class ImageClassifierWithTeacherOutput(ModelOutput):
    """What a classifier with two heads says.

    Attributes:
        loss: scalar, where labels were given.
        logits: (B, K), the mean of the two below, which is the model's answer.
        cls_logits: (B, K), of the head on the class token.
        distillation_logits: (B, K), of the head on the distillation token.
        hidden_states: as in :class:`BaseModelOutput`; likewise ``attentions``.

    Example:
        >>> ImageClassifierWithTeacherOutput(logits="M", cls_logits="C", distillation_logits="D").heads
        {'class': 'C', 'distillation': 'D', 'both': 'M'}
    """

    loss: Tensor | None
    logits: Tensor
    cls_logits: Tensor
    distillation_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None

    @property
    def heads(self) -> dict[str, Tensor]:
        """Each head's logits by name; the last is the model's answer."""
        return {"class": self.cls_logits, "distillation": self.distillation_logits, "both": self.logits}


class MaskedImageModelingOutput(ModelOutput):
    """What a model that fills in hidden patches says.

    Attributes:
        loss: scalar, mean absolute difference of the hidden patches' pixels, where a mask was given.
        reconstruction: (B, C, height, width).
        hidden_states: as in :class:`BaseModelOutput`; likewise ``attentions``.

    Example:
        >>> MaskedImageModelingOutput(reconstruction="R")[0]
        'R'
    """

    loss: Tensor | None
    reconstruction: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
