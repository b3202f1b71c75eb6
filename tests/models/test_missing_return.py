"""A hook without a `return` is told of, once."""

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio.lowlevel
import pytest

from modelserve import Model, ModelServer
from modelserve.models.missing_return import returns_nothing
from modelserve.testing import request


def forgets(payload: Any) -> Any:
    payload["instances"].append(1)


async def forgets_async(payload: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    if payload:
        result = [payload]
        result.append(1)


def forgets_with_functions_inside(payload: Any) -> Any:
    def inner() -> int:
        return 1

    class Inner:
        def method(self) -> int:
            return 2

    [inner() for _ in (lambda: 3, Inner)]


def returns_early(payload: Any) -> Any:
    if payload:
        return
    payload.append(1)


def returns_none(payload: Any) -> Any:
    return None


def returns_sometimes(payload: Any) -> Any:
    if payload is None:
        return {"a": 1}


async def returns(payload: Any) -> Any:
    return payload


def yields(payload: Any) -> Iterator[int]:
    yield 1


async def yields_async(payload: Any) -> AsyncIterator[int]:
    yield 1


def raises(payload: Any) -> Any:
    raise ValueError


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class Forgets:
    def predict(self, payload: Any) -> Any:
        self.last = payload

    def __call__(self, payload: Any) -> Any:
        self.last = payload


@pytest.mark.parametrize(
    ("function", "nothing"),
    [
        (forgets, True),
        (forgets_async, True),
        (forgets_with_functions_inside, True),
        (decorated(forgets), True),
        (Forgets().predict, True),
        (returns_early, True),  # its source says that it is meant
        (returns_none, True),
        (returns_sometimes, False),
        (returns, False),
        (yields, False),
        (yields_async, False),
        (lambda payload: None, False),
        (decorated(returns_sometimes), False),
        (print, False),
        (5, False),
    ],
)
def test_which_functions_can_return_only_none(function: Any, nothing: bool) -> None:
    assert returns_nothing(function) is nothing


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r for r in caplog.records if "returned None" in r.getMessage()]
    assert all((r.name, r.levelno) == ("modelserve", logging.WARNING) for r in found)
    return [record.getMessage() for record in found]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "hook", [forgets, forgets_async, forgets_with_functions_inside, decorated(forgets), Forgets(), Forgets]
)  # fmt: skip
async def test_a_forgotten_return_is_logged_once(
    hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer()
    app.add_model(hook, "m")
    for _ in range(3):
        response = await request(app, "POST", "/v1/models/m:predict", json={"instances": []})
        assert (response.status, response.json()) == (200, None)
    assert notes(caplog) == [
        "predict of model 'm' returned None: it has no `return`. Is one missing?"
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "hook", [returns_early, returns_none, returns_sometimes, lambda payload: None, yields]
)
async def test_what_is_meant_to_be_none_is_not_logged(
    hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer()
    app.add_model(hook, "m")
    response = await request(app, "POST", "/v1/models/m:predict", json={"instances": [1]})
    assert response.status == 200
    assert notes(caplog) == []


@pytest.mark.anyio
async def test_a_hook_of_two_verbs_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Prepares(Model):
        def preprocess(self, payload: Any) -> Any:
            payload["instances"] = []

        def predict(self, payload: Any) -> Any:
            return {"predictions": payload}

        explain = predict

    app = ModelServer([Prepares("m"), Prepares("n")])
    for verb in ("m:predict", "m:explain", "m:predict", "n:explain"):
        response = await request(app, "POST", f"/v1/models/{verb}", json={"instances": [1]})
        assert response.json() == {"predictions": None}
    assert [text.split(" returned")[0] for text in notes(caplog)] == [
        "preprocess of model 'm'",
        "preprocess of model 'n'",
    ]


@pytest.mark.anyio
async def test_a_hook_that_only_raises_is_what_it_was(caplog: pytest.LogCaptureFixture) -> None:
    app = ModelServer()
    app.add_model(raises, "m")
    response = await request(app, "POST", "/v1/models/m:predict", json={"instances": [1]})
    assert response.status == 500
    assert notes(caplog) == []
