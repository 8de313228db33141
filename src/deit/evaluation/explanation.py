"""Explains a prediction: which patches the logit of each head depends on.

By default, the attention of all layers is multiplied, as in attention rollout (Abnar and Zuidema, arXiv 2005.00928), but the
heads of a layer count as much as the logit depends on them: by the positive part of attention times gradient (Chefer et al.,
arXiv 2103.15679). The result is the mean for nine positions of the image, a quarter of a patch apart, since which single
patches stand out depends on where the image is divided; and squared, since rollout gives every patch a part of the attention,
also those that change nothing. Rollout itself, which averages the heads, and the attention weights do not depend on the class.

Shapes: L layers, H attention heads, N tokens, T tokens before the patches, h x w patches, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.errors import UserError
from deit.images.decoding import open_image
from deit.inference.bundle import is_bundle, open_bundle
from deit.models.auto import LoadedClassifier, load_classifier
from deit.models.modeling import TransformerClassifier
from deit.system.devices import choose_device

if TYPE_CHECKING:
    from deit.images.arrays import ImageInput

Method = Literal["gradient", "rollout", "attention"]
METHODS: tuple[Method, ...] = ("gradient", "rollout", "attention")
TOKENS = ("class", "distillation")  # in the order of the tokens before the patches; also the names of their heads


@dataclass(frozen=True)
class HeadExplanation:
    """What a head predicts, and where its token looks.

    Attributes:
        head: ``class`` or ``distillation``.
        labels: its most likely classes, most likely first.
        probabilities: their probabilities, in 0..1.
        target: the class whose logit is explained.
        relevance: (h, w), of each patch; the largest value is 1, or all are 0.
    """

    head: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    target: str
    relevance: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Returns the explanation as JSON values."""
        guesses = [{"label": name, "probability": p} for name, p in zip(self.labels, self.probabilities, strict=True)]
        return {"head": self.head, "predictions": guesses, "target": self.target, "relevance": self.relevance.tolist()}


