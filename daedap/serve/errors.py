"""Errors of the HTTP interface: one shape on every route, OpenAI's `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused. `code` is for programs, `message` for the developer who reads it."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, other)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response; 429 and 503 say when to come back."""
        wait = self.retry_after if self.retry_after is not None else (1 if self.status == 503 else None)
        headers = {} if wait is None else {"Retry-After": str(max(1, round(wait)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.to_json(), self.status, headers=headers)


def invalid(message: str, param: str) -> ApiError:
    """A request that makes no sense."""
    return ApiError(400, "invalid_request", message, param=param)


def not_found(what: str) -> ApiError:
    """Something that is not there, or belongs to somebody else."""
    return ApiError(404, "not_found", f"No such {what}.")
