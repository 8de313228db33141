"""The answer of an image processor: a mapping of tensors that moves and casts as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from deit.errors import ImageError


class BatchFeature(dict[str, Any]):
    """The processor's answer: a mapping whose keys can be read as attributes too.

    Args:
        data: names to tensors, arrays or lists of them.
        tensor_type: as of :meth:`convert_to_tensors`.

    Example:
        >>> BatchFeature({"pixel_values": [np.zeros((3, 2, 2))]}, "np").pixel_values.shape
        (1, 3, 2, 2)
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    @property
    def data(self) -> dict[str, Any]:
        """The mapping itself."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Stack lists of arrays, in place: "np" to arrays, "pt" to tensors, None leaves all as it is.

        Raises:
            ImageError: arrays of different shapes.
        """
        for name, value in self.items():
            if tensor_type and isinstance(value, list | tuple):
                if len({np.shape(item) for item in value}) > 1:
                    raise ImageError("The images come out in different sizes", "switch do_resize and do_center_crop on")
                self[name] = np.stack([np.asarray(item) for item in value])
            if tensor_type == "pt":
                import torch

                self[name] = torch.as_tensor(self[name])
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device or cast to a type, in place; what is no floating-point tensor keeps its type.

        Example:
            >>> import torch
            >>> BatchFeature({"pixel_values": torch.zeros(1, 3, 2, 2)}).to(torch.float16).pixel_values.dtype
            torch.float16
        """
        import torch

        device = kwargs.get("device", next((arg for arg in args if isinstance(arg, str | int | torch.device)), None))
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                floating = value.is_floating_point()
                self[name] = value.to(*args, **kwargs) if floating else value.to(device=device or value.device)
        return self
