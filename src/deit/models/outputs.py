"""Model outputs: fields that are attributes, keys and positions.

Shapes: B images, C channels, N tokens, D width, H heads, L layers, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(dict[str, Any]):
    """Base class of the outputs of models: a dictionary whose values are also attributes and positions.

    A field that was not requested is None as an attribute, and has no key and no position. Iteration is over the names;
    :meth:`to_tuple` returns the values.

    Example:
        >>> output = ImageClassifierOutput(logits="L", attentions=("A",))
        >>> output.logits, output["logits"], output[0], output[:1], output.loss
        ('L', 'L', 'L', ('L',), None)
        >>> list(output)
        ['logits', 'attentions']
    """

    def __init_subclass__(cls) -> None:
        # torch.export, DistributedDataParallel and others find the tensors inside through pytree.
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(dict(zip(names, values, strict=True))),
            serialized_type_name=f"deit.{cls.__name__}",
        )

    def __init__(self, fields: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named_fields: Any) -> None:
        values = {**dict(fields), **named_fields}
        super().__init__({name: value for name, value in values.items() if value is not None})

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in type(self).__annotations__:
            return None
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None:
            self.pop(name, None)
        else:
            self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values of all fields that are not None, in order.

        Example:
            >>> ImageClassifierOutput(loss=0.5, logits="L").to_tuple()
            (0.5, 'L')
        """
        return tuple(self.values())


class BaseModelOutput(ModelOutput):
    """Output of a transformer without a head.

    Attributes:
        last_hidden_state: (B, N, D), after the last layer norm.
        pooler_output: (B, pooler_output_size); None without a pooler.
        hidden_states: L + 1 tensors (B, N, D): the embeddings, and the output of each layer, before the last layer norm.
        attentions: L tensors (B, H, N, N) of attention weights; rows sum to 1, except with dropout or a head mask.

    Example:
        >>> BaseModelOutput(last_hidden_state="x").pooler_output is None
        True
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ImageClassifierOutput(ModelOutput):
    """Output of a classifier with one head.

    Attributes:
        loss: scalar, if labels were passed.
        logits: (B, K).
        hidden_states: see :class:`BaseModelOutput`.
        attentions: see :class:`BaseModelOutput`.

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
        """Logits of each head by name; the last are the model's prediction."""
        return {"class": self.logits}


class ImageClassifierWithTeacherOutput(ModelOutput):
    """Output of a classifier with two heads.

    Attributes:
        loss: scalar, if labels were passed.
        logits: (B, K), the model's prediction: the mean of the logits of both heads.
        cls_logits: (B, K), of the head on the class token.
        distillation_logits: (B, K), of the head on the distillation token.
        hidden_states: see :class:`BaseModelOutput`.
        attentions: see :class:`BaseModelOutput`.

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
        """Logits of each head by name; the last are the model's prediction."""
        return {"class": self.cls_logits, "distillation": self.distillation_logits, "both": self.logits}


class MaskedImageModelingOutput(ModelOutput):
    """Output of a model for masked image modeling.

    Attributes:
        loss: scalar, mean absolute error of the pixels in masked patches, if a mask was passed.
        reconstruction: (B, C, height, width), normalized pixels.
        hidden_states: see :class:`BaseModelOutput`.
        attentions: see :class:`BaseModelOutput`.

    Example:
        >>> MaskedImageModelingOutput(reconstruction="R")[0]
        'R'
    """

    loss: Tensor | None
    reconstruction: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
