"""Image -> ``pixel_values``: resize, crop, rescale, normalize, pad. Written and read as Hugging Face JSON."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deit.errors import ConfigError, ImageError, did_you_mean, validation_problem
from deit.hub import fetch, hub_arguments
from deit.images.arrays import CHANNELS, channels_last, fitted, flattened, scale_into, scaled
from deit.images.batch_feature import BatchFeature
from deit.images.processor_settings import AnySize, Box, LayoutField, PerChannel, Sides, Size, Statistic, plain, target_size
from deit.system.files import CONFIG_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, json_text, read_json, write_text
from deit.system.threads import thread_map

if TYPE_CHECKING:
    from deit.images.arrays import ImageInput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 0.875  # the authors resize the shorter side to int(size / 0.875) before the center crop

Crop = Literal["keep", "squash", "pad"]
Triple = tuple[float, float, float]

DEIT, VIT = "DeiTImageProcessor", "ViTImageProcessor"
VIT_DEFAULTS = {"size": 224, "resample": int(Image.Resampling.BILINEAR), "do_center_crop": False}


class DeiTImageProcessor(BaseModel):
    """Make a model's input of images; a drop-in for the processors of DeiT and ViT in transformers.

    The defaults are those of the transformers class: squash to 256 x 256, crop 224 x 224, mean and std of 0.5. The authors
    keep the aspect instead (section 5.1 and the released code): :meth:`for_size` gives their evaluation. The numbers equal
    those of ``DeiTImageProcessorPil`` to the last bit. What differs on purpose: ``do_convert_rgb`` is on by default (off
    there, where a gray image then fails), ``data_format`` is obeyed, a batch is a torch tensor unless asked otherwise, and
    no side grows beyond 16,384.

    Settings are attributes, checked when they are set; each can be given for one call too. ``size`` takes 224,
    (height, width), or a dictionary of ``height`` and ``width``, of ``shortest_edge`` with or without ``longest_edge``, or
    of ``max_height`` and ``max_width``. Statistics of other than three channels leave an image's channels as they are.
    Pillow clips 16-bit images at 255 when it converts them; :func:`deit.images.decoding.open_image`, through which all
    commands read files, scales them first.

    Raises:
        ConfigError: a setting that cannot be.

    Example:
        >>> processor = DeiTImageProcessor(size={"shortest_edge": 256})
        >>> processor.image_mean = [0.485, 0.456, 0.406]
        >>> processor(Image.new("RGB", (500, 375))).pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)
    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    do_convert_rgb: bool = True
    do_resize: bool = True
    default_to_square: bool = True  # before the sizes, which are read by it
    size: AnySize = {"height": 256, "width": 256}
    resample: Annotated[int, Field(ge=0, le=5)] = int(Image.Resampling.BICUBIC)
    do_center_crop: bool = True
    crop_size: Box = {"height": 224, "width": 224}
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: PerChannel = (0.5, 0.5, 0.5)
    image_std: PerChannel = (0.5, 0.5, 0.5)
    do_pad: bool = False
    pad_size: Box | None = None
    data_format: LayoutField = None
    input_data_format: LayoutField = None
    image_processor_type: str = DEIT

    def __init__(self, /, **fields: Any) -> None:
        kind = str(fields.get("image_processor_type") or fields.pop("feature_extractor_type", None) or DEIT)
        fields.pop("feature_extractor_type", None)
        given = {name: value for name, value in fields.items() if value is not None or name not in type(self).model_fields}
        if kind.startswith("ViT"):
            given = {**VIT_DEFAULTS, **given}
        given["image_processor_type"] = VIT if kind.startswith("ViT") else DEIT
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigError(f"Image processor: {validation_problem(error)}", "pass another value") from error

    def __setattr__(self, name: str, value: Any) -> None:
        _check_names([name], {*type(self).model_fields, *(self.model_extra or {})})
        try:
            super().__setattr__(name, _off(name) if value is None else value)
        except ValidationError as error:
            raise ConfigError(f"Image processor: {validation_problem(error)}", "pass another value") from error

    @field_validator("image_processor_type")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        return VIT if kind.startswith("ViT") else DEIT

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
        """Preprocessing for a model's input size, with bicubic resizing and ImageNet statistics.

        Args:
            height: of the input, as ``width``.
            crop_ratio: share of the resized image's side that the crop keeps.
            mean: by channel, as ``std``.
            crop: ``keep``: the authors' evaluation, shorter side to int(size / 0.875), center crop. ``squash``: Hugging
                Face's, both sides to that. ``pad``: the whole image fitted in, the mean color right of it and below. An
                input that is not square has no single shorter side: ``keep`` squashes to its aspect.

        Raises:
            ConfigError: no such crop, or a size that cannot be.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).size
            {'shortest_edge': 256}
        """
        fields = _crop_fields(crop, (height, width), (int(height / crop_ratio), int(width / crop_ratio)))
        return cls(**fields, image_mean=tuple(mean), image_std=tuple(std))

    def with_crop(self, crop: Crop) -> Self:
        """The same input size, filter and statistics with another crop; :meth:`for_size` names them.

        The crop keeps its share of the resized image; after ``pad``, which knows none, it is 0.875.

        Raises:
            ConfigError: no such crop, or images do not come out in one size.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).with_crop("squash").size
            {'height': 256, 'width': 256}
        """
        height, width = self.input_hw
        edges = int(height / CROP_RATIO), int(width / CROP_RATIO)
        if self.do_resize and "max_height" not in self.size:
            edge = self.size.get("shortest_edge", 0)
            edges = self.size.get("height", edge), self.size.get("width", edge)
        return type(self)(**{**self.model_dump(), **_crop_fields(crop, (height, width), edges)})

    def with_input_size(self, height: int, width: int) -> Self:
        """The same settings for another input size of the model: the crop keeps its share of the resized image.

        Raises:
            ConfigError: images do not come out in one size.

        Example:
            >>> DeiTImageProcessor.for_size(224, 224).with_input_size(384, 384).size
            {'shortest_edge': 438}
        """
        old = self.input_hw
        fields: dict[str, Any] = {"crop_size": (height, width)}
        if self.pad_size is not None:
            fields["pad_size"] = (height, width)
        edge = self.size.get("shortest_edge")
        edges = self.size.get("height", edge or 0) * height // old[0], self.size.get("width", edge or 0) * width // old[1]
        if "max_height" in self.size:
            fields["size"] = {"max_height": height, "max_width": width}
        elif edge is None or edges[0] != edges[1]:
            fields["size"] = {"height": edges[0], "width": edges[1]}
        else:
            fields["size"] = {"shortest_edge": edges[0]}
        return type(self)(**{**self.model_dump(), **fields})

    @property
    def input_hw(self) -> Sides:
        """(height, width) of what comes out: the model's input size.

        Raises:
            ConfigError: that depends on the image.

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
        raise ConfigError("The image processor gives each image a size of its own", "switch do_center_crop or do_pad on")

    @property
    def rgb_statistics(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation of three channels, such that values * std + mean undoes the normalization.

        Raises:
            ConfigError: the statistics are for another number of channels.

        Example:
            >>> DeiTImageProcessor(image_mean=0.25).rgb_statistics
            ((0.25, 0.25, 0.25), (0.5, 0.5, 0.5))
        """
        if self._channels not in (None, 3):
            raise ConfigError(
                f"The image processor is for {self._channels} channels", "images of three channels are needed here"
            )
        mean, std = (np.broadcast_to(values, 3).tolist() for values in self._statistics or (0.0, 1.0))
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def pixels(self, image: ImageInput) -> np.ndarray:
        """Convert, resize and crop one image -> (height, width, C); the half of the work that is done image by image.

        Images of 8 bits come out as uint8, and so does all that is resized, but for floats in 0..1, which stay in 0..1.

        Raises:
            ImageError: it is no image.

        Example:
            >>> DeiTImageProcessor().pixels(Image.new("RGB", (500, 375))).dtype
            dtype('uint8')
        """
        channels = self._channels
        known = CHANNELS if channels is None else CHANNELS | {channels}
        source = channels_last(image, self.do_convert_rgb and channels in (None, 3), self.input_data_format, known)
        if self.do_rescale and isinstance(source, np.ndarray) and source.dtype.kind == "f":
            _warn_of_fractions(source)
        height, width = (source.height, source.width) if isinstance(source, Image.Image) else source.shape[:2]
        target = target_size(self.size, height, width) if self.do_resize else None
        return fitted(source, target, _hw(self.crop_size) if self.do_center_crop else None, self.resample)

    def normalize(self, pixels: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Rescale, normalize and pad what :meth:`pixels` gave; the half that is done batch by batch.

        Args:
            pixels: one (height, width, C) or several; those may differ in size if ``do_pad`` is on.

        Returns:
            (C, height, width) of one, (B, C, height, width) of several; float32, unless neither ``do_rescale`` nor
            ``do_normalize`` is on, or floats of another type are not rescaled.

        Raises:
            ImageError: several sizes or numbers of channels, or larger than ``pad_size``.
            ConfigError: statistics of another number of channels.

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
            raise ImageError("The images come out in different sizes", "switch do_resize and do_center_crop on")
        return self._batch(arrays, self._sides(arrays))

    def preprocess(
        self, images: ImageInput | Sequence[Any], return_tensors: Literal["pt", "np"] | None = "pt", **overrides: Any
    ) -> BatchFeature:
        """One image or several -> ``{"pixel_values": (B, C, height, width)}``; so does a call of the processor.

        Args:
            images: Pillow images, arrays or tensors of (height, width, C), (C, height, width) or (height, width), paths of
                files; lists of them, nested at will, or batches of four dimensions. Where the channels stand is told by
                their number, or by ``input_data_format``. Floats in 0..1 go with ``do_rescale=False``.
            return_tensors: "pt" for a torch tensor, "np" for an array, None for a list of arrays, which may differ in size.
            overrides: any setting for this call; None switches a ``do_...`` off, as in transformers. And ``device``, where
                a torch tensor goes, and ``disable_grouping``, which changes nothing.

        Raises:
            ImageError: something that is no image, or images that come out in different sizes.
            ConfigError: an override that cannot be, or that is no setting.

        Example:
            >>> image = Image.new("RGB", (500, 375))
            >>> DeiTImageProcessor()([image, image], return_tensors="np", crop_size=32).pixel_values.shape
            (2, 3, 32, 32)
        """
        form = plain(return_tensors)
        if form not in ("pt", "np", None):
            raise ConfigError(f"return_tensors cannot be {form!r}", 'pass "pt", "np" or None')
        device = overrides.pop("device", None)
        overrides.pop("disable_grouping", None)
        call = self._for_call(overrides) if overrides else self
        arrays = thread_map(call.pixels, flattened(images))
        if not arrays:
            raise ImageError("An empty list is no image", "pass at least one")
        if form is None:
            return BatchFeature({"pixel_values": call._each(arrays)})
        values = call._laid_out(call.normalize(arrays))
        if form == "np":
            return BatchFeature({"pixel_values": values})
        import torch

        return BatchFeature({"pixel_values": torch.from_numpy(values).to(device)})

    __call__ = preprocess

    def to_dict(self) -> dict[str, Any]:
        """All settings, and whatever else the file held, as plain values.

        Example:
            >>> DeiTImageProcessor().to_dict()["size"]
            {'height': 256, 'width': 256}
        """
        fields = type(self).model_fields
        given = {name: value for name, value in self.model_dump().items() if value is not None or name not in fields}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], **overrides: Any) -> Self:
        """A processor of such a dictionary, some of it replaced.

        Raises:
            ConfigError: a setting that cannot be, or an override that is none.

        Example:
            >>> DeiTImageProcessor.from_dict({"feature_extractor_type": "ViTFeatureExtractor"}, size=384).resample
            2
        """
        _check_names(overrides, cls.model_fields)
        return cls(**{**content, **overrides})

    def to_json_string(self) -> str:
        """The JSON that :meth:`save_pretrained` writes.

        Example:
            >>> '"resample": 3' in DeiTImageProcessor().to_json_string()
            True
        """
        return json_text(dict(sorted(self.to_dict().items())))

    def save_pretrained(self, directory: str | Path) -> list[str]:
        """Write ``preprocessor_config.json``, which ``AutoImageProcessor`` of transformers opens too -> its path.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     paths = DeiTImageProcessor.for_size(384, 384).save_pretrained(folder)
            ...     DeiTImageProcessor.from_pretrained(folder).crop_size
            {'height': 384, 'width': 384}
        """
        path = Path(directory) / PROCESSOR_NAME
        write_text(path, self.to_json_string())
        return [str(path)]

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides: Any) -> Self:
        """Read a processor that this class or transformers wrote, of 4.x or 5.x, for DeiT or ViT.

        What a file leaves out, and what it says is null, is the default of the class that it names.

        Args:
            name: a model directory, the JSON file itself, or a name on the Hugging Face hub.
            overrides: any setting in place of the file's, and ``revision``, ``cache_dir``, ``local_files_only``, ``token``,
                ``force_download`` and ``subfolder``, which say where on the hub to look.

        Raises:
            CheckpointError: no such file, or no JSON in it.
            ConfigError: a setting in it that cannot be, or an override that is none.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:  # or "facebook/deit-base-distilled-patch16-224"
            ...     file = Path(folder) / "preprocessor_config.json"
            ...     size = file.write_text('{"feature_extractor_type": "DeiTFeatureExtractor", "size": 438}')
            ...     DeiTImageProcessor.from_pretrained(file, crop_size=384).size
            {'height': 438, 'width': 438}
        """
        options, overrides = hub_arguments(overrides)
        path, content = _read(name, options)
        _check_names(overrides, cls.model_fields)
        try:
            return cls.from_dict(content, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.problem}", "correct the file, or pass the setting") from error

    @property
    def _statistics(self) -> tuple[Statistic, Statistic] | None:
        return (self.image_mean, self.image_std) if self.do_normalize else None

    @property
    def _channels(self) -> int | None:
        """The number of channels that the statistics are for; None if they are for any."""
        return next((len(values) for values in self._statistics or () if isinstance(values, tuple)), None)

    def _for_call(self, overrides: dict[str, Any]) -> Self:
        _check_names(overrides, type(self).model_fields)
        given = {name: _off(name) if value is None else value for name, value in overrides.items()}
        optional = ("pad_size", "data_format", "input_data_format")  # None is a value of these
        kept = {name: value for name, value in given.items() if value is not None or name in optional}
        return type(self)(**{**self.model_dump(), **kept})

    def _sides(self, arrays: Sequence[np.ndarray]) -> Sides:
        """What the arrays are padded to; the sides of the largest where nothing is said."""
        height, width = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
        wanted = _hw(self.pad_size) if self.do_pad and self.pad_size is not None else (height, width)
        if height > wanted[0] or width > wanted[1]:
            raise ImageError(f"An image of {height} x {width} is larger than pad_size, {wanted[0]} x {wanted[1]}", "resize it")
        return wanted

    def _batch(self, arrays: Sequence[np.ndarray], sides: Sides) -> np.ndarray:
        """(h, w, C) each -> (B, C, *sides), normalized and then padded with zeros."""
        factor = self.rescale_factor if self.do_rescale else None
        changed = self.do_rescale or self.do_normalize
        channels = arrays[0].shape[-1]
        kinds = {np.float32 if self.do_rescale or (changed and array.dtype.kind != "f") else array.dtype for array in arrays}
        fresh = np.zeros if self.do_pad else np.empty
        batch: np.ndarray = fresh((len(arrays), channels, *sides), np.result_type(*kinds))

        def fill(place: int) -> None:
            array = arrays[place]
            inner = batch[place, :, : array.shape[0], : array.shape[1]]
            if changed and array.dtype == np.uint8 and batch.dtype == np.float32:
                scale_into(inner, array, factor, self._statistics)
            else:
                inner[...] = np.moveaxis(scaled(array, factor, self._statistics), -1, 0)

        thread_map(fill, range(len(arrays)))
        return batch

    def _each(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """As a list of (C, height, width)."""
        sides = self._sides(arrays) if self.do_pad else None
        return [self._laid_out(self._batch([array], sides or self._sides([array])))[0] for array in arrays]

    def _laid_out(self, batch: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(batch, 1, -1)) if self.data_format == "channels_last" else batch


DeiTFeatureExtractor = DeiTImageProcessor


def _hw(size: Size) -> Sides:
    return size["height"], size["width"]


def _off(name: str) -> bool | None:
    """What None means for a setting: a step is left out, a value stays. But colors are converted unless it is forbidden."""
    return name == "do_convert_rgb" if name.startswith("do_") else None


def _check_names(names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"The image processor has no setting {name!r}", did_you_mean(name, known))


def _crop_fields(crop: str, sides: Sides, edges: Sides) -> dict[str, Any]:
    """The settings of a crop for an input of ``sides``, of images resized to ``edges``, both (height, width)."""
    if crop not in get_args(Crop):
        raise ConfigError(f"There is no crop {crop!r}", f"pass one of {', '.join(get_args(Crop))}")
    steps = {"do_resize": True, "do_center_crop": crop != "pad", "do_pad": crop == "pad", "crop_size": sides}
    if crop == "pad":
        return {**steps, "size": {"max_height": sides[0], "max_width": sides[1]}, "pad_size": sides}
    keep = crop == "keep" and edges[0] == edges[1] and sides[0] == sides[1]
    return {**steps, "size": {"shortest_edge": edges[0]} if keep else edges, "pad_size": None}


def _warn_of_fractions(array: np.ndarray) -> None:
    if array.min() >= 0 and 0 < array.max() <= 1:
        message = "An image of floats in 0..1 is rescaled once more, as transformers does: pass do_rescale=False"
        warnings.warn(message, UserWarning, stacklevel=3)


def _read(name: str | Path, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The file that holds the processor, and what it says."""
    path = fetch(name, (), optional=(PROCESSOR_NAME, NESTED_PROCESSOR_NAME, CONFIG_NAME), **options)
    if path.is_file():
        content = read_json(path)
        return path, content["image_processor"] if isinstance(content.get("image_processor"), dict) else content
    nested = (
        read_json(path / NESTED_PROCESSOR_NAME).get("image_processor") if (path / NESTED_PROCESSOR_NAME).is_file() else None
    )
    if isinstance(nested, dict):
        return path / NESTED_PROCESSOR_NAME, nested
    content = read_json(path / PROCESSOR_NAME)
    unnamed = not {"image_processor_type", "feature_extractor_type"} & content.keys()
    if unnamed and (path / CONFIG_NAME).is_file() and read_json(path / CONFIG_NAME).get("model_type") == "vit":
        content["image_processor_type"] = VIT  # old files of ViT name no class
    return path / PROCESSOR_NAME, content
