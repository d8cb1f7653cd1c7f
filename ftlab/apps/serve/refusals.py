"""Errors in the format of OpenAI's API."""

from typing import Any

from starlette.responses import JSONResponse


class Refused(Exception):
    """A refused request, with its HTTP status and the parameter at fault, if there is one."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the body of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(refused: Refused) -> JSONResponse:
    """Return the response to a refused request."""
    extra = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 413: {"Connection": "close"}}
    return JSONResponse(refused.body(), refused.status, headers=extra.get(refused.status))
