"""Errors of OpenAI's protocol under KServe's names."""

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from modelserve.kserve.protocol.rest.openai.types import Error, ErrorResponse

__all__ = ["OpenAIError", "create_error_response"]


class OpenAIError(HTTPException):
    """Raise to answer with an error: a text, or an `ErrorResponse` whose code is the status.

    Args:
        response: The error. A text is a 500.
        status: The status, where the code does not say it.
    """

    def __init__(self, response: Any, status: int | None = None) -> None:
        self.response = response
        if isinstance(response, str):
            response = create_error_response(
                response, "OpenAIError", status_code=HTTPStatus.INTERNAL_SERVER_ERROR
            )
        error = response.error
        detail: Any = {name: getattr(error, name) for name in ("message", "type", "param", "code")}
        super().__init__(status or _status_of(error.code), detail)

    def __str__(self) -> str:
        return str(self.detail["message"])  # type: ignore[index]


def create_error_response(
    message: str,
    err_type: str = "BadRequestError",
    param: str = "",
    status_code: HTTPStatus = HTTPStatus.BAD_REQUEST,
) -> ErrorResponse:
    """Return an error that a hook may return, or raise in an `OpenAIError`."""
    code = str(int(status_code))
    return ErrorResponse(error=Error(message=message, type=err_type, param=param, code=code))


def _status_of(code: Any) -> int:
    text = str(code)
    return int(text) if text.isdecimal() and 400 <= int(text) <= 599 else 500
