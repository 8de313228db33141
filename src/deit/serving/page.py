"""The page of the server. Its files are in :mod:`deit.page`, and need no build step and nothing from another address."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI, HTTPException, Response

FILES = {  # file of the package and media type, by name in the page
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "api.js": ("api.js", "text/javascript"),
    "dom.js": ("dom.js", "text/javascript"),
    "map.js": ("map.js", "text/javascript"),
    "backend.js": ("server.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Adds the routes of the page, ``/`` and ``/page/FILE``, and of the description of the interface, ``/docs``."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file("index.html", "text/html")

    @app.get("/docs", include_in_schema=False)
    async def interface() -> Response:
        return _file("api.html", "text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"The page has no file {name!r}")
        return _file(*FILES[name])


def _file(name: str, media_type: str) -> Response:
    return Response((resources.files("deit.page") / name).read_bytes(), media_type=media_type, headers=HEADERS)
