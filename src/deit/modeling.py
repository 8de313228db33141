"""The model, whole.

A vision transformer (Dosovitskiy et al., arXiv 2010.11929) as DeiT trains it (Touvron et al., arXiv 2012.12877): section 3
recalls the transformer, section 4 adds the distillation token, which stands at index 1 and learns from the teacher.

Shapes: B images, C channels, N tokens, D width, H heads, L layers, K classes.

Nothing here draws a random number after the weights are made, but for dropout where a configuration asks for it: stochastic
depth arrives as a tensor of factors, so that the same inputs always give the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.checkpoints import weights
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError, UserError
from deit.position import resample
from deit.variants import VARIANTS, variant

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


@dataclass
class BaseModelOutput:
    """What the transformer says of each token.

    Attributes:
        last_hidden_state: (B, N, D), after the last layer norm.
        pooler_output: (B, pooler_output_size), or None without a pooler.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


@dataclass
class ImageClassifierOutput:
    """What a classifier with one head says.

    Attributes:
        logits: (B, K).
    """

    logits: Tensor

    @property
    def heads(self) -> dict[str, Tensor]:
        """Each head's logits by name; the last is the model's answer."""
        return {"class": self.logits}


@dataclass
class ImageClassifierWithTeacherOutput:
    """What a classifier with two heads says.

    Attributes:
        logits: (B, K), the mean of the two below, which is the model's answer.
        cls_logits: (B, K), of the head on the class token.
        distillation_logits: (B, K), of the head on the distillation token.
    """

    logits: Tensor
    cls_logits: Tensor
    distillation_logits: Tensor

    @property
    def heads(self) -> dict[str, Tensor]:
        """Each head's logits by name; the last is the model's answer."""
        return {"class": self.cls_logits, "distillation": self.distillation_logits, "both": self.logits}


class PatchEmbed(nn.Module):
    """Image -> one token a patch: a linear map of its pixels, as a convolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_hw, stride=config.patch_hw)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, rows x columns, D)."""
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """Patches, the tokens before them, and where each stands."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if isinstance(config, DeiTConfig):
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = PatchEmbed(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """(B, C, height, width) -> (B, N, D)."""
        positions = self._positions(pixel_values, interpolate_pos_encoding)
        patches = self.patch_embeddings(pixel_values)
        prefix = [self.cls_token]
        if isinstance(self.config, DeiTConfig):
            prefix.append(self.distillation_token)
        tokens = [token.expand(len(patches), -1, -1) for token in prefix]
        x: Tensor = self.dropout(torch.cat([*tokens, patches], dim=1) + positions)  # (B, N, D)
        return x

    def _positions(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        config = self.config
        channels, height, width = pixel_values.shape[1:]
        if channels != config.num_channels:
            raise UserError(f"The images have {channels} channels", f"this model takes {config.num_channels}")
        if (height, width) == config.image_hw:
            return self.position_embeddings
        if not interpolate:
            expected = "{} x {}".format(*config.image_hw)
            raise UserError(
                f"The images are {height} x {width}, this model takes {expected}",
                "resize them, or pass interpolate_pos_encoding=True",
            )
        grid = height // config.patch_hw[0], width // config.patch_hw[1]
        if not all(grid):
            raise UserError(f"The images are {height} x {width}, smaller than one patch", "enlarge them")
        return resample(self.position_embeddings, config.PREFIX_TOKENS, config.grid, grid)


class Attention(nn.Module):
    """Multi-head self-attention; one product makes queries, keys and values."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D / H)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.o_proj(x.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and around a residual connection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """(B, N, D), factors (2, B) -> (B, N, D)."""
        attended = self.dropout(self.attention(self.layernorm_before(x)))
        x = x + _scaled(attended, residual_scale, 0)
        mixed = self.dropout(self.mlp(self.layernorm_after(x)))
        return x + _scaled(mixed, residual_scale, 1)


def _scaled(branch: Tensor, factors: Tensor | None, row: int) -> Tensor:
    return branch if factors is None else branch * factors[row].to(branch.dtype)[:, None, None]


class PreTrainedModel(nn.Module):
    """What all public models share: a configuration, fresh weights, and the way from and to a model directory."""

    config_class: ClassVar[type[ViTConfig]] = ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        if type(config) is not self.config_class:
            raise UserError(f"{type(self).__name__} takes a {self.config_class.__name__}", f"not a {type(config).__name__}")
        super().__init__()
        self.config = config

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights: truncated normal for weights, tokens and positions, zero biases, unit norms (section 3).

        Args:
            generator: where the draws come from; torch's default one when None.
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif "layernorm" in name:
                parameter.fill_(1.0)
            else:
                nn.init.trunc_normal_(parameter, std=std, generator=generator)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` as transformers reads them."""
        weights.write_model(Path(directory), self.config, self.state_dict(), type(self).__name__)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """A model with the weights of a model directory, in evaluation mode.

        Raises:
            CheckpointError: a file is missing or damaged, or a tensor is missing, left over or of another shape.
            ConfigError: the configuration is none of this class.
        """
        directory = Path(directory)
        model = cls(cls.config_class.from_pretrained(directory))
        weights.load_into(model, weights.read_model(directory, model.config))
        return model.eval()


