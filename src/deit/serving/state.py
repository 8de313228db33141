"""What a server accepts, and what its routes share."""

from __future__ import annotations

from dataclasses import dataclass

from deit.serving.metrics import Metrics
from deit.serving.models import Load, Models
from deit.serving.samples import OFF, Samples

MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """What a server accepts.

    Attributes:
        max_body: bytes of a request.
        max_files: images of a request.
        queue: images that may wait for a model.
        timeout: seconds after which a request is given up.
        token: bearer token that requests must have; None takes any request.
        samples: data set whose images the page offers, see :class:`deit.serving.samples.Samples`.
    """

    max_body: int = 32 * MIB
    max_files: int = 16
    queue: int = 256
    timeout: float = 30.0
    token: str | None = None
    samples: str = OFF


class ServerState:
    """What the routes share.

    Args:
        paths: path or name of each model, by the name that it is served under.
        settings: of the server.
        load: opens a model.

    Attributes:
        is_draining: no more work is accepted.
    """

    def __init__(self, paths: dict[str, str], settings: ServerSettings, load: Load) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.models = Models(paths, load, settings.queue, settings.timeout, self.metrics)
        self.samples = {name: Samples(path, settings.samples) for name, path in paths.items()}
        self.is_draining = False
