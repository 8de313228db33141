"""Keeps Python's garbage collection from stopping a server."""

from __future__ import annotations

import gc


def freeze_garbage_collection() -> None:
    """Leaves what exists by now out of garbage collection, which would otherwise stop all threads for up to 0.2 s at a time.

    Garbage is collected first. Call it again when large objects have been replaced.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
