"""Response headers: what a model has set, and what can be sent."""

import pytest
from starlette.datastructures import MutableHeaders

from modelserve.wire.headers import error_headers, length_header, sendable_headers


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, []),
        ({"X-A": "1"}, [(b"x-a", b"1")]),
        ({"Content-Type": "a/b"}, [(b"content-type", b"a/b")]),
        ({"x-a": " \ta b\t "}, [(b"x-a", b"a b")]),
        ({"x-a": ""}, [(b"x-a", b"")]),
        ({"set-cookie": "\u00e4"}, [(b"set-cookie", b"\xe4")]),
        ({"content-length": "9", "Connection": "close", "transfer-encoding": "x"}, []),
        ({"x-request-id": "mine", "x-b": "2"}, [(b"x-b", b"2")]),
    ],
)
def test_what_a_model_has_set(given: dict[str, str], sent: list[tuple[bytes, bytes]]) -> None:
    assert sendable_headers(MutableHeaders(given)) == sent


def test_repeated_headers_stay_repeated() -> None:
    headers = MutableHeaders()
    headers.append("set-cookie", "a=1")
    headers.append("set-cookie", "b=2")
    assert sendable_headers(headers) == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize(
    "given", [{"x": "a\nb"}, {"x": "a\rb"}, {"x": "a\0"}, {"a b": "x"}, {"": "x"}]
)
def test_what_http_cannot_carry(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="response header that cannot be sent"):
        sendable_headers(MutableHeaders(given))


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"retry-after": "1"}, [(b"retry-after", b"1")]),
        ({"Allow": "GET", "Content-Type": "text/plain"}, [(b"allow", b"GET")]),
        ({"x": "a\nb", "y": "1"}, [(b"y", b"1")]),
    ],
)
def test_the_headers_of_an_error(given: dict[str, str], sent: list[tuple[bytes, bytes]]) -> None:
    assert error_headers(given) == sent


def test_the_length_of_a_body() -> None:
    assert length_header(12) == (b"content-length", b"12")
