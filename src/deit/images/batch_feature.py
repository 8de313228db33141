"""The output of an image processor: a mapping of tensors that can be moved and cast together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np

from deit.errors import ConfigError, ImageError
from deit.images.processor_settings import enum_value


class BatchFeature(dict[str, Any]):
    """The processor's output: a dictionary whose keys are also attributes.

    Args:
        data: names -> tensors, arrays or lists of arrays.
        tensor_type: see :meth:`convert_to_tensors`.
        skip_tensor_conversion: see :meth:`convert_to_tensors`.

    Example:
        >>> BatchFeature({"pixel_values": [np.zeros((3, 2, 2))]}, "np").pixel_values.shape
        (1, 3, 2, 2)
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        tensor_type: str | None = None,
        skip_tensor_conversion: Collection[str] | None = None,
    ) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type, skip_tensor_conversion)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    @property
    def data(self) -> dict[str, Any]:
        """The mapping itself."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None, skip_tensor_conversion: Collection[str] | None = None) -> Self:
        """Stacks lists of arrays or numbers, in place. Texts stay as they are.

        Args:
            tensor_type: "np" for arrays, "pt" for tensors; None changes nothing.
            skip_tensor_conversion: names of entries that stay as they are.

        Raises:
            ImageError: the arrays have different shapes.
        """
        tensor_type = enum_value(tensor_type)
        for name in self.keys() - {*(skip_tensor_conversion or ())} if tensor_type else ():
            if tensor_type == "pt" and hasattr(self[name], "detach"):
                continue
            stacked = _stack(self[name])
            if stacked is not None and stacked.dtype.kind in "biufc":
                self[name] = stacked
                if tensor_type == "pt":
                    import torch

                    self[name] = torch.as_tensor(stacked)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves tensors to a device or casts them, in place, also in lists. Only floating-point tensors are cast.

        Example:
            >>> import torch
            >>> BatchFeature({"pixel_values": torch.zeros(1, 3, 2, 2)}).to(torch.float16).pixel_values.dtype
            torch.float16
        """
        import torch

        device = kwargs.get("device", next((arg for arg in args if isinstance(arg, str | int | torch.device)), None))

        def move(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(move(item) for item in value)
            if not isinstance(value, torch.Tensor):
                return value
            if value.is_floating_point():
                return value.to(*args, **kwargs)
            return value.to(device=device or value.device, non_blocking=kwargs.get("non_blocking", False))

        self.update({name: move(value) for name, value in self.items()})
        return self

    def to_device(self, device: Any) -> Self:
        """Moves tensors to a device, in place; None leaves them where they are.

        Raises:
            ConfigError: the device does not exist.
        """
        try:
            return self if device is None else self.to(device)
        except (AssertionError, RuntimeError) as error:  # torch raises either for a device that it was not built for
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"The device {device} cannot be used ({reason})", "pass cpu, or another device") from error


def _stack(value: Any) -> np.ndarray | None:
    """Returns an entry as one array; None for what is no array, such as a text."""
    if hasattr(value, "detach"):
        return np.asarray(value.detach().cpu())
    if isinstance(value, str | bytes | Mapping) or (isinstance(value, list | tuple) and not value):
        return None
    items = [_stack(item) if hasattr(item, "detach") else item for item in value] if isinstance(value, list | tuple) else value
    if isinstance(items, list) and len({np.shape(item) for item in items}) > 1:
        raise ImageError("The processed images have different sizes", "turn on do_resize and do_center_crop")
    return np.asarray(items)
