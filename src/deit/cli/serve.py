"""``deit serve``."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import CropOption, DeviceOption, MaxPixelsOption, RuntimeOption
from deit.errors import MissingExtraError, UserError

TOKEN_VARIABLE = "DEIT_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Bundles or models, as for `deit predict`; NAME=MODEL sets the name of one."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 takes requests of other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    max_body: Annotated[float, typer.Option(metavar="MIB", min=0.001, help="Size of a request at most.")] = 32.0,
    max_files: Annotated[int, typer.Option(min=1, help="Images per request at most.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; further requests are refused.")] = 256,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Time after which a request is given up.")] = 30.0,
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data set of whose held-out images the page offers some; off: none. Default: the model's own, if the server "
            "listens on this machine only.",
        ),
    ] = None,
    crop: CropOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = "auto",
    _max_pixels: MaxPixelsOption = None,
) -> None:
    """Serve models over HTTP, on this machine unless told otherwise. $DEIT_TOKEN is a bearer token that requests must have."""
    try:
        from deit.serving.app import create_app
        from deit.serving.samples import AUTO, OFF
        from deit.serving.server import Server
        from deit.serving.state import MIB, ServerSettings
    except ImportError:
        raise MissingExtraError("Serving", "serve") from None
    from deit.inference.predictor import Predictor
    from deit.system.malloc import retain_freed_memory

    retain_freed_memory()
    settings = ServerSettings(
        samples=samples or (AUTO if host in LOOPBACK else OFF),
        max_body=int(max_body * MIB),
        max_files=max_files,
        queue=queue,
        timeout=timeout,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
    load = partial(Predictor.from_pretrained, device=device, crop=crop, runtime=runtime)
    app = create_app(model_names(models), settings, load)
    address = f"[{host}]" if ":" in host else host
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"Cannot listen on {address}:{port}: {error.strerror}", "pass another --host or --port") from error
    names = ", ".join(app.state.server.models.names)
    Server(app, f"Serving {names} at http://{address}:{listening.getsockname()[1]}").run([listening])


def model_names(models: list[str]) -> dict[str, str]:
    """Returns the path or name of each model, by the name that it is served under: its own, unless it is NAME=MODEL.

    Raises:
        UserError: two have the same name.
    """
    names: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or Path(model).exists():
            name, path = Path(model).absolute().name, model
        if name in names:
            raise UserError(f"Two models have the name {name}", "write NAME=MODEL for one of them")
        names[name] = path
    return names
