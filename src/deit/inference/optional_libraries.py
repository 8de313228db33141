"""Optional runtime libraries: their versions, and importing them without their telemetry."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType

from deit.errors import MissingExtraError

EXTRA = "inference"
TELEMETRY_MODULE = "openvino_telemetry"


def version(name: str) -> str | None:
    """Returns the version of an installed library; None if it is not installed."""
    try:
        return importlib.metadata.version(name) if importlib.util.find_spec(name) else None
    except importlib.metadata.PackageNotFoundError:
        return None


def load(name: str, purpose: str) -> ModuleType:
    """Imports a library: ``openvino``, ``onnxruntime``, ``onnx``, ``onnxscript`` or ``nncf``.

    By default, OpenVINO and NNCF report each import and each conversion to their makers. They do not if
    ``openvino_telemetry`` cannot be imported, so its import is blocked meanwhile.

    Args:
        name: name of the module.
        purpose: what the library is needed for, as the subject of the error message: ``An OpenVINO bundle``.

    Raises:
        MissingExtraError: the library is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(purpose, EXTRA)
    missing = object()
    before = sys.modules.get(TELEMETRY_MODULE, missing)
    # Documented: None in sys.modules makes an import fail.
    sys.modules[TELEMETRY_MODULE] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        if before is missing:
            del sys.modules[TELEMETRY_MODULE]
        else:
            sys.modules[TELEMETRY_MODULE] = before  # type: ignore[assignment]
