"""The image processor: resizes, crops, rescales, normalizes and pads images to ``pixel_values``.

Its settings are saved and loaded in the JSON format of Hugging Face.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from deit.errors import ConfigError, ImageError
from deit.images.arrays import (
    CHANNELS,
    flatten_images,
    rescale_and_normalize,
    rescale_and_normalize_into,
    resize_and_crop,
    to_channels_last,
)
from deit.images.batch_feature import BatchFeature
from deit.images.conversion import ValueRange
from deit.images.crops import CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD, Crop, crop_settings, evaluation_settings
from deit.images.decoding import open_image
from deit.images.pretrained_processor import PreTrainedProcessor, settings_by_name
from deit.images.processor_classes import IGNORED_ARGUMENTS
from deit.images.processor_settings import (
    HeightWidthField,
    ImageProcessorKwargs,
    LayoutField,
    ResampleField,
    Size,
    SizeField,
    Statistic,
    StatisticField,
    ValueRangeField,
    enum_value,
    target_size,
)
from deit.images.resizing import HeightWidth
from deit.system.threads import thread_map

if TYPE_CHECKING:
    from deit.images.arrays import ImageInput

Triple = tuple[float, float, float]

# Settings in the order in which the constructors and calls of transformers 4.x take them by position.
_STATISTICS = ("image_mean", "image_std")
_OUTPUT = ("return_tensors", "data_format", "input_data_format")
_DEIT_STEPS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
_VIT_STEPS = ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", *_STATISTICS)


class DeiTImageProcessor(PreTrainedProcessor):
    """Converts images to the input of a model; a drop-in replacement for the processors of DeiT and ViT in transformers.

    The defaults are those of transformers: squash to 256 x 256, crop 224 x 224, mean and std of 0.5. The authors keep the
    aspect ratio instead (section 5.1 and the released code): :meth:`for_size` returns their evaluation. The output equals
    that of ``DeiTImageProcessorPil`` bit for bit. Intended differences: ``do_convert_rgb`` is on by default (it is off in
    transformers, where gray images fail), ``data_format`` is respected, a batch is a torch tensor by default, and no side
    exceeds 16,384.

    Settings are attributes, validated on assignment; each can also be passed to a single call. ``size`` takes 224,
    (height, width), or a dictionary of ``height`` and ``width``, of ``shortest_edge`` with or without ``longest_edge``, or
    of ``max_height`` and ``max_width``. A step that is set to None is off, and another setting has its default.
    ``image_processor_type`` names the class of transformers whose defaults apply. If the statistics are not for three
    channels, images are not converted to RGB.

    ``crop_rounding`` is "even" where the pixels are those of the authors and of timm: torchvision rounds the offset of an odd
    center crop half to even, transformers rounds it down. ``value_range`` is the black and white of files with more than 8
    bits, as training found it: ``{"integers": [0, 4095]}``. It applies to files only: Pillow clips 16-bit images at 255 when it
    converts them to RGB, as transformers does.

    Arguments of transformers that have no effect here, such as ``use_fast`` and ``backend``, are accepted. ``device`` is the
    device of the torch tensors.

    Raises:
        ConfigError: a setting is unknown or invalid.

    Example:
        >>> processor = DeiTImageProcessor(size={"shortest_edge": 256})
        >>> processor.image_mean = [0.485, 0.456, 0.406]
        >>> processor(Image.new("RGB", (500, 375))).pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    is_fast: ClassVar[bool] = False  # transformers 4.x; its values are those of the Pillow backend
    backend: ClassVar[str] = "pil"  # the same in 5.x
    valid_kwargs: ClassVar[type] = ImageProcessorKwargs
    _class_name: ClassVar[str] = "DeiTImageProcessor"
    _init_order: ClassVar[tuple[str, ...]] = (*_DEIT_STEPS, "rescale_factor", "do_rescale", "do_normalize", *_STATISTICS)
    _call_order: ClassVar[tuple[str, ...]] = (
        *_DEIT_STEPS,
        *("do_rescale", "rescale_factor", "do_normalize", *_STATISTICS, *_OUTPUT),
    )

    do_convert_rgb: bool = True
    do_resize: bool = True
    default_to_square: bool = True  # declared before the sizes, whose validation reads it
    size: SizeField = Field(default={"height": 256, "width": 256})
    resample: ResampleField = int(Image.Resampling.BICUBIC)
    do_center_crop: bool = True
    crop_size: HeightWidthField = Field(default={"height": 224, "width": 224})
    crop_rounding: Literal["even"] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: StatisticField = (0.5, 0.5, 0.5)
    image_std: StatisticField = (0.5, 0.5, 0.5)
    do_pad: bool = False
    pad_size: HeightWidthField | None = None
    data_format: LayoutField = None
    input_data_format: LayoutField = None
    value_range: ValueRangeField = None

    def __init__(self, /, *settings: Any, **fields: Any) -> None:  # explicit, so that type checkers accept size=224
        super().__init__(*settings, **fields)

    @classmethod
    def for_size(
        cls,
        height: int,
        width: int,
        crop_ratio: float = CROP_RATIO,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop: Crop = "keep",
    ) -> Self:
        """Returns a processor for a model's input size, with bicubic resizing and ImageNet statistics.

        Args:
            height: of the input, in pixels.
            width: of the input, in pixels.
            crop_ratio: fraction of the resized image's side that the crop keeps.
            mean: of each channel, for values in 0..1.
            std: of each channel, for values in 0..1.
            crop: ``keep``: the authors' evaluation; resizes the shorter side to int(size / 0.875), then center-crops.
                ``squash``: that of Hugging Face; resizes both sides to this size, then center-crops. ``pad``: resizes the
                whole image to fit in, and pads it with the mean color on the right and bottom. For inputs that are not
                square, ``keep`` squashes images to the aspect ratio of the input.

        Raises:
            ConfigError: the crop is unknown, or the size invalid.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).size
            {'shortest_edge': 256}
        """
        settings = evaluation_settings(height, width, crop_ratio, mean, std, crop)
        return cls(image_processor_type="DeiTImageProcessor", **settings)

    def with_crop(self, crop: Crop) -> Self:
        """Returns a processor with the same input size, filter and statistics and another crop; see :meth:`for_size`.

        The crop ratio stays the same; that of ``pad``, which has none, is taken to be 0.875.

        Raises:
            ConfigError: the crop is unknown, or the output size depends on the image.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).with_crop("squash").size
            {'height': 256, 'width': 256}
        """
        height, width = self.input_hw
        resized = int(height / CROP_RATIO), int(width / CROP_RATIO)
        if self.do_resize and "max_height" not in self.size:
            edge = self.size.get("shortest_edge", 0)
            resized = self.size.get("height", edge), self.size.get("width", edge)
        return self.replace(**crop_settings(crop, (height, width), resized))

    def with_input_size(self, height: int, width: int) -> Self:
        """Returns a processor with the same settings and crop ratio for another input size.

        Raises:
            ConfigError: the output size depends on the image.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).with_input_size(384, 384).size
            {'shortest_edge': 438}
        """
        old_height, old_width = self.input_hw
        fields: dict[str, Any] = {"crop_size": (height, width)}
        if self.pad_size is not None:
            fields["pad_size"] = (height, width)
        edge = self.size.get("shortest_edge")
        resized = (
            self.size.get("height", edge or 0) * height // old_height,
            self.size.get("width", edge or 0) * width // old_width,
        )
        if "max_height" in self.size:
            fields["size"] = {"max_height": height, "max_width": width}
        elif edge is None or resized[0] != resized[1]:
            fields["size"] = {"height": resized[0], "width": resized[1]}
        else:
            fields["size"] = {"shortest_edge": resized[0]}
        return self.replace(**fields)

    @property
    def input_hw(self) -> HeightWidth:
        """(height, width) of the output: the model's input size.

        Raises:
            ConfigError: it depends on the image.

        Example:
            >>> DeiTImageProcessor.for_size(224, 448, crop="pad").input_hw
            (224, 448)
        """
        if self.do_pad and self.pad_size is not None:
            return _hw(self.pad_size)
        if self.do_center_crop:
            return _hw(self.crop_size)
        if self.do_resize and "height" in self.size:
            return _hw(self.size)
        raise ConfigError("The output size of the image processor depends on the image", "turn on do_center_crop or do_pad")

    @property
    def rgb_statistics(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation of three channels: values * std + mean reverts the normalization.

        Raises:
            ConfigError: the statistics are for another number of channels.

        Example:
            >>> DeiTImageProcessor(image_mean=0.25).rgb_statistics
            ((0.25, 0.25, 0.25), (0.5, 0.5, 0.5))
        """
        if self._channels not in (None, 3):
            raise ConfigError(f"The image processor is for {self._channels} channels", "use one for RGB images")
        mean, std = (np.broadcast_to(values, 3).tolist() for values in self._statistics or (0.0, 1.0))
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    @property
    def file_range(self) -> ValueRange | None:
        """Black and white of files with more than 8 bits; None if unknown.

        Example:
            >>> str(DeiTImageProcessor(value_range={"integers": [0, 4095]}).file_range)
            'integers 0 to 4095'
        """
        return None if self.value_range is None else ValueRange.from_dict(self.value_range)

    def pixels(self, image: ImageInput) -> np.ndarray:
        """Converts, resizes and crops one image: the part of preprocessing that is done per image.

        Returns:
            (height, width, C). Uint8 for 8-bit images and all resized images; floats in 0..1 stay in 0..1.

        Raises:
            ImageError: the input is not an image.

        Example:
            >>> DeiTImageProcessor().pixels(Image.new("RGB", (500, 375))).dtype
            dtype('uint8')
        """
        channels = self._channels
        known = CHANNELS if channels is None else CHANNELS | {channels}
        if isinstance(image, str | Path):
            image = self._open(image)
        source = to_channels_last(image, self.do_convert_rgb and channels in (None, 3), self.input_data_format, known)
        if self.do_rescale and isinstance(source, np.ndarray) and source.dtype.kind == "f":
            _warn_if_rescaled_twice(source)
        height, width = (source.height, source.width) if isinstance(source, Image.Image) else source.shape[:2]
        target = target_size(self.size, height, width) if self.do_resize else None
        crop = _hw(self.crop_size) if self.do_center_crop else None
        return resize_and_crop(source, target, crop, self.resample, self.crop_rounding == "even")

    def normalize(self, pixels: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Rescales, normalizes and pads the output of :meth:`pixels`: the part of preprocessing that is done per batch.

        Args:
            pixels: one (height, width, C) array or several, which may differ in size if ``do_pad`` is on.

        Returns:
            (C, height, width) for one array, (B, C, height, width) for several. Float32, unless both ``do_rescale`` and
            ``do_normalize`` are off, or the pixels are floats of another type and ``do_rescale`` is off.

        Raises:
            ImageError: the arrays differ in size or number of channels, or are larger than ``pad_size``.
            ConfigError: the statistics are for another number of channels.

        Example:
            >>> DeiTImageProcessor().normalize([np.zeros((224, 224, 3), np.uint8)]).shape
            (1, 3, 224, 224)
        """
        if isinstance(pixels, np.ndarray) and pixels.ndim == 3:
            return self.normalize([pixels]).squeeze(0)
        arrays = list(pixels)
        if not arrays:
            return np.zeros((0, self._channels or 3, *self.input_hw), np.float32)
        if len({array.shape[2 if self.do_pad else 0 :] for array in arrays}) > 1:
            raise ImageError("The processed images have different sizes", "turn on do_resize and do_center_crop")
        return self._batch(arrays, self._padded_size(arrays))

    def preprocess(
        self,
        images: ImageInput | Sequence[Any],
        *settings: Any,
        return_tensors: Literal["pt", "np"] | None = "pt",
        **overrides: Any,
    ) -> BatchFeature:
        """Preprocesses one or more images. Calling the processor does the same.

        Args:
            images: Pillow images, arrays or tensors of shape (height, width, C), (C, height, width) or (height, width),
                or paths of files; lists of these, of any nesting, or 4-dimensional batches. The channel axis is inferred
                from its size, unless ``input_data_format`` is given. For floats in 0..1, pass ``do_rescale=False``.
            settings: overrides by position, in the order of transformers 4.x.
            return_tensors: "pt" for a torch tensor, "np" for an array, None for a list of arrays, which may differ in size.
            overrides: any setting, for this call; None turns off a ``do_...`` setting, and leaves another one as it is.

        Returns:
            ``{"pixel_values": (B, C, height, width)}``.

        Raises:
            ImageError: an input is not an image, or the processed images have different sizes.
            ConfigError: an override is unknown or invalid.

        Example:
            >>> image = Image.new("RGB", (500, 375))
            >>> DeiTImageProcessor()([image, image], return_tensors="np", crop_size=32).pixel_values.shape
            (2, 3, 32, 32)
        """
        overrides = {**settings_by_name(settings, self._call_order), **overrides}
        tensor_type = enum_value(overrides.pop("return_tensors", return_tensors))
        if tensor_type not in ("pt", "np", None):
            raise ConfigError(f"Unknown return_tensors {tensor_type!r}", 'pass "pt", "np" or None')
        processor = self._with_overrides(overrides) if overrides else self
        arrays = thread_map(processor.pixels, flatten_images(images))
        if not arrays:
            raise ImageError("An empty list is not an image", "pass at least one")
        if tensor_type is None:
            return BatchFeature({"pixel_values": processor._normalize_separately(arrays)})
        values = processor._to_data_format(processor.normalize(arrays))
        if tensor_type == "np":
            return BatchFeature({"pixel_values": values})
        import torch

        return BatchFeature({"pixel_values": torch.from_numpy(values)}).to_device(processor.device)

    __call__ = preprocess

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens the images of a path, or of lists of paths; whatever is an image already is returned as it is.

        Raises:
            ImageError: a file cannot be read.

        Example:
            >>> DeiTImageProcessor().fetch_images([Image.new("RGB", (40, 30))])[0].size
            (40, 30)
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, str | Path):
            return self._open(image_url_or_urls)
        return image_url_or_urls

    def _open(self, path: str | Path) -> Image.Image:
        if "://" in str(path):
            raise ImageError(f"{path} is not a file: images are not downloaded", "download it, and pass the path")
        return open_image(Path(path), value_range=self.file_range)

    @property
    def _statistics(self) -> tuple[Statistic, Statistic] | None:
        return (self.image_mean, self.image_std) if self.do_normalize else None

    @property
    def _channels(self) -> int | None:
        """Number of channels that the statistics are for; None if they are for any."""
        return next((len(values) for values in self._statistics or () if isinstance(values, tuple)), None)

    def _with_overrides(self, overrides: dict[str, Any]) -> Self:
        # None is a valid value of these.
        optional = ("pad_size", "data_format", "input_data_format", "crop_rounding", "value_range")
        changes = {
            name: value
            for name, value in overrides.items()
            if name not in IGNORED_ARGUMENTS and (value is not None or name.startswith("do_") or name in optional)
        }
        return self.replace(**changes) if changes else self

    def _padded_size(self, arrays: Sequence[np.ndarray]) -> HeightWidth:
        """Returns the size that the arrays are padded to: ``pad_size``, or the largest height and width."""
        height, width = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
        padded = _hw(self.pad_size) if self.do_pad and self.pad_size is not None else (height, width)
        if height > padded[0] or width > padded[1]:
            raise ImageError(f"An image of {height} x {width} is larger than pad_size, {padded[0]} x {padded[1]}", "resize it")
        return padded

    def _batch(self, arrays: Sequence[np.ndarray], size: HeightWidth) -> np.ndarray:
        """Normalizes arrays (h, w, C) and pads them with zeros to (B, C, *size)."""
        factor = self.rescale_factor if self.do_rescale else None
        changed = self.do_rescale or self.do_normalize
        channels = arrays[0].shape[-1]
        dtypes = {np.float32 if self.do_rescale or (changed and array.dtype.kind != "f") else array.dtype for array in arrays}
        allocate = np.zeros if self.do_pad else np.empty
        batch: np.ndarray = allocate((len(arrays), channels, *size), np.result_type(*dtypes))

        def normalize_one(index: int) -> None:
            array = arrays[index]
            inner = batch[index, :, : array.shape[0], : array.shape[1]]
            if changed and array.dtype == np.uint8 and batch.dtype == np.float32:
                rescale_and_normalize_into(inner, array, factor, self._statistics)
            else:
                inner[...] = np.moveaxis(rescale_and_normalize(array, factor, self._statistics), -1, 0)

        thread_map(normalize_one, range(len(arrays)))
        return batch

    def _normalize_separately(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Normalizes arrays (h, w, C) that may differ in size; returns one array of ``data_format`` for each."""
        size = self._padded_size(arrays) if self.do_pad else None
        return [self._to_data_format(self._batch([array], size or self._padded_size([array])))[0] for array in arrays]

    def _to_data_format(self, batch: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(batch, 1, -1)) if self.data_format == "channels_last" else batch


class ViTImageProcessor(DeiTImageProcessor):
    """An image processor with the defaults of ViT in transformers: squash to 224 x 224, bilinear, without a crop.

    Example:
        >>> ViTImageProcessor(size=384).input_hw
        (384, 384)
    """

    _class_name: ClassVar[str] = "ViTImageProcessor"
    _init_order: ClassVar[tuple[str, ...]] = (*_VIT_STEPS, "do_convert_rgb")
    _call_order: ClassVar[tuple[str, ...]] = (*_VIT_STEPS, *_OUTPUT, "do_convert_rgb")

    def __init__(self, /, *settings: Any, **fields: Any) -> None:
        super().__init__(*settings, **fields)


# Other names of transformers.
DeiTFeatureExtractor = DeiTImageProcessorFast = DeiTImageProcessor
ViTFeatureExtractor = ViTImageProcessorFast = ViTImageProcessor
DeiTImageProcessorKwargs = ViTImageProcessorKwargs = ImageProcessorKwargs


def _hw(size: Size) -> HeightWidth:
    return size["height"], size["width"]


def _warn_if_rescaled_twice(array: np.ndarray) -> None:
    if array.min() >= 0 and 0 < array.max() <= 1:
        message = "An image of floats in 0..1 is rescaled again, as in transformers: pass do_rescale=False"
        warnings.warn(message, UserWarning, stacklevel=3)
