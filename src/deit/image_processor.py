"""Image -> ``pixel_values``: resize, centre crop, rescale, normalise. Written and read as Hugging Face JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from deit.errors import ConfigError, ImageError, validation_problem
from deit.files import read_json, write_json
from deit.images import to_rgb

if TYPE_CHECKING:
    import torch

    ImageInput = Image.Image | np.ndarray | torch.Tensor

PROCESSOR_NAME = "preprocessor_config.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 0.875  # the authors resize the shorter side to int(size / 0.875) before the centre crop
MAX_SIDE = 16_384

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class BatchFeature(dict[str, Any]):
    """The processor's answer: a mapping whose keys can be read as attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _sides(value: Any) -> Any:
    """Sizes as transformers writes them: 224 or {"height": ..., "width": ...} or {"shortest_edge": ...}."""
    return {"height": value, "width": value} if isinstance(value, int) else value


class DeiTImageProcessor(BaseModel):
    """Make a model's input of images.

    The defaults are those of the transformers class: squash to 256 x 256, crop 224 x 224, mean and std of 0.5. The authors
    keep the aspect instead (section 5.1 and the released code): :meth:`for_size` gives their evaluation.

    Example:
        >>> DeiTImageProcessor()(Image.new("RGB", (500, 375))).pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    do_resize: bool = True
    size: Annotated[dict[str, Side], BeforeValidator(_sides)] = {"height": 256, "width": 256}
    resample: Annotated[int, Field(ge=0, le=5)] = int(Image.Resampling.BICUBIC)
    do_center_crop: bool = True
    crop_size: Annotated[dict[str, Side], BeforeValidator(_sides)] = {"height": 224, "width": 224}
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.5,
        0.5,
        0.5,
    )

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(f"Image processor: {validation_problem(error)}", f"correct {PROCESSOR_NAME}") from error

    @model_validator(mode="after")
    def _sizes_are_whole(self) -> Self:
        if set(self.size) not in ({"height", "width"}, {"shortest_edge"}):
            raise ValueError("size takes height and width, or shortest_edge")
        if set(self.crop_size) != {"height", "width"}:
            raise ValueError("crop_size takes height and width")
        return self

    @classmethod
    def for_size(
        cls,
        height: int,
        width: int,
        crop_ratio: float = CROP_RATIO,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """The authors' evaluation: shorter side to int(size / 0.875) bicubically, centre crop, ImageNet statistics.

        An input that is not square is squashed to its own aspect, since no single shorter side fits it.
        """
        if height == width:
            size = {"shortest_edge": int(height / crop_ratio)}
        else:
            size = {"height": int(height / crop_ratio), "width": int(width / crop_ratio)}
        crop = {"height": height, "width": width}
        return cls(size=size, crop_size=crop, image_mean=tuple(mean), image_std=tuple(std))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop one RGB image -> (height, width, 3), uint8."""
        if self.do_resize:
            image = image.resize(self._target(image.size), self.resample)
        if self.do_center_crop:
            image = _center_crop(image, self.crop_size["height"], self.crop_size["width"])
        return np.asarray(image)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., height, width, 3), uint8 -> (..., 3, height, width), float32, rescaled and normalised."""
        values = pixels.astype(np.float32)
        if self.do_rescale:
            values *= np.float32(self.rescale_factor)
        if self.do_normalize:
            values -= np.asarray(self.image_mean, np.float32)
            values /= np.asarray(self.image_std, np.float32)
        return np.ascontiguousarray(np.moveaxis(values, -1, -3))

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        return_tensors: Literal["pt", "np"] = "pt",
        **overrides: Any,
    ) -> BatchFeature:
        """One image or several -> ``{"pixel_values": (B, 3, height, width)}``.

        Args:
            images: Pillow images; arrays or tensors of (height, width, channels) or (channels, height, width) or
                (height, width), in 0..255 or, as floats, in 0..1; a list of them, or a batch of four dimensions.
            return_tensors: "pt" for a torch tensor, "np" for an array.
            overrides: any field of this class, for this call.

        Raises:
            ImageError: something that is no image, or images that come out in different sizes.
            ConfigError: an override that cannot be, or that is no field.
        """
        if unknown := overrides.keys() - type(self).model_fields.keys():
            raise ConfigError(
                f"The image processor has no setting {min(unknown)!r}", f"it has {', '.join(type(self).model_fields)}"
            )
        processor = self if not overrides else type(self)(**{**self.model_dump(), **overrides})
        batch = [processor.pixels(_as_pil(image)) for image in _as_list(images)]
        if len({pixels.shape for pixels in batch}) > 1:
            raise ImageError("The images come out in different sizes", "switch do_resize and do_center_crop on")
        values = processor.normalise(np.stack(batch))
        if return_tensors == "np":
            return BatchFeature(pixel_values=values)
        import torch

        return BatchFeature(pixel_values=torch.from_numpy(values))

    __call__ = preprocess

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to resize an image of that width and height to."""
        if "shortest_edge" not in self.size:
            return self.size["width"], self.size["height"]
        width, height = size
        edge = self.size["shortest_edge"]
        longer = min(int(edge * max(size) / min(size)), MAX_SIDE)
        return (edge, longer) if width <= height else (longer, edge)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``preprocessor_config.json``."""
        write_json(Path(directory) / PROCESSOR_NAME, {**self.model_dump(), "image_processor_type": "DeiTImageProcessor"})

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read ``preprocessor_config.json`` of a model directory."""
        return cls(**read_json(Path(directory) / PROCESSOR_NAME))


DeiTFeatureExtractor = DeiTImageProcessor


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of the image; what lies beyond its edge is black."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _as_list(images: Any) -> list[Any]:
    if isinstance(images, Image.Image):
        return [images]
    if hasattr(images, "ndim"):  # an array or a tensor
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes | Mapping) and images:
        return list(images)
    raise ImageError(f"{type(images).__name__} is no image", "pass a Pillow image, an array, a tensor, or a list of them")


def _as_pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not hasattr(image, "ndim"):
        raise ImageError(f"{type(image).__name__} is no image", "pass a Pillow image, an array or a tensor")
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise ImageError(f"An array of shape {array.shape} is no image", "pass (height, width, 3) or (3, height, width)")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)
        array = array * 255 if array.min() >= 0 and array.max() <= 1 else array
    return to_rgb(Image.fromarray(np.clip(np.rint(array), 0, 255).astype(np.uint8)))
