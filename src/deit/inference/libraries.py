"""The optional libraries of this room: whether they are here, and how they are imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType

from deit.errors import MissingExtraError

EXTRA = "inference"


def version(name: str) -> str | None:
    """The installed version of a library; None where it is not installed."""
    try:
        return importlib.metadata.version(name) if importlib.util.find_spec(name) else None
    except importlib.metadata.PackageNotFoundError:
        return None


def load(name: str, purpose: str) -> ModuleType:
    """Import one of ``openvino``, ``onnxruntime``, ``onnx``, ``nncf``.

    OpenVINO and NNCF report each import and each conversion to their makers, without asking. Where
    ``openvino_telemetry`` cannot be imported they do without, so it cannot be while they are.

    Args:
        purpose: what needs it, for the error: ``An OpenVINO bundle``.

    Raises:
        MissingExtraError: it is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(purpose, EXTRA)
    reporter = "openvino_telemetry"
    missing = object()
    before = sys.modules.get(reporter, missing)
    sys.modules[reporter] = None  # type: ignore[assignment]  # documented: importing it is then an ImportError
    try:
        return importlib.import_module(name)
    finally:
        if before is missing:
            del sys.modules[reporter]
        else:
            sys.modules[reporter] = before  # type: ignore[assignment]
