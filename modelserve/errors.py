"""The exceptions that users meet, each with the HTTP status that it becomes.

Raise one from a hook to choose the status and the sentence that the client reads. Any other
exception is a 500 whose text stays in the log. The client has its own in `modelserve.client`.

    ServingError                     500  the root: its reason is sent to the client
    +-- InferenceError               500  (or the status given) the model failed
    |   +-- NestedTooDeep            500  a value that is nested too deep for JSON
    |   +-- CollectedTooLarge        500  a stream over `max_collected_bytes`
    |   +-- InvalidOutput            500  an invalid V2 response
    |   +-- PredictorError           500  (or the status given) the predictor failed
    |   +-- NotText                  500  `data` was read of a tensor that holds bytes, not text
    +-- InvalidInput                 400  an invalid request
    |   +-- NotAsDeclared            400  a payload that is not what the model has declared
    |   +-- FieldMissing             400  a form without a field that the hook reads
    |   +-- InvalidParameter         400  an invalid member of a request to OpenAI's endpoints
    +-- Forbidden                    403  turned off on this server
    +-- RouteNotFound                404  no such path
    |   +-- ModelNotFound            404  no model of that name
    +-- MethodNotAllowed             405  a known path, another method
    +-- NotAcceptable                406  no representation that `Accept` allows
    +-- BodyTimeout                  408  the request's body came too slowly
    +-- BodyTooLarge                 413  the request's body is over the limit
    +-- UnsupportedCoding            415  the request's body has an unknown content coding
    +-- Unauthorized                 401  the bearer token is missing or wrong
    +-- UnsupportedProtocol          501  a protocol, or a part of one, that is not supported
    +-- HookMissing                  501  the model does not have the hook that the verb needs
    +-- ExtraMissing                 501  a package that the request needs is not installed
    +-- ServerNotLive                503  the server is not live
    +-- ServerNotReady               503  models are loading, or loading failed
    |   +-- ModelNotReady            503  this model is not loaded yet, or loading failed
    |   +-- NoModelReady             503  no model is ready
    +-- Overloaded                   503  the queue is full; `Retry-After` says when to retry
    |   +-- NoThread                 503  the system has no thread for a hook
    +-- Stopped                           something ended the request before it was complete
        +-- ClientGone               499  the client disconnected; nothing is sent
        +-- DeadlineExceeded         504  a limit on time
        +-- ServerShuttingDown       503  the server is stopping
    ModelMissingError                     no model at the path given
    WorkersShouldBeLessThanMaxWorkersError
    ResponseCut                           makes the host cut the connection
    LoadError                             a target that the command line cannot load

KServe's exceptions have the names and constructors of its SDK. Four of them are never raised here,
and exist for programs written for KServe: ServerNotLive, NoModelReady, ModelMissingError and
WorkersShouldBeLessThanMaxWorkersError.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from starlette.exceptions import HTTPException

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "ClientGone",
    "CollectedTooLarge",
    "DeadlineExceeded",
    "ExtraMissing",
    "FieldMissing",
    "Forbidden",
    "HookMissing",
    "InferenceError",
    "InvalidInput",
    "InvalidOutput",
    "InvalidParameter",
    "LoadError",
    "MethodNotAllowed",
    "ModelMissingError",
    "ModelNotFound",
    "ModelNotReady",
    "NestedTooDeep",
    "NoModelReady",
    "NoThread",
    "NotAcceptable",
    "NotAsDeclared",
    "NotText",
    "Overloaded",
    "PredictorError",
    "ResponseCut",
    "RouteNotFound",
    "ServerNotLive",
    "ServerNotReady",
    "ServerShuttingDown",
    "ServingError",
    "Stopped",
    "Unauthorized",
    "UnsupportedCoding",
    "UnsupportedProtocol",
    "WorkersShouldBeLessThanMaxWorkersError",
    "describe",
]


_OF_BACK_PRESSURE: Final = (429, 503)
_CALLED_IS_BUSY: Final = "What this model calls is busy and its queue is full."
_MOST_DETAILS: Final = 2000  # letters of another library's exception


class ServingError(Exception):
    """Raise to answer with `status` and `{"error": reason}`; subclass it for another status."""

    status: int = 500
    reason: str  # none of the class's own: Ray's exceptions look up in their cause what they lack
    retry_after: float | None = None

    def __init__(self, reason: object = "") -> None:
        self.reason = str(reason)
        super().__init__(self.reason)

    def __str__(self) -> str:
        return _reason_of(self)

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers to add to the response."""
        if self.retry_after is None:
            return {}
        try:
            seconds = round(float(self.retry_after))
        except (OverflowError, TypeError, ValueError):  # a subclass has set what is no number
            return {}
        return {"retry-after": str(max(1, seconds))}


