"""How a run asks for decoded images to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deit.errors import UserError

CacheMode = Literal["auto", "memory", "disk", "off"]
DEFAULT_LIMIT = 50.0  # GB


@dataclass(frozen=True)
class CacheRequest:
    """How a run asks for decoded images to be kept.

    Attributes:
        mode: ``disk``, in the user's cache, for other runs, too; ``memory``, for this run; ``off``; ``auto``, where it saves a
            third of the time or more and there is space, on disk if possible.
        limit: gigabytes that are kept at most.
        reduces: whether training samples are made from pyramids, where a resumed run or cached logits have decided it already.
    """

    mode: CacheMode = "auto"
    limit: float = DEFAULT_LIMIT
    reduces: bool | None = None

    def check(self) -> None:
        """Checks what can be checked without images.

        Raises:
            UserError: the mode or the limit is invalid.
        """
        if self.mode not in get_args(CacheMode):
            raise UserError(f"There is no cache {self.mode!r}", f"pass one of {', '.join(get_args(CacheMode))}")
        if not 0 < self.limit < 1e9:
            raise UserError(f"A cache cannot be limited to {self.limit:g} GB", "pass a larger --cache-limit, or --cache off")
