"""Shares the models and bundles of the inference tests, and the browser of the tests of pages."""

from tests.e2e.conftest import browser  # noqa: F401
from tests.unit.inference.conftest import (  # noqa: F401
    int8_bundle,
    model,
    onnx_bundle,
    openvino_bundle,
    own_cache,
    photos,
    torch_bundle,
)
