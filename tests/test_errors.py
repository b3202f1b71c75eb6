"""Each exception, the status that it becomes, and what the client reads."""

import http
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from modelserve import Model, ModelServer, errors
from modelserve.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    CollectedTooLarge,
    DeadlineExceeded,
    HookMissing,
    InferenceError,
    InvalidInput,
    InvalidOutput,
    InvalidParameter,
    LoadError,
    MethodNotAllowed,
    ModelMissingError,
    ModelNotFound,
    ModelNotReady,
    NestedTooDeep,
    NoModelReady,
    NotAcceptable,
    Overloaded,
    PredictorError,
    ResponseCut,
    RouteNotFound,
    ServerNotLive,
    ServerNotReady,
    ServerShuttingDown,
    ServingError,
    Stopped,
    Unauthorized,
    UnsupportedCoding,
    UnsupportedProtocol,
    WorkersShouldBeLessThanMaxWorkersError,
    describe,
    is_expected,
    single_cause,
)
from modelserve.testing import request

PREDICT = ("POST", "/v1/models/m:predict")


class Teapot(ServingError):
    status = 418


class Broken(ServingError):
    @property
    def headers(self) -> Mapping[str, str]:
        return {"bad name": "x"}


class BackPressureError(Exception):
    """As Ray Serve's (ray.serve.exceptions)."""

    def __init__(self, status_code: int, retry_after_s: float | None) -> None:
        self._status_code, self._retry_after_s = status_code, retry_after_s
        super().__init__("secret")

    @property
    def status_code(self) -> int:
        return self._status_code

    @property
    def retry_after_s(self) -> float | None:
        return self._retry_after_s


class UpstreamError(Exception):
    """As those of clients that name the status of another server's answer."""

    status_code = 503


BUSY = "What this model calls is busy and its queue is full."

TABLE: list[tuple[BaseException, int, str, dict[str, str]]] = [
    (ServingError("x"), 500, "x", {}),
    (ServingError(), 500, "", {}),
    (InferenceError("x"), 500, "x", {}),
    (InferenceError("x", status=429), 429, "x", {}),
    (InferenceError("x", status=http.HTTPStatus.CONFLICT), 409, "x", {}),
    (InferenceError("x", status="400"), 500, "x", {}),
    (InferenceError("x", status=200), 500, "x", {}),
    (InferenceError("x", status=600), 500, "x", {}),
    (InferenceError("x", None, {"detail": 1}), 500, "x", {}),
    (NestedTooDeep("x"), 500, "x", {}),
    (CollectedTooLarge("x"), 500, "x", {}),
    (InvalidInput("x"), 400, "x", {}),
    (InvalidOutput("x"), 500, "x", {}),
    (RouteNotFound(), 404, "Not Found", {}),
    (ModelNotFound("zz"), 404, "Model with name zz does not exist.", {}),
    (MethodNotAllowed(["GET", "HEAD"]), 405, "Method Not Allowed", {"allow": "GET, HEAD"}),
    (NotAcceptable("x"), 406, "x", {}),
    (BodyTimeout("x"), 408, "x", {}),
    (BodyTooLarge("x"), 413, "x", {}),
    (UnsupportedCoding("x"), 415, "x", {"accept-encoding": "gzip, deflate"}),
    (Unauthorized(), 401, "Unauthorized", {"www-authenticate": "Bearer"}),
    (UnsupportedProtocol("v9"), 501, "Unsupported protocol v9.", {}),
    (ServerNotLive(), 503, "Server is not live.", {}),
    (ServerNotLive("No disk."), 503, "Server is not live. No disk.", {}),
    (ServerNotReady(), 503, "Server is not ready.", {}),
    (ServerNotReady("No disk."), 503, "Server is not ready. No disk.", {}),
    (ModelNotReady("zz"), 503, "Model with name zz is not ready.", {}),
    (ModelNotReady("zz", "No disk."), 503, "Model with name zz is not ready. No disk.", {}),
    (NoModelReady([Model("a"), "b"]), 503, "Models with name a,b are not ready.", {}),
    (NoModelReady([], "None."), 503, "Models with name  are not ready. None.", {}),
    (Overloaded("x", retry_after=3), 503, "x", {"retry-after": "3"}),
    (Overloaded("x", retry_after=0.1), 503, "x", {"retry-after": "1"}),
    (ClientGone(), 499, "client disconnected", {}),
    (DeadlineExceeded("x"), 504, "x", {}),
    (ServerShuttingDown(), 503, "server shutting down", {"retry-after": "1"}),
    (Teapot("x"), 418, "x", {}),
    (HTTPException(403, "x"), 403, "x", {}),
    (HTTPException(403), 403, "Forbidden", {}),
    (HTTPException(429, "x", {"retry-after": "9"}), 429, "x", {"retry-after": "9"}),
    (HTTPException(307, "x"), 500, "x", {}),
    (HookMissing("x"), 501, "x", {}),
    (NotImplementedError("secret"), 500, "Internal Server Error", {}),
    (NotImplementedError(), 500, "Internal Server Error", {}),
    (ValueError("secret"), 500, "Internal Server Error", {}),
    (SystemExit("secret"), 500, "Internal Server Error", {}),
    (ExceptionGroup("g", [InvalidInput("x")]), 400, "x", {}),
    (ExceptionGroup("g", [ExceptionGroup("h", [InvalidInput("x")])]), 400, "x", {}),
    (ExceptionGroup("g", [InvalidInput("x"), KeyError()]), 500, "Internal Server Error", {}),
    (BaseExceptionGroup("g", [SystemExit(1)]), 500, "Internal Server Error", {}),
    (BackPressureError(503, 2.5), 503, BUSY, {"retry-after": "3"}),
    (BackPressureError(429, None), 429, BUSY, {"retry-after": "1"}),
    (ExceptionGroup("g", [BackPressureError(503, 9)]), 503, BUSY, {"retry-after": "9"}),
    (BackPressureError(200, 1), 500, "Internal Server Error", {}),
    (UpstreamError("secret"), 500, "Internal Server Error", {}),
]


