"""Every exception this package raises, each with the HTTP status that it becomes.

Raise one from a hook to choose the status and the sentence that the client reads. Any other
exception is a 500 whose text stays in the log.

    ServingError                     500  the root: what a client may be told
    +-- InferenceError               500  (or the status given) the model failed
    |   +-- NestedTooDeep            500  a value that no JSON writer takes
    |   +-- CollectedTooLarge        500  a stream over the cap on one collected document
    |   +-- InvalidOutput            500  a V2 response that is none
    +-- InvalidInput                 400  the client sent something unusable
    +-- RouteNotFound                404  no such path
    |   +-- ModelNotFound            404  no model of that name
    +-- MethodNotAllowed             405  a known path, another method
    +-- NotAcceptable                406  no representation that `Accept` allows
    +-- BodyTimeout                  408  the request's body came too slowly
    +-- BodyTooLarge                 413  the request's body is over the limit
    +-- UnsupportedCoding            415  the request's body has a content coding not known here
    +-- Unauthorized                 401  the bearer token is missing or wrong
    +-- UnsupportedProtocol          501  a protocol, or a part of one, not spoken here
    +-- ServerNotLive                503
    +-- ServerNotReady               503
    |   +-- ModelNotReady            503  not loaded yet, or loading failed
    |   +-- NoModelReady             503
    +-- Overloaded                   503  the queue is full; `Retry-After` says when to come back
    +-- Stopped                           what ended a request from outside, before it was done
        +-- ClientGone               499  the client left; nobody reads the answer
        +-- DeadlineExceeded         504  a limit on time
        +-- ServerShuttingDown       503  the drain is over
    ModelMissingError                     no model in the directory given
    WorkersShouldBeLessThanMaxWorkersError
    ResponseCut                           leaves the application to make the host cut a connection
    LoadError                             a target that the command line cannot load

The names that KServe's SDK has are KServe's, with its constructors.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from starlette.exceptions import HTTPException

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "ClientGone",
    "CollectedTooLarge",
    "DeadlineExceeded",
    "InferenceError",
    "InvalidInput",
    "InvalidOutput",
    "LoadError",
    "MethodNotAllowed",
    "ModelMissingError",
    "ModelNotFound",
    "ModelNotReady",
    "NestedTooDeep",
    "NoModelReady",
    "NotAcceptable",
    "Overloaded",
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


class ServingError(Exception):
    """Be answered with `status` and `{"error": reason}`; subclass it for a status of your own."""

    status: int = 500
    retry_after: float | None = None

    def __init__(self, reason: object = "") -> None:
        self.reason = str(reason)
        super().__init__(self.reason)

    def __str__(self) -> str:
        return self.reason

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that go with the answer."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after)))}


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
    """Raised when a value is nested too deep for any JSON writer at hand."""


class CollectedTooLarge(InferenceError):
    """Raised when the items of a stream outgrow the cap on one collected document."""


class InvalidInput(ServingError, ValueError):
    """Raise when the client sent something unusable; the reason is shown to it."""

    status = 400


class InvalidOutput(InferenceError, InvalidInput):
    """Raised for a V2 response that is not one.

    It is the model's fault, or its predictor's; KServe raises InvalidInput, and programs catch that.
    """

    status = 500


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
    """Raised for a known path with a method that it does not have."""

    status = 405

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__("Method Not Allowed")
        self.allowed = ", ".join(allowed)

    @property
    def headers(self) -> Mapping[str, str]:
        return {"allow": self.allowed}


class NotAcceptable(ServingError):
    """Raised when `Accept` names nothing that this stream can be sent as."""

    status = 406


class BodyTimeout(ServingError):
    """Raised when the request's body has not arrived in time."""

    status = 408


class BodyTooLarge(ServingError):
    """Raised when the request's body is larger than the limit."""

    status = 413


class UnsupportedCoding(ServingError):
    """Raised when the request's body has a content coding that is not known here."""

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
    """Raise for a protocol that the model does not speak."""

    status = 501

    def __init__(self, protocol_version: str | None = None) -> None:
        super().__init__(f"Unsupported protocol {protocol_version}.")


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
    """Raised when none of the models given could be made ready."""

    def __init__(self, models: Sequence[object], detail: str | None = None) -> None:
        super().__init__()
        names = ",".join(str(getattr(model, "name", model)) for model in models)
        self.reason = _sentence(f"Models with name {names} are not ready.", detail)
        self.args = (self.reason,)


class Overloaded(ServingError):
    """Raised when as many requests wait as may; `retry_after` is in seconds."""

    status = 503

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Stopped(ServingError):
    """What ended a request from outside before it was done."""

    outcome: ClassVar[str] = "error"


class ClientGone(Stopped):
    """The client left. Status 499 is a record's, never sent."""

    status = 499
    outcome = "disconnected"

    def __init__(self, reason: str = "client disconnected") -> None:
        super().__init__(reason)


class DeadlineExceeded(Stopped):
    """A limit on time has passed; the reason names it."""

    status = 504
    outcome = "timeout"


class ServerShuttingDown(Stopped):
    """The server stops, and the time that requests had to finish is over."""

    status = 503
    outcome = "shutdown"
    retry_after = 1

    def __init__(self, reason: str = "server shutting down") -> None:
        super().__init__(reason)


class ModelMissingError(Exception):
    """Raised when there is no model at a path."""

    def __init__(self, path: object) -> None:
        super().__init__(f"Could not find a model at {path}.")


class WorkersShouldBeLessThanMaxWorkersError(Exception):
    """Raised when more workers are asked for than are allowed."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(f"The number of workers must not exceed {max_workers}.")


class ResponseCut(Exception):
    """Leaves the application on purpose: the host then cuts a response that may not look complete.

    The failure itself has been logged by then.
    """


class LoadError(Exception):
    """Raised when the command line cannot load its target; one sentence."""


def describe(exc: BaseException, *, debug: bool = False) -> tuple[int, str, Mapping[str, str]]:
    """Return the status, the sentence and the headers that an exception is answered with.

    A group that holds a single exception counts as that exception, so that a hook may raise from
    inside a task group. With `debug`, an unexpected exception's text is shown in KServe's form.
    """
    exc = single_cause(exc)
    if isinstance(exc, ServingError):
        return exc.status, exc.reason, exc.headers
    if isinstance(exc, HTTPException):
        status = exc.status_code if 400 <= exc.status_code <= 599 else 500
        return status, str(exc.detail), exc.headers or {}
    if isinstance(exc, NotImplementedError):
        return 501, str(exc) or "Not Implemented", {}
    if debug:
        return 500, f"{type(exc).__name__} : {exc}", {}
    return 500, "Internal Server Error", {}


def is_expected(exc: BaseException) -> bool:
    """Say whether an exception is an answer that was chosen, rather than a fault to be logged."""
    return describe(exc)[0] != 500


def single_cause(exc: BaseException) -> BaseException:
    """Return the one exception inside nested groups of one, else `exc` itself."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _sentence(text: str, detail: str | None) -> str:
    return f"{text} {detail}" if detail else text