class InferenceError(ServingError, RuntimeError):
    """Raise when the model failed; `status` may be an int from 400 to 599 (KServe issue 3396)."""

    def __init__(
        self, reason: object, status: int | str | None = None, debug_details: object = None
    ) -> None:
        super().__init__(reason)
        self.debug_details = debug_details
        if isinstance(status, int) and 400 <= status <= 599:
            self.status = status


class NestedTooDeep(InferenceError):
    """Raised when a value is nested too deep to be written as JSON."""


class CollectedTooLarge(InferenceError):
    """Raised when a stream that is collected into one document exceeds `max_collected_bytes`."""


class InvalidInput(ServingError, ValueError):
    """Raise when the request is invalid; the client reads the reason."""

    status = 400


class NotAsDeclared(InvalidInput):
    """Raised when a payload is not what the model has declared; the reason names the place.

    The reason contains no value of the payload. If a library found the mistake, its exception is
    the cause, and `debug` shows its text.
    """


class FieldMissing(InvalidInput, KeyError):
    """Raised when a hook reads a field that the form does not have.

    A KeyError as well, since a form is a mapping: its `get` and `except KeyError` know it.
    """


class InvalidOutput(InferenceError, InvalidInput):
    """Raised for an invalid V2 response, of the model or of its predictor.

    An InvalidInput as well, since KServe's SDK raises that and programs catch it.
    """

    status = 500


class NotText(InferenceError, InvalidInput):
    """Raised when a program reads the `data` of BYTES that are not UTF-8.

    That is the program's error, since any bytes may come. An InvalidInput as well, as before.
    """

    status = 500


class InvalidParameter(InvalidInput):
    """Raised when a member of a request to OpenAI's endpoints is invalid; `param` names it."""

    def __init__(self, param: str, expected: str) -> None:
        super().__init__(f'Expected "{param}" to be {expected}')
        self.param = param


class PredictorError(InferenceError):
    """Raised when the predictor or the explainer failed, or cannot be reached.

    Args:
        headers: Those of the predictor's response that the client gets as well.
    """

    def __init__(self, reason: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason, status)
        self._headers = headers or {}

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers


class Forbidden(ServingError):
    """Raised for what is turned off on this server, such as loading models over HTTP."""

    status = 403


class RouteNotFound(ServingError):
    """Raised for a path that is not served."""

    status = 404

    def __init__(self, reason: str = "Not Found") -> None:
        super().__init__(reason)


class ModelNotFound(RouteNotFound):
    """Raised for a model name that is not registered."""

    def __init__(self, model_name: str | None = None) -> None:
        super().__init__(f"Model with name {model_name} does not exist.")


class MethodNotAllowed(ServingError):
    """Raised for a method that the path does not have."""

    status = 405

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__("Method Not Allowed")
        self.allowed = ", ".join(allowed)

    @property
    def headers(self) -> Mapping[str, str]:
        return {"allow": self.allowed}


class NotAcceptable(ServingError):
    """Raised when `Accept` allows no representation of the stream."""

    status = 406


class BodyTimeout(ServingError):
    """Raised when the request's body has not arrived in time."""

    status = 408


class BodyTooLarge(ServingError):
    """Raised when the request's body is larger than the limit."""

    status = 413


class UnsupportedCoding(ServingError):
    """Raised when the request's body has an unknown content coding."""

    status = 415

    @property
    def headers(self) -> Mapping[str, str]:
        return {"accept-encoding": "gzip, deflate"}