@pytest.mark.parametrize(("exc", "status", "sentence", "headers"), TABLE)
def test_an_exception_becomes_a_response(
    exc: BaseException, status: int, sentence: str, headers: dict[str, str]
) -> None:
    assert describe(exc) == (status, sentence, headers)
    assert is_expected(exc) == (status != 500)


@pytest.mark.parametrize(
    ("exc", "sentence"),
    [
        (ValueError("text"), "ValueError : text"),
        (ExceptionGroup("g", [ValueError("text")]), "ValueError : text"),
        (InvalidInput("x"), "x"),
        (HookMissing("x"), "x"),
        (NotImplementedError("x"), "NotImplementedError : x"),
    ],
)
def test_debug_describes_the_exception(exc: BaseException, sentence: str) -> None:
    assert describe(exc, debug=True)[1] == sentence


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (InvalidInput("x"), "x"),
        (ModelNotReady("zz"), "Model with name zz is not ready."),
        (NoModelReady(["a"]), "Models with name a are not ready."),
        (ModelMissingError("/mnt"), "Could not find a model at /mnt."),
        (WorkersShouldBeLessThanMaxWorkersError(4), "The number of workers must not exceed 4."),
    ],
)
def test_an_exception_prints_its_sentence(exc: Exception, text: str) -> None:
    assert str(exc) == text
    assert exc.args == (text,)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (InvalidInput, ValueError),
        (InferenceError, RuntimeError),
        (ServerNotReady, RuntimeError),
        (ServerNotLive, RuntimeError),
        (ModelNotReady, ServerNotReady),
        (ModelNotFound, RouteNotFound),
        (NestedTooDeep, InferenceError),
        (ClientGone, Stopped),
        (DeadlineExceeded, Stopped),
        (ServerShuttingDown, Stopped),
    ],
)
def test_an_exception_is_caught_by_its_family(kind: type, also: type) -> None:
    assert issubclass(kind, also)
    assert issubclass(kind, ServingError)


