"""Base class of the image processors: settings from arguments, dictionaries and files, and back to them.

In the examples, the class is :class:`deit.DeiTImageProcessor`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deit.errors import ConfigError, did_you_mean, validation_problem
from deit.hub import hub_arguments
from deit.images.processor_classes import CLASS_SETTINGS, IGNORED_ARGUMENTS, class_of_settings, settings_of_class
from deit.images.processor_files import read_settings
from deit.system.files import PROCESSOR_NAME, json_text, read_json, write_text

_NO_SETTINGS = IGNORED_ARGUMENTS | CLASS_SETTINGS


class PreTrainedProcessor(BaseModel):
    """Base class of the image processors. Its subclasses declare the settings as fields.

    Raises:
        ConfigError: a setting is unknown or invalid.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)

    _class_name: ClassVar[str]  # class of transformers whose defaults apply
    _init_order: ClassVar[tuple[str, ...]]  # settings as the constructor takes them by position

    device: Annotated[Any, Field(exclude=True, repr=False)] = None  # of torch tensors; not saved

    def __init__(self, /, *settings: Any, **fields: Any) -> None:
        fields = {**settings_by_name(settings, self._init_order), **fields}
        class_name = fields.get("image_processor_type") or fields.get("feature_extractor_type") or self._class_name
        _check_names(fields.keys() - _NO_SETTINGS, type(self).model_fields)
        fields = {name: value for name, value in fields.items() if name == "crop_pct" or name not in _NO_SETTINGS}
        values = {name: _value_for_none(name) if value is None else value for name, value in fields.items()}
        values = {name: value for name, value in values.items() if value is not None}
        try:
            super().__init__(**settings_of_class(str(class_name), values))
        except ValidationError as error:
            raise ConfigError(f"Image processor: {validation_problem(error)}", "pass another value") from error

    def __setattr__(self, name: str, value: Any) -> None:
        _check_names([name], {*type(self).model_fields, *(self.model_extra or {})})
        try:
            super().__setattr__(name, _value_for_none(name) if value is None else value)
        except ValidationError as error:
            raise ConfigError(f"Image processor: {validation_problem(error)}", "pass another value") from error

    def replace(self, **settings: Any) -> Self:
        """Returns a copy with other values of some settings; None has the meaning that it has in the constructor.

        Raises:
            ConfigError: a setting is unknown or invalid.

        Example:
            >>> deit.DeiTImageProcessor().replace(crop_size=200).input_hw
            (200, 200)
        """
        _check_names(settings, type(self).model_fields)
        changed: Self = self.from_dict({**self.model_dump(), "device": self.device, **settings})
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings, with unknown entries of the file that they were loaded from.

        ``image_processor_type`` is the class of transformers, 4.x and 5.x, that does the same.

        Example:
            >>> deit.DeiTImageProcessor().to_dict()["size"]
            {'height': 256, 'width': 256}
        """
        fields = type(self).model_fields
        settings = self.model_dump()
        content = {name: value for name, value in settings.items() if value is not None or name not in fields}
        return {**content, "image_processor_type": class_of_settings(settings)}

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Any:
        """Creates a processor from a dictionary of :meth:`to_dict`, whose unknown entries are kept.

        Args:
            image_processor_dict: settings. Those that are missing have the default of the class that it names.
            overrides: settings that replace its entries. With ``return_unused_kwargs=True``, those that are unknown are
                returned: ``(processor, unknown)``.

        Raises:
            ConfigError: a setting is invalid, or an override is unknown.

        Example:
            >>> deit.DeiTImageProcessor.from_dict({"feature_extractor_type": "ViTFeatureExtractor"}, size=384).resample
            2
        """
        known = cls.model_fields.keys() | CLASS_SETTINGS
        return_unused = overrides.pop("return_unused_kwargs", False)
        overrides = {name: value for name, value in overrides.items() if name not in IGNORED_ARGUMENTS}
        unused = {name: value for name, value in overrides.items() if name not in known}
        if not return_unused:
            _check_names(unused, known)
        content = {**image_processor_dict, **overrides}
        processor = cls(**{name: content[name] for name in known & content.keys()})
        assert processor.model_extra is not None
        unknown = content.keys() - known - _NO_SETTINGS - unused.keys()
        processor.model_extra.update({name: content[name] for name in content if name in unknown})
        return (processor, unused) if return_unused else processor

    def to_json_string(self) -> str:
        """Returns the JSON that :meth:`save_pretrained` writes: the settings, and the class for the readers of older versions.

        Example:
            >>> '"resample": 3' in deit.DeiTImageProcessor().to_json_string()
            True
        """
        content = self.to_dict()
        class_name = content["image_processor_type"]
        if not class_name.endswith("Fast"):  # AutoFeatureExtractor of 4.x would take the class of the model's family
            content["feature_extractor_type"] = class_name.replace("ImageProcessor", "FeatureExtractor")
        return json_text(dict(sorted(content.items())))

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes the settings to a JSON file.

        Example:
            >>> deit.DeiTImageProcessor(crop_size=160).to_json_file(folder / "settings.json")
            >>> deit.DeiTImageProcessor.from_json_file(folder / "settings.json").crop_size
            {'height': 160, 'width': 160}
        """
        write_text(Path(json_file_path), self.to_json_string())

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Reads the settings from a JSON file.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
            ConfigError: a setting is invalid.

        Example:
            >>> size = (folder / "settings.json").write_text('{"crop_size": 160}')
            >>> deit.DeiTImageProcessor.from_json_file(folder / "settings.json").crop_size
            {'height': 160, 'width': 160}
        """
        processor: Self = cls.from_dict(read_json(Path(json_file)))
        return processor

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **hub: Any) -> list[str]:
        """Writes ``preprocessor_config.json``, which ``AutoImageProcessor`` of transformers 4.x and 5.x also reads.

        Args:
            save_directory: directory to write to; created if missing.
            push_to_hub: upload the file, too: not supported here, but by ``push_to_hub`` of the models.
            hub: arguments for the upload; accepted without it.

        Returns:
            The path of the file.

        Raises:
            ConfigError: ``push_to_hub`` is set.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     paths = deit.DeiTImageProcessor.for_size(384, 384).save_pretrained(folder)
            ...     deit.DeiTImageProcessor.from_pretrained(folder).crop_size
            {'height': 384, 'width': 384}
        """
        if push_to_hub:
            self.push_to_hub(hub.get("repo_id"))
        if Path(save_directory).is_file():
            raise ConfigError(f"{save_directory} is a file", "pass a directory")
        path = Path(save_directory) / PROCESSOR_NAME
        self.to_json_file(path)
        return [str(path)]

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Raises :class:`ConfigError`: a processor is uploaded together with its model.

        Example:
            >>> try:
            ...     deit.DeiTImageProcessor().push_to_hub("me/photos")
            ... except ConfigError as error:
            ...     error.remedy
            'use model.push_to_hub(repo_id, processor=processor)'
        """
        raise ConfigError("An image processor is not uploaded alone", "use model.push_to_hub(repo_id, processor=processor)")

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoImageProcessor") -> None:
        """Has no effect: saved files name a class that transformers knows.

        Example:
            >>> deit.DeiTImageProcessor.register_for_auto_class()
        """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides: Any) -> Any:
        """Loads the processor of a model: of DeiT or ViT, saved by this class or by transformers 4.x or 5.x, or of timm.

        Settings that are missing or null in the file have the default of the class that it names.

        Args:
            pretrained_model_name_or_path: a model directory, a run, the JSON file itself, or a name on the Hugging Face hub.
            overrides: settings that replace those of the file, see :meth:`from_dict`; also ``revision``, ``cache_dir``,
                ``local_files_only``, ``token``, ``force_download`` and ``subfolder``, for the hub.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
            ConfigError: a setting in the file is invalid, or an override is unknown.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:  # or "facebook/deit-base-distilled-patch16-224"
            ...     file = Path(folder) / "preprocessor_config.json"
            ...     size = file.write_text('{"feature_extractor_type": "DeiTFeatureExtractor", "size": 438}')
            ...     deit.DeiTImageProcessor.from_pretrained(file, crop_size=384).size
            {'height': 438, 'width': 438}
        """
        path, content, overrides = _read_settings(pretrained_model_name_or_path, overrides)
        if not overrides.get("return_unused_kwargs"):
            _check_names(overrides, _NO_SETTINGS | cls.model_fields.keys() | {"return_unused_kwargs"})
        try:
            return cls.from_dict(content, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.problem}", "correct the file, or pass the setting") from error

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | Path, **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the settings in the file of a model, and the arguments that are not for the hub.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.

        Example:
            >>> paths = deit.DeiTImageProcessor(crop_size=160).save_pretrained(folder)
            >>> settings, others = deit.DeiTImageProcessor.get_image_processor_dict(folder, revision="main", size=180)
            >>> settings["crop_size"], others
            ({'height': 160, 'width': 160}, {'size': 180})
        """
        return _read_settings(pretrained_model_name_or_path, arguments)[1:]


def _read_settings(name: str | Path, arguments: Mapping[str, Any]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Returns the file of a model's settings, its content, and the arguments that are not for the hub."""
    options, rest = hub_arguments(dict(arguments))
    path, content = read_settings(name, rest.pop("image_processor_filename", PROCESSOR_NAME), options)
    return path, content, rest


def settings_by_name(settings: Sequence[Any], order: Sequence[str]) -> dict[str, Any]:
    """Returns settings that were passed by position, by name."""
    if len(settings) > len(order):
        raise ConfigError(f"The image processor takes {len(order)} settings by position, not {len(settings)}", "name them")
    return dict(zip(order, settings, strict=False))


def _value_for_none(name: str) -> bool | None:
    """Returns what None means for a setting: False for steps, except color conversion, and no change for values."""
    return name == "do_convert_rgb" if name.startswith("do_") else None


def _check_names(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"The image processor has no setting {name!r}", did_you_mean(name, known))