class ViTModel(PreTrainedModel):
    """The transformer without a head.

    Args:
        config: its shape.
        add_pooling_layer: a linear map and tanh on [CLS], as transformers has it; no published checkpoint holds one.

    Example:
        >>> model = ViTModel(ViTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3))
        >>> model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
        torch.Size([1, 5, 48])
    """

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if add_pooling_layer:
            self.pooler = nn.ModuleDict(
                {"dense": nn.Linear(config.hidden_size, config.pooler_output_size or config.hidden_size)}
            )
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        residual_scale: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> BaseModelOutput:
        """Run the transformer.

        Args:
            pixel_values: (B, C, height, width), normalised.
            residual_scale: (L, 2, B), the factor of each residual branch for each image, for stochastic depth;
                all ones when None.
            interpolate_pos_encoding: take images of another size by resampling the position embeddings.

        Raises:
            UserError: images of another size or channel count.
        """
        x = self.embeddings(pixel_values, interpolate_pos_encoding)  # (B, N, D)
        for depth, layer in enumerate(self.layers):
            x = layer(x, None if residual_scale is None else residual_scale[depth])
        x = self.layernorm(x)
        pooled = torch.tanh(self.pooler["dense"](x[:, 0])) if hasattr(self, "pooler") else None
        return BaseModelOutput(x, pooled)


class DeiTModel(ViTModel):
    """A :class:`ViTModel` with the distillation token at index 1."""

    config_class = DeiTConfig


class ViTForImageClassification(PreTrainedModel):
    """A vision transformer with one head on [CLS]: the four published models that had no distillation."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        residual_scale: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageClassifierOutput:
        """Classify; the arguments are those of :meth:`ViTModel.forward`."""
        x = self.vit(pixel_values, residual_scale, interpolate_pos_encoding).last_hidden_state  # (B, N, D)
        return ImageClassifierOutput(self.classifier(x[:, 0]))


class DeiTForImageClassification(PreTrainedModel):
    """A DeiT with one head, on the class token alone."""

    config_class = DeiTConfig

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        residual_scale: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageClassifierOutput:
        """Classify; the arguments are those of :meth:`ViTModel.forward`."""
        x = self.deit(pixel_values, residual_scale, interpolate_pos_encoding).last_hidden_state  # (B, N, D)
        return ImageClassifierOutput(self.classifier(x[:, 0]))


class DeiTForImageClassificationWithTeacher(PreTrainedModel):
    """DeiT as it is distilled: a head on the class token, another on the distillation token (section 4).

    Example:
        >>> config = DeiTConfig(image_size=32, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5)
        >>> output = DeiTForImageClassificationWithTeacher(config)(torch.zeros(2, 3, 32, 32))
        >>> output.logits.shape, output.distillation_logits.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    config_class = DeiTConfig

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.cls_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        residual_scale: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageClassifierWithTeacherOutput:
        """Classify; the arguments are those of :meth:`ViTModel.forward`."""
        x = self.deit(pixel_values, residual_scale, interpolate_pos_encoding).last_hidden_state  # (B, N, D)
        class_logits, distillation_logits = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])
        return ImageClassifierWithTeacherOutput(
            logits=(class_logits + distillation_logits) / 2,
            cls_logits=class_logits,
            distillation_logits=distillation_logits,
        )


TransformerClassifier = ViTForImageClassification | DeiTForImageClassification | DeiTForImageClassificationWithTeacher

_CLASSIFIERS: dict[str, type[TransformerClassifier]] = {
    kind.__name__: kind
    for kind in (ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher)
}


def new_classifier(config: ViTConfig, generator: torch.Generator | None = None) -> TransformerClassifier:
    """A classifier with fresh weights: two heads where there is a distillation token, else one."""
    model: TransformerClassifier
    if isinstance(config, DeiTConfig):
        model = DeiTForImageClassificationWithTeacher(config)
    else:
        model = ViTForImageClassification(config)
    if generator is not None:
        model.init_weights(generator)
    return model


def load_model(name: str | Path) -> TransformerClassifier:
    """A classifier with the weights of a model directory, in evaluation mode.

    Raises:
        CheckpointError: there is no such directory, or it holds no classifier that is known here.
    """
    directory = Path(name)
    if not directory.is_dir():
        known = str(name).removeprefix("facebook/") in VARIANTS
        remedy = f"download {variant(str(name)).hub_name} and pass its folder" if known else "check the path"
        raise CheckpointError(f"{name} is no model directory", remedy)
    return _CLASSIFIERS[weights.architecture(directory, _CLASSIFIERS)].from_pretrained(directory)