@pytest.mark.parametrize(
    "kind", [ResponseCut, LoadError, ModelMissingError, WorkersShouldBeLessThanMaxWorkersError]
)
def test_what_becomes_no_response_is_no_serving_error(kind: type) -> None:
    assert not issubclass(kind, ServingError)


def test_each_reason_for_an_early_end_has_an_outcome() -> None:
    outcomes = [kind.outcome for kind in (ClientGone, DeadlineExceeded, ServerShuttingDown)]
    assert outcomes == ["disconnected", "timeout", "shutdown"]


def test_debug_details_are_kept() -> None:
    assert InferenceError("x", debug_details={"a": 1}).debug_details == {"a": 1}


def test_only_groups_of_one_are_unwrapped() -> None:
    exc = ValueError()
    two = ExceptionGroup("g", [exc, KeyError()])
    assert single_cause(exc) is exc
    assert single_cause(two) is two


def test_an_error_of_the_predictor_has_its_status_and_headers() -> None:
    error = PredictorError("The predictor is busy.", 503, {"retry-after": "3"})
    assert describe(error) == (503, "The predictor is busy.", {"retry-after": "3"})
    assert describe(PredictorError("Failed.", 200)) == (500, "Failed.", {})


def test_an_invalid_parameter_names_it() -> None:
    error = InvalidParameter("stream", "a boolean")
    assert describe(error) == (400, 'Expected "stream" to be a boolean', {})
    assert error.param == "stream"


def test_the_tree_in_the_docstring_is_complete() -> None:
    tree = str(errors.__doc__)
    kinds = [
        (name, kind)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    ]
    assert kinds
    for name, kind in kinds:
        lines = [line for line in tree.splitlines() if name in line.replace("+--", "").split()]
        assert lines, f"{name} is not in the tree"
        status = kind.__dict__.get("status")
        assert status is None or str(status) in lines[0], f"{name} has another status in the tree"


# --- as responses -------------------------------------------------------------------------------


def raising(exc: BaseException, **options: Any) -> ModelServer:
    async def predict(payload: Any) -> Any:
        raise exc

    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("exc", "status", "body"),
    [
        (InvalidInput("x"), 400, {"error": "x"}),
        (InferenceError("x"), 500, {"error": "x"}),
        (UnsupportedProtocol("v9"), 501, {"error": "Unsupported protocol v9."}),
        (NotImplementedError("x"), 500, {"error": "Internal Server Error"}),
        (HTTPException(403, "x"), 403, {"error": "x"}),
        (ValueError("secret"), 500, {"error": "Internal Server Error"}),
        (InvalidInput("ä\n\0"), 400, {"error": "ä\n\0"}),
        (HTTPException(403, {"a": 1}), 403, {"error": {"a": 1}}),  # type: ignore[arg-type]
    ],
)
async def test_an_error_response_has_one_shape(exc: Exception, status: int, body: Any) -> None:
    response = await request(raising(exc), *PREDICT, json=[])
    assert (response.status, response.json()) == (status, body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(response.body))


@pytest.mark.anyio
async def test_debug_shows_clients_the_text() -> None:
    response = await request(raising(ValueError("text"), debug=True), *PREDICT, json=[])
    assert (response.status, response.json()) == (500, {"error": "ValueError : text"})


@pytest.mark.anyio
async def test_headers_of_an_error_are_sent() -> None:
    exc = HTTPException(
        429, headers={"Retry-After": "9", "Content-Type": "x/y", "Content-Length": "1"}
    )
    response = await request(raising(exc), *PREDICT, json=[])
    assert response.headers["retry-after"] == "9"
    assert response.headers.getlist("content-type") == ["application/json"]
    assert response.headers.getlist("content-length") == [str(len(response.body))]