@dataclass(frozen=True)
class Explanation:
    """An explained prediction.

    Attributes:
        image: name of the image.
        pixels: (height, width, 3) uint8, the image as the model sees it, before normalization.
        method: how relevance was computed.
        label: the model's most likely class: that of the mean of the heads' logits.
        heads: one per head.
        similarity: cosine of class and distillation token in the embeddings and after each layer, L + 1 values (section 4 of
            the paper); empty without a distillation token.
        attention: L times (H, T, h, w), the attention weights of the tokens before the patches to the patches.
    """

    image: str
    pixels: np.ndarray
    method: Method
    label: str
    heads: tuple[HeadExplanation, ...]
    similarity: tuple[float, ...]
    attention: tuple[np.ndarray, ...]

    @property
    def heads_agree(self) -> bool:
        """Whether all heads have the same most likely class."""
        return len({head.labels[0] for head in self.heads}) == 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the explanation as JSON values, without the attention weights."""
        return {
            "image": self.image,
            "label": self.label,
            "method": self.method,
            "heads_agree": self.heads_agree,
            "heads": [head.to_dict() for head in self.heads],
            "similarity": list(self.similarity),
        }


def explain(
    model: str | Path | LoadedClassifier,
    images: Iterable[ImageInput],
    *,
    method: Method = "gradient",
    target: str | None = None,
    top: int = 3,
    device: str = "auto",
) -> list[Explanation]:
    """Explains the predictions of a DeiT or ViT classifier of any format.

    Args:
        model: the classifier, or what :func:`deit.models.auto.load_classifier` loads it from.
        images: Pillow images, arrays, or paths of files.
        method: ``gradient``; ``rollout``; or ``attention``, that of the last layer.
        target: the class to explain; None explains the most likely one of each image.
        top: classes per head.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        CheckpointError: the model is not readable.
        ImageError: an image is not readable.
        UserError: the model is not a DeiT or ViT, or there is no such class or method.

    Example:
        [explanation] = deit.explain("runs/student", ["cat.jpg"])
        explanation.heads[0].relevance  # of each patch, for the class token
    """
    explainer = Explainer(model if isinstance(model, LoadedClassifier) else load_classifier(model), device)
    return [explainer(image, method=method, target=target, top=top) for image in images]


def explainable(name: str) -> str:
    """Returns the name of a model whose attention can be explained: of a bundle, the model that it was exported from.

    Raises:
        CheckpointError: the bundle is not readable.
        UserError: that model is not where it was.
    """
    if not is_bundle(name):
        return name
    source = open_bundle(name).metadata.report.get("source")
    if not isinstance(source, str) or not Path(source).exists():
        raise UserError(f"{name} is a bundle, which has no attention weights", "pass the model that it was exported from")
    return source


class Explainer:
    """Explains predictions one by one, see :func:`explain`.

    Args:
        classifier: the classifier.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        UserError: the classifier is not a DeiT or ViT.
    """

    def __init__(self, classifier: LoadedClassifier, device: str = "auto") -> None:
        if not isinstance(classifier.model, TransformerClassifier):
            raise UserError(f"{classifier.path or 'The model'} has no attention to patches", "pass a DeiT or ViT of any format")
        self._model, self._device = classifier.model.to(choose_device(device)).eval(), choose_device(device)
        self._classifier = classifier

    def __call__(
        self, image: ImageInput | bytes, name: str = "", *, method: Method = "gradient", target: str | None = None, top: int = 3
    ) -> Explanation:
        """Explains the prediction for an image.

        Args:
            image: a Pillow image, an array, the path of a file, or its content.
            name: of the image; that of a file is its path.
            method: ``gradient``, ``rollout`` or ``attention``, that of the last layer.
            target: the class to explain; None explains the model's most likely one.
            top: classes per head.

        Raises:
            ImageError: the input is not an image.
            UserError: the model has no such class, or the method is unknown.
        """
        if method not in METHODS:
            raise UserError(f"There is no method {method!r}", f"choose from {', '.join(METHODS)}")
        self.check_target(target)
        classes = self._classifier.classes
        pixels, values, name = self._preprocessed(image, name)
        with torch.enable_grad():
            output = self._model(values.requires_grad_(), output_attentions=True, output_hidden_states=True)
            index = int(output.logits[0].argmax()) if target is None else classes.index(target)
            heads = tuple(self._explain_heads(values, output, index, method, top))
        states = [state[0] for state in output.hidden_states]
        return Explanation(
            image=name,
            pixels=_as_rgb(pixels),
            method=method,
            label=classes[int(output.logits[0].argmax())],
            heads=heads,
            similarity=tuple(_cosine(*state[:2]) for state in states) if len(heads) > 1 else (),
            attention=tuple(self._to_patches(weights[0].detach()).cpu().numpy() for weights in output.attentions),
        )

    @torch.inference_mode()
    def votes(self, image: ImageInput) -> dict[str, str]:
        """Returns the most likely class of each head, which is faster than to explain it.

        Args:
            image: as for a call.

        Raises:
            ImageError: the input is not an image.
        """
        _, values, _ = self._preprocessed(image, "")
        heads = self._model(values).heads
        return {head: self._classifier.classes[int(heads[head][0].argmax())] for head in TOKENS if head in heads}

    def _preprocessed(self, image: ImageInput | bytes, name: str) -> tuple[np.ndarray, Tensor, str]:
        """Returns pixels (height, width, C), the model's input (1, C, height, width), and the name of the image."""
        processor = self._classifier.processor
        if isinstance(image, str | Path):
            name = name or str(image)
            image = open_image(Path(image), name, processor.file_range)
        elif isinstance(image, bytes):
            image = open_image(image, name, processor.file_range)
        pixels = processor.pixels(image)
        return pixels, torch.from_numpy(processor.normalize(pixels))[None].to(self._device), name

    def check_target(self, target: str | None) -> None:
        """Checks that the model has a class, unless it is None.

        Raises:
            UserError: it has not.
        """
        if target is not None and target not in self._classifier.classes:
            raise UserError(f"The model has no class {target!r}", "`deit model show` lists its classes")

    def _explain_heads(self, values: Tensor, output: Any, target: int, method: Method, top: int) -> Iterator[HeadExplanation]:
        classes = self._classifier.classes
        logits = {token: output.heads[head][0] for token, head in enumerate(TOKENS) if output.heads.get(head) is not None}
        relevance = self._relevance(values, output.attentions, {token: row[target] for token, row in logits.items()}, method)
        for token, row in logits.items():
            patches = self._to_patches(relevance[token][None])[0].detach().cpu().numpy()  # (h, w)
            probabilities, order = row.detach().softmax(0).topk(min(top, len(classes)))
            yield HeadExplanation(
                head=TOKENS[token],
                labels=tuple(classes[index] for index in order.tolist()),
                probabilities=tuple(probabilities.tolist()),
                target=classes[target],
                relevance=patches / patches.max() if patches.max() > 0 else patches,
            )

    def _relevance(
        self, values: Tensor, attentions: Sequence[Tensor], logits: Mapping[int, Tensor], method: Method
    ) -> dict[int, Tensor]:
        """Returns the relevance (N,) of all tokens for each token before the patches that has a head.

        Args:
            values: the image (1, C, height, width).
            attentions: its L attention weights (1, H, N, N), with gradients.
            logits: position of the token -> the logit (scalar) that is explained.
            method: how.
        """
        if method == "attention":
            return {token: attentions[-1][0, :, token].mean(dim=0) for token in logits}
        if method == "rollout":
            average = [layer.new_full(layer.shape[1:2], 1 / layer.shape[1]) for layer in attentions]
            return {token: _rollout(attentions, average, token) for token in logits}
        weights = {token: _head_weights(attentions, logit) for token, logit in logits.items()}
        with torch.no_grad():
            rows = {token: _rollout(attentions, weights[token], token) for token in logits}
            for moved in _moved(values, self._model.config.patch_hw):
                of_moved = self._model(moved, output_attentions=True).attentions
                for token in rows:
                    rows[token] += _rollout(of_moved, weights[token], token)
        return {token: row.square() for token, row in rows.items()}

    def _to_patches(self, weights: Tensor) -> Tensor:
        """Returns the part of the patches: (1, N) -> (1, h, w), or (H, N, N) -> (H, T, h, w)."""
        prefix = self._model.config.PREFIX_TOKENS
        if weights.ndim == 3:
            weights = weights[:, :prefix]
        return weights[..., prefix:].reshape(*weights.shape[:-1], *self._model.config.grid)


