"""The output of an image processor: a mapping of tensors that can be moved and cast together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from deit.errors import ImageError


class BatchFeature(dict[str, Any]):
    """The processor's output: a dictionary whose keys are also attributes.

    Args:
        data: names -> tensors, arrays or lists of arrays.
        tensor_type: see :meth:`convert_to_tensors`.

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
        """Stacks lists of arrays, in place.

        Args:
            tensor_type: "np" for arrays, "pt" for tensors; None changes nothing.

        Raises:
            ImageError: the arrays have different shapes.
        """
        for name, value in self.items():
            if tensor_type and isinstance(value, list | tuple):
                if len({np.shape(item) for item in value}) > 1:
                    raise ImageError("The processed images have different sizes", "turn on do_resize and do_center_crop")
                self[name] = np.stack([np.asarray(item) for item in value])
            if tensor_type == "pt":
                import torch

                self[name] = torch.as_tensor(self[name])
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves tensors to a device or casts them, in place. Only floating-point tensors are cast.

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
