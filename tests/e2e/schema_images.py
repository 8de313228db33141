"""Bodies for schemathesis, which imports this module: six of ten are an image, the others are damaged versions of it."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies

from tests.damage import damaged
from tests.helpers import pattern

file = io.BytesIO()
pattern(50, 40).save(file, "PNG")
image = file.getvalue()
bodies = strategies.sampled_from([image] * 6 + list(damaged(image, 4)))
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, bodies)
schemathesis.openapi.format("binary", bodies)
