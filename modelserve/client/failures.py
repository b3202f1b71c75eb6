"""The exceptions of a call of a server, as one tree.

ClientError
|-- AnswerError    the server answered with an error
|-- Unreachable    no connection could be made, so nothing has run
|-- TimedOut       nothing has come, or could be sent, for too long
|-- CutShort       the connection ended before the answer did
`-- Unreadable     the answer does not follow its headers or the protocol
"""

from typing import Any, Final

__all__ = [
    "AnswerError",
    "ClientError",
    "CutShort",
    "TimedOut",
    "Unreachable",
    "Unreadable",
    "sentence_in",
]

_SENTENCE_LENGTH: Final = 2000


class ClientError(Exception):
    """The root of the exceptions of a call; its text is one sentence."""


class AnswerError(ClientError):
    """The server's own error, with its sentence.

    Attributes:
        status: The status of the response; None for an error in the middle of a stream.
        retry_after: The seconds after which the server may be asked again, if it said so.
    """

    def __init__(
        self, reason: str, status: int | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after


class Unreachable(ClientError):
    """No connection to the server could be made; it has not seen the request."""


class TimedOut(ClientError):
    """Nothing has come from the server, or could be sent to it, for the client's time limit."""


class CutShort(ClientError):
    """The connection was closed before the answer was complete."""


class Unreadable(ClientError):
    """The answer is broken: it does not follow its content type, its framing or the protocol."""


def sentence_in(document: Any) -> str | None:
    """Return the sentence in an error document: `{"error": ...}`, OpenAI's, FastAPI's; or None."""
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, dict):
        document = error
    for key in ("error", "detail", "message"):
        text = document.get(key)
        text = _first_of(text) if isinstance(text, list) else text
        if isinstance(text, str) and text:
            return text[:_SENTENCE_LENGTH]
    return None


def _first_of(problems: list[Any]) -> str | None:
    """Return the first of pydantic's errors, with its place, as FastAPI lists them."""
    match problems:
        case [{"loc": [*place], "msg": str(text)}, *_]:
            return f"{'.'.join(map(str, place))}: {text}"
    return None
