"""The messages of a WebSocket: how they are parsed, and how items become messages."""

from typing import Any

import pytest

from modelserve import ServerSentEvent
from modelserve.wire.lines import BadLine
from modelserve.wire.messages import (
    MESSAGES,
    Messages,
    as_message,
    close_reason,
    status_of,
)


@pytest.mark.parametrize("message", ["", b""])
def test_an_empty_message_is_none(message: Any) -> None:
    assert Messages(10, 10).feed(message) == []


def test_messages_are_parsed_one_by_one() -> None:
    cutter = Messages(10, 5)
    records = [*cutter.feed('{"a":1}'), *cutter.feed(b"\xff\x00"), *cutter.feed('"é"')]
    assert cutter.finish() == []
    assert cutter.parse(records) == ([{"a": 1}, b"\xff\x00", "é"], True)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("nope", "not JSON: "),
        (" ", "not JSON: "),
        ('"12345678é"', "longer than 10 bytes"),
        (b"123456", "longer than 5 bytes"),
    ],
)
def test_a_message_that_is_no_instance_says_why(message: Any, error: str) -> None:
    [bad], is_regular = Messages(10, 5).parse([message])
    assert isinstance(bad, BadLine) and bad.error.startswith(error)
    assert not is_regular


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"a": 1}, '{"a":1}'),
        ({1: float("nan")}, '{"1":null}'),
        ("text", '"text"'),
        ([1], "[1]"),
        (None, "null"),
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (b"", b""),
        (ServerSentEvent({"a": 1}, event="e"), '{"a":1}'),
        (ServerSentEvent(b"\xff"), b"\xff"),
    ],
)
def test_bytes_are_binary_and_all_else_is_json(item: Any, message: Any) -> None:
    found = as_message(item)
    assert (type(found), found) == (type(message), message)


def test_a_failure_has_its_status() -> None:
    assert MESSAGES.failure is not None
    assert status_of(MESSAGES.failure(429, "busy")) == (429, b'{"error":"busy"}')


def test_an_item_that_no_message_can_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        as_message(object())


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b'{"error":"busy"}', "busy"),
        (b'{"error":{"a":1}}', '{"a":1}'),
        (b'{"error":"' + b"x" * 200 + b'"}', "x" * 123),
        ('{"error":"' + "é" * 100 + '"}', "é" * 61),
    ],
)
@pytest.mark.slow
def test_a_close_reason_fits_into_its_frame(document: Any, reason: str) -> None:
    assert close_reason(document) == reason
