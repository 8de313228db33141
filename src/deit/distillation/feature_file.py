"""Writes the feature maps of the view in progress, step by step: a whole view may be larger than memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from deit.distillation.cache_format import features_path

READ_BYTES = 16 * 2**20


class FeatureFile:
    """The file of feature maps of the view in progress.

    Args:
        directory: the cache.
        batch_size: rows per step.
        row_bytes: bytes per row.
    """

    def __init__(self, directory: Path, batch_size: int, row_bytes: int) -> None:
        self._directory = directory
        self._rows = np.zeros((batch_size, row_bytes), np.int8)  # of the step in progress
        self._path = features_path(directory, 0).with_suffix(".part")
        self._digest = hashlib.sha256()

    def start(self, view: int) -> None:
        """Starts a view from its beginning."""
        self._path = features_path(self._directory, view).with_suffix(".part")
        self._path.unlink(missing_ok=True)
        self._digest = hashlib.sha256()

    def resume(self, view: int, steps: int, sha256: str | None) -> bool:
        """Continues a view after its first ``steps``. Returns False if they are missing or damaged."""
        published = features_path(self._directory, view)
        self._path = published.with_suffix(".part")
        if published.is_file() and not self._path.exists():  # it was interrupted before the manifest was written
            published.replace(self._path)
        size = steps * self._rows.nbytes
        if not self._path.is_file() or self._path.stat().st_size < size:
            return False
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            for start in range(0, size, READ_BYTES):
                digest.update(file.read(min(READ_BYTES, size - start)))
        if digest.hexdigest() != sha256:
            return False
        os.truncate(self._path, size)  # steps that were written and not saved
        self._digest = digest
        return True

    def put(self, positions: np.ndarray, rows: np.ndarray) -> None:
        """Sets rows of the step in progress; the others stay 0.

        Args:
            positions: (B,) in the global batch.
            rows: (B, row_bytes) int8.
        """
        self._rows[positions] = rows

    def finish_step(self) -> None:
        """Appends the rows of the step to the file."""
        with self._path.open("ab") as file:
            file.write(self._rows.data)
        self._digest.update(self._rows.data)
        self._rows.fill(0)

    def save(self) -> str:
        """Writes everything to the disk. Returns the hash of the file."""
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())
        return self._digest.hexdigest()

    def publish(self, view: int) -> str:
        """Gives the file of a finished view its final name. Returns its hash."""
        sha256 = self.save()
        self._path.replace(features_path(self._directory, view))
        return sha256