def _head_weights(attentions: Sequence[Tensor], logit: Tensor) -> list[Tensor]:
    """Returns how much a logit depends on each attention head of each layer: L weights (H,) that sum to 1, or to 0 where it
    depends on none.
    """
    weights = []
    for attention, gradient in zip(attentions, torch.autograd.grad(logit, attentions, retain_graph=True), strict=True):
        importance = (attention[0].detach() * gradient[0]).clamp(min=0).sum(dim=(1, 2))  # (H,)
        weights.append(importance / importance.sum().clamp(min=torch.finfo(importance.dtype).tiny))
    return weights


def _rollout(attentions: Sequence[Tensor], weights: Sequence[Tensor], token: int) -> Tensor:
    """Returns the row (N,) of a token in the product (I + A_L) ... (I + A_1), where A is a layer's weighted sum of its heads.
    The halves of the published rollout change its scale only.

    Args:
        attentions: L attention weights (1, H, N, N).
        weights: L weights (H,) of the heads.
        token: position of the token.
    """
    row = torch.zeros_like(attentions[-1][0, 0, token])
    row[token] = 1.0
    for attention, of_heads in zip(reversed(attentions), reversed(weights), strict=True):
        row = row + (of_heads[:, None] * row).flatten() @ attention[0].flatten(0, 1)  # (H N) @ (H N, N)
    return row


def _moved(values: Tensor, patch_hw: tuple[int, int]) -> Iterator[Tensor]:
    """Yields an image (1, C, height, width), moved by a quarter of a patch in eight directions. Its edge is repeated.

    Nothing is yielded for patches of less than four pixels.
    """
    (height, width), (down, right) = values.shape[-2:], (side // 4 for side in patch_hw)
    padded = F.pad(values, (right, right, down, down), mode="replicate")
    for top, left in sorted({(row, column) for row in (0, down, 2 * down) for column in (0, right, 2 * right)}):
        if (top, left) != (down, right):
            yield padded[..., top : top + height, left : left + width]


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first.detach(), second.detach(), dim=0))


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (height, width, C) as RGB, uint8."""
    values = pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
