"""What is said of values that JSON does not have."""

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image

from modelserve import ModelServer, Upload
from modelserve.testing import request
from modelserve.wire.json import to_json


class Plain:
    def __init__(self) -> None:
        self.a = 1


class Slotted:
    __slots__ = ()


class Converts:
    def to_dict(self) -> dict[str, int]:
        return {}


async def async_numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "name", "remedy"),
    [
        (b"a", "bytes", "Return bytes alone, not inside of another value, or base64.b64encode(value).decode()."),
        ({1}, "set", "Return list(value)."),
        (1j, "complex", "Return [value.real, value.imag]."),
        (ValueError("x"), "ValueError", "Return str(value), or raise it."),
        (Plain, "type", "Return an instance of it, or its __name__."),
        ((n for n in ()), "generator", "Return it alone to stream it, or list(value)."),
        (async_numbers(), "async_generator", "Return it alone to stream it, or [item async for item in value]."),
        (io.BytesIO(), "BytesIO of _io", "Return what value.read() returns, alone if it is bytes."),
        (Upload(io.BytesIO()), "Upload of modelserve.exchange.uploads", "Return what value.read() returns, alone if it is bytes."),
        (Image.new("L", (1, 1)), "Image of PIL.Image", "Save it to an io.BytesIO and return its bytes, alone."),
        (len, "builtin_function_or_method", "Return what it returns."),
        (Converts(), f"Converts of {__name__}", "Return value.to_dict()."),
        (Plain(), f"Plain of {__name__}", "Return a dict of what is in it: vars(value)."),
        (Slotted(), f"Slotted of {__name__}", "Return what JSON has: dict, list, str, numbers, True, False or None."),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"a": [value]}, lambda value: [2**70, value]]
)
def test_the_error_names_the_type_and_what_to_return(
    value: Any, name: str, remedy: str, wrap: Any
) -> None:
    with pytest.raises(TypeError) as failed:
        to_json(wrap(value))
    assert str(failed.value) == f"Type is not JSON serializable: {name}. {remedy}"


@pytest.mark.parametrize(
    ("key", "name"), [((1, 2), "tuple"), (Plain(), f"Plain of {__name__}"), (b"a", "bytes")]
)
def test_the_error_names_a_key(key: Any, name: str) -> None:
    with pytest.raises(TypeError) as failed:
        to_json({key: 1})
    assert str(failed.value) == (
        f"Dict key is not JSON serializable: {name}. Use text, numbers, dates or enums as keys."
    )


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [False, True])
async def test_the_log_says_it_and_the_client_does_not(
    streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def predict(payload: Any) -> Any:
        return {"image": b"a"}

    async def items(payload: Any) -> AsyncIterator[Any]:
        yield {"image": b"a"}

    app = ModelServer()
    app.add_model(items if streams else predict, "m")
    response = await request(app, "POST", "/v1/models/m:predict", json=[])
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})
    [record] = caplog.records
    assert "bytes. Return bytes alone" in caplog.text
    assert record.exc_info is not None