class Unauthorized(ServingError):
    """Raised when the bearer token is missing or wrong."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Unauthorized")

    @property
    def headers(self) -> Mapping[str, str]:
        return {"www-authenticate": "Bearer"}


class UnsupportedProtocol(ServingError):
    """Raise for a protocol that the model does not support."""

    status = 501

    def __init__(self, protocol_version: str | None = None) -> None:
        super().__init__(f"Unsupported protocol {protocol_version}.")


class HookMissing(ServingError, NotImplementedError):
    """Raised by the hooks of `Model` itself, for a hook that a model does not have.

    A NotImplementedError of any other origin (torch raises it for a missing kernel) is a failure.
    """

    status = 501


class ExtraMissing(ServingError):
    """Raised for a request that needs an extra whose package is not installed."""

    status = 501

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}: pip install 'modelserve[{extra}]'.")


class ServerNotLive(ServingError, RuntimeError):
    """Raise when the server is not live."""

    status = 503

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(_sentence("Server is not live.", detail))


class ServerNotReady(ServingError, RuntimeError):
    """Raised while models are loading, after a failed load, and during a drain."""

    status = 503

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(_sentence("Server is not ready.", detail))


class ModelNotReady(ServerNotReady):
    """Raised for a model that is registered and not ready."""

    def __init__(self, model_name: str | None, detail: str | None = None) -> None:
        super().__init__()
        self.reason = _sentence(f"Model with name {model_name} is not ready.", detail)
        self.args = (self.reason,)


class NoModelReady(ServerNotReady):
    """Raise when none of these models is ready."""

    def __init__(self, models: Sequence[object], detail: str | None = None) -> None:
        super().__init__()
        names = ",".join(str(getattr(model, "name", model)) for model in models)
        self.reason = _sentence(f"Models with name {names} are not ready.", detail)
        self.args = (self.reason,)


class Overloaded(ServingError):
    """Raised when the queue is full; `retry_after` is in seconds."""

    status = 503

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NoThread(Overloaded):
    """Raised when the system refuses to start a thread: a limit on pids, or no memory."""

    def __init__(self) -> None:
        super().__init__("The server cannot start a thread now.", retry_after=1)


class Stopped(ServingError):
    """The root of reasons to end a request early; `outcome` is the label in metrics."""

    outcome: ClassVar[str] = "error"


class ClientGone(Stopped):
    """The client has disconnected: 499 is recorded, and sent where a host may want an answer."""

    status = 499
    outcome = "disconnected"

    def __init__(self, reason: str = "client disconnected") -> None:
        super().__init__(reason)


class DeadlineExceeded(Stopped):
    """A limit on time has passed; the reason names the limit."""

    status = 504
    outcome = "timeout"


class ServerShuttingDown(Stopped):
    """The server is stopping: the request came too late, or took longer than the drain."""

    status = 503
    outcome = "shutdown"
    retry_after = 1

    def __init__(self, reason: str = "server shutting down") -> None:
        super().__init__(reason)


class ModelMissingError(Exception):
    """Raise when there is no model at a path."""

    def __init__(self, path: object) -> None:
        super().__init__(f"Could not find a model at {path}.")


class WorkersShouldBeLessThanMaxWorkersError(Exception):
    """Raise when more workers are requested than allowed."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(f"The number of workers must not exceed {max_workers}.")


class ResponseCut(Exception):
    """Raised out of the application, so that the host cuts a response that must not look complete.

    The failure itself has been logged already.

    Attributes:
        status, detail: Those of the failure, for a host that can still report them.
    """

    def __init__(self, text: str = "", *, status: int = 500, detail: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.detail = detail


class LoadError(Exception):
    """Raised when the command line cannot load its target; the text is one sentence."""


def describe(exc: BaseException, *, debug: bool = False) -> tuple[int, Any, Mapping[str, str]]:
    """Return the status, the detail and the headers of the response to an exception.

    The detail is a sentence; that of starlette's HTTPException may be any value that JSON has.
    A group that holds a single exception counts as that exception, so that a hook may raise from
    inside a task group. With `debug`, an unexpected exception's text is shown in KServe's form.
    """
    exc = single_cause(exc)
    if isinstance(exc, ServingError):
        if debug and isinstance(exc, NotAsDeclared) and exc.__cause__ is not None:
            return (
                exc.status,
                f"{exc.reason} ({_text_of(exc.__cause__)[:_MOST_DETAILS]})",
                exc.headers,
            )
        return _status_in(exc.status), _reason_of(exc), exc.headers
    if isinstance(exc, HTTPException):  # a subclass may not have called its `__init__`
        status = _status_in(getattr(exc, "status_code", 500))
        return status, getattr(exc, "detail", ""), getattr(exc, "headers", None) or {}
    if (refusal := _refusal_by_ray(exc)) is not None:
        return refusal.status, refusal.reason, refusal.headers
    if debug:
        return 500, f"{type(exc).__name__} : {_text_of(exc)}", {}
    return 500, "Internal Server Error", {}


def _reason_of(exc: ServingError) -> str:
    """Return the reason of an exception; a subclass may not have called its base's `__init__`."""
    return getattr(exc, "reason", "")


def _status_in(status: object) -> int:
    """Return the status that an exception asks for; 500 for what is no status of an error."""
    return int(status) if isinstance(status, int) and 400 <= status <= 599 else 500


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "it has no text"


def _refusal_by_ray(exc: BaseException) -> Overloaded | None:
    """Convert Ray Serve's BackPressureError, which a deployment's handle raises.

    It is recognized by its two attributes, since Ray is not imported here.
    """
    status, seconds = getattr(exc, "status_code", 0), getattr(exc, "retry_after_s", "")
    if status not in _OF_BACK_PRESSURE or isinstance(seconds, str):
        return None
    refusal = Overloaded(_CALLED_IS_BUSY, retry_after=math.ceil(seconds or 0))
    refusal.status = int(status)
    return refusal


def is_expected(exc: BaseException) -> bool:
    """Return whether an exception is a deliberate response, not a failure to be logged."""
    return describe(exc)[0] != 500


def single_cause(exc: BaseException) -> BaseException:
    """Unwrap groups that hold a single exception."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _sentence(text: str, detail: str | None) -> str:
    return f"{text} {detail}" if detail else text