@pytest.mark.anyio
async def test_an_invalid_header_of_an_error_is_left_out() -> None:
    response = await request(raising(Broken("x")), *PREDICT, json=[])
    assert (response.status, response.json()) == (500, {"error": "x"})
    assert "bad name" not in response.headers


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{"retry-after": 9}, {"x": None}, {"x": "€"}])
async def test_header_values_that_are_not_text_do_not_break_the_response(headers: Any) -> None:
    response = await request(raising(HTTPException(429, "x", headers)), *PREDICT, json=[])
    assert (response.status, response.json()) == (429, {"error": "x"})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reason", "sentence"), [(ValueError("bad"), "bad"), (42, "42"), (["a"], "['a']")]
)
async def test_a_reason_that_is_not_text_becomes_text(reason: Any, sentence: str) -> None:
    """`raise InvalidInput(exc)` is a likely mistake."""
    response = await request(raising(InvalidInput(reason)), *PREDICT, json=[])
    assert (response.status, response.json()) == (400, {"error": sentence})


@pytest.mark.anyio
async def test_a_reason_that_is_not_unicode_does_not_break_the_response() -> None:
    """Text read with `surrogateescape`, such as the name of a file, has lone surrogates."""
    response = await request(raising(InvalidInput("name \udcff")), *PREDICT, json=[])
    assert response.status == 400
    assert response.json()["error"].startswith("name ")


@pytest.mark.anyio
async def test_an_unexpected_failure_is_logged_once_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = {"x-request-id": "abc"}
    await request(raising(ValueError("secret")), *PREDICT, json=[], headers=headers)
    (record,) = caplog.records
    assert "abc" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


@pytest.mark.anyio
@pytest.mark.parametrize("exc", [InvalidInput("x"), UnsupportedProtocol("x"), HTTPException(403)])
async def test_a_deliberate_response_is_not_logged(
    exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await request(raising(exc), *PREDICT, json=[])
    assert caplog.records == []


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["predict", "explain"])
async def test_a_hook_that_the_model_does_not_have_is_not_implemented(
    verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer([Model("m")])
    response = await request(app, "POST", f"/v1/models/m:{verb}", json=[])
    sentence = f"Model m does not implement {verb}."
    assert (response.status, response.json()) == (501, {"error": sentence})
    assert caplog.records == []


@pytest.mark.anyio
async def test_a_hook_of_the_model_that_is_not_implemented_further_down_is_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """torch raises NotImplementedError where a device has no kernel for an operation."""
    response = await request(raising(NotImplementedError("secret")), *PREDICT, json=[])
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


def test_an_exception_without_a_text_is_described_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert describe(Mute(), debug=True)[:2] == (500, "Mute : it has no text")


class Careless(ServingError):
    """It does not call `super().__init__()`."""

    status = 422

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class CarelessToo(HTTPException):
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (Careless(), (422, "", {})),
        (Careless(reason="no", retry_after="5"), (422, "no", {"retry-after": "5"})),
        (Careless(retry_after="soon"), (422, "", {})),
        (Careless(retry_after=float("inf")), (422, "", {})),
        (Careless(status=http.HTTPStatus.CONFLICT), (409, "", {})),
        *[(Careless(status=status), (500, "", {})) for status in (200, "400", None)],
        (CarelessToo(), (500, "", {})),
        *[(CarelessToo(status_code=status), (500, "", {})) for status in (200, "400", None)],
        (CarelessToo(status_code=409, detail="no", headers={"a": "b"}), (409, "no", {"a": "b"})),
    ],
)
def test_exceptions_of_careless_classes_are_described(error: Exception, described: Any) -> None:
    assert describe(error) == described


def test_an_exception_that_looks_up_what_it_lacks_in_its_cause_has_its_reason() -> None:
    class OfAnotherProcess(InvalidInput):  # as Ray's exceptions of a task are made
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

        def __getattr__(self, name: str) -> object:
            return getattr(self.cause, name)

    assert describe(OfAnotherProcess(InvalidInput("why")))[:2] == (400, "why")
