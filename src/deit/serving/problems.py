"""Errors as problem details (RFC 9457): a status, and a reason that a person can act on."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818, the term of the RFC
    """A request that is not answered as it was asked.

    Args:
        status: the HTTP status.
        detail: what is wrong and what to do about it.
        headers: of the response.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self) -> JSONResponse:
        """Returns the response."""
        content = {"type": "about:blank", "title": self.status.phrase, "status": self.status.value, "detail": self.detail}
        return JSONResponse(content, self.status.value, headers=self.headers, media_type=MEDIA_TYPE)


def busy(retry_after: int) -> Problem:
    """Returns the problem of a full queue.

    Args:
        retry_after: seconds after which there will be room.
    """
    detail = f"The server is busy: try again in {retry_after} s"
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, {"Retry-After": str(retry_after)})


def draining() -> Problem:
    """Returns the problem of a server that is about to stop."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping: try another one", {"Retry-After": "5"})
