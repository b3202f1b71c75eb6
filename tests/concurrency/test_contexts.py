"""What hooks set of context variables, for the hooks after them."""

from collections.abc import AsyncIterator, Iterator
from contextvars import Context, ContextVar
from typing import Any

import numpy as np
import pytest

from modelserve import Model, ModelServer
from modelserve.concurrency.contexts import Recorder, apply_changes
from modelserve.concurrency.threads import Workers
from modelserve.testing import request

pytestmark = pytest.mark.anyio

tenant: ContextVar[Any] = ContextVar("tenant", default="nobody")
other: ContextVar[Any] = ContextVar("other", default=0)


# --- what is set in a context -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "a"), ("a", "b"), (0, False), ([], []), (np.ones(2), "b"), (np.ones(2), np.ones(2))],
)
def test_what_was_set_is_a_change_once(before: Any, after: Any) -> None:
    context = Context()
    context.run(other.set, "same")
    context.run(tenant.set, before)
    recorder = Recorder(context)
    assert recorder.changes_in(context) == ()
    context.run(tenant.set, after)
    ((variable, value),) = recorder.changes_in(context)
    assert variable is tenant and value is after
    assert recorder.changes_in(context) == ()


@pytest.mark.parametrize(("before", "after"), [("a", "b"), (np.ones(2), np.ones(2))])
def test_what_was_set_in_the_current_context_is_a_change_once(before: Any, after: Any) -> None:
    context = Context()
    context.run(tenant.set, before)
    recorder = Recorder(context)
    assert context.run(recorder.recent_changes) == ()
    context.run(tenant.set, after)
    ((variable, value),) = context.run(recorder.recent_changes)
    assert variable is tenant and value is after
    assert context.run(recorder.recent_changes) == ()


def test_changes_are_applied_to_the_current_context() -> None:
    def apply() -> tuple[Any, Any]:
        tenant.set("before")
        apply_changes(((tenant, "after"), (other, 1)))
        return tenant.get(), other.get()

    assert Context().run(apply) == ("after", 1)


# --- between hooks ------------------------------------------------------------------------------


def bind(self: Any, payload: Any) -> Any:
    tenant.set("t7")
    return payload


async def bind_on_loop(self: Any, payload: Any) -> Any:
    return bind(self, payload)


def read(self: Any, payload: Any) -> Any:
    return {"tenant": tenant.get()}


async def read_on_loop(self: Any, payload: Any) -> Any:
    return read(self, payload)


def stream(self: Any, payload: Any) -> Iterator[Any]:
    yield read(self, payload)


async def stream_on_loop(self: Any, payload: Any) -> AsyncIterator[Any]:
    yield read(self, payload)


def returned_iterator(self: Any, payload: Any) -> Any:
    return (read(self, payload) for _ in [1])


async def iterator_returned_on_loop(self: Any, payload: Any) -> Any:
    return returned_iterator(self, payload)


def binding_stream(self: Any, payload: Any) -> Iterator[Any]:
    for number in range(200):
        tenant.set(number)
        yield number
    tenant.set("end")


async def binding_stream_on_loop(self: Any, payload: Any) -> AsyncIterator[Any]:
    for item in binding_stream(self, payload):
        yield item


def returned_binding_iterator(self: Any, payload: Any) -> Any:
    return (tenant.set(number) and number for number in range(200))


READERS = (
    read,
    read_on_loop,
    stream,
    stream_on_loop,
    returned_iterator,
    iterator_returned_on_loop,
)


@pytest.mark.parametrize("main", READERS)
@pytest.mark.parametrize("preprocess", [bind, bind_on_loop])
async def test_what_preprocess_sets_is_there_in_predict(preprocess: Any, main: Any) -> None:
    model = type("M", (Model,), {"preprocess": preprocess, "predict": main})("m")
    response = await request(ModelServer([model]), "POST", "/v1/models/m:predict", json=[])
    assert response.json() == {"tenant": "t7"}


@pytest.mark.parametrize("postprocess", [read, read_on_loop, stream, stream_on_loop])
@pytest.mark.parametrize("main", [bind, bind_on_loop])
async def test_what_explain_sets_is_there_in_postprocess(main: Any, postprocess: Any) -> None:
    model = type("M", (Model,), {"explain": main, "postprocess": postprocess})("m")
    response = await request(ModelServer([model]), "POST", "/v1/models/m:explain", json=[])
    assert response.json() == {"tenant": "t7"}


@pytest.mark.parametrize(
    "main", [binding_stream, binding_stream_on_loop, returned_binding_iterator]
)
async def test_what_a_stream_sets_is_there_with_its_item(main: Any) -> None:
    """A thread works ahead, so that it may have set later values already."""

    async def compare(self: Any, result: Any) -> AsyncIterator[Any]:
        async for item in result:
            assert tenant.get() == item
            yield item
        yield tenant.get()

    model = type("M", (Model,), {"predict": main, "postprocess": compare})("m")
    accept = {"accept": "application/json"}
    app = ModelServer([model])
    response = await request(app, "POST", "/v1/models/m:predict", json=[], headers=accept)
    last = 199 if main is returned_binding_iterator else "end"
    assert response.json() == {"predictions": [*range(200), last]}


async def test_what_the_reader_of_a_stream_sets_stays_set() -> None:
    def items() -> Iterator[int]:
        for number in range(3):
            other.set(number)
            yield number

    async def mark(self: Any, result: Any) -> AsyncIterator[Any]:
        async for item in result:
            yield [tenant.get(), item, other.get()]
            tenant.set("mine")

    model = type("M", (Model,), {"predict": lambda self, payload: items(), "postprocess": mark})(
        "m"
    )
    accept = {"accept": "application/json"}
    app = ModelServer([model])
    response = await request(app, "POST", "/v1/models/m:predict", json=[], headers=accept)
    assert response.json() == {"predictions": [["nobody", 0, 0], ["mine", 1, 1], ["mine", 2, 2]]}


async def test_the_next_request_has_its_own() -> None:
    model = type("M", (Model,), {"preprocess": bind, "predict": read})("m")
    reading = type("M", (Model,), {"predict": read})("n")
    app = ModelServer([model, reading])
    await request(app, "POST", "/v1/models/m:predict", json=[])
    response = await request(app, "POST", "/v1/models/n:predict", json=[])
    assert response.json() == {"tenant": "nobody"}


async def test_what_a_failed_call_has_set_is_forgotten() -> None:
    def fails() -> None:
        tenant.set("t7")
        raise ValueError

    tenant.set("mine")
    with pytest.raises(ValueError):
        await Workers(1).call_hook("m", fails)
    assert tenant.get() == "mine"


async def test_a_call_that_is_no_hooks_has_a_copy() -> None:
    tenant.set("mine")
    await Workers(1).call("m", tenant.set, "t7")
    assert tenant.get() == "mine"
