"""What goes wrong, in the shape that clients of the OpenAI interface read:

    {"error": {"message": "...", "type": "invalid_request_error", "param": "max_tokens", "code": null}}

A message is for the person at the other end: it names the field and the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is refused, or an answer that cannot be finished.

    Attributes:
        status: of HTTP.
        message: one line for a person.
        param: the field of the request that is wrong, if it is one.
        code: a word that programs can look for.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that says something impossible."""
    return ApiError(400, message, param=param, code=code)
