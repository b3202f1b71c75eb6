"""JSON, read and written."""

import dataclasses
import datetime
import enum
import json
import math
import uuid
from typing import Any, NamedTuple

import numpy as np
import pytest

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.wire.json import error_document, parse_json, to_json


@dataclasses.dataclass
class Point:
    x: int


class Pair(NamedTuple):
    a: int
    b: int


class Color(enum.Enum):
    RED = "red"


class Tensor:
    """A tensor of a library that orjson does not know."""

    def tolist(self) -> list[float]:
        return [1.0, 2.0]


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


JSON_VALUES: list[tuple[Any, bytes]] = [
    (None, b"null"),
    (True, b"true"),
    (0, b"0"),
    (-1.5, b"-1.5"),
    (float("nan"), b"null"),
    (float("inf"), b"null"),
    ("ä\n", '"ä\\n"'.encode()),
    ([], b"[]"),
    ({}, b"{}"),
    ((1, "a"), b'[1,"a"]'),
    ({"a": {"b": [1]}}, b'{"a":{"b":[1]}}'),
    ({1: 2}, b'{"1":2}'),
    ({None: 1, True: 2}, b'{"null":1,"true":2}'),
    (Point(1), b'{"x":1}'),
    ({"p": Point(1)}, b'{"p":{"x":1}}'),
    (Color.RED, b'"red"'),
    (datetime.date(2026, 1, 2), b'"2026-01-02"'),
    (datetime.datetime(2026, 1, 2, 3, 4, 5), b'"2026-01-02T03:04:05"'),
    (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
    (np.float32(1.5), b"1.5"),
    (np.int64(7), b"7"),
    (np.bool_(True), b"true"),
    (np.array([[1, 2], [3, 4]]), b"[[1,2],[3,4]]"),
    (np.array([[1, 2], [3, 4]]).T, b"[[1,3],[2,4]]"),
    (np.array([1.0, np.nan]), b"[1.0,null]"),
    (np.array(["a", "b"]), b'["a","b"]'),
    (np.array([]), b"[]"),
    (np.str_("a"), b'"a"'),
    (Tensor(), b"[1.0,2.0]"),
    ({"t": [Tensor()]}, b'{"t":[[1.0,2.0]]}'),
    # beyond 64 bits the standard library writes, and has to know the same
    (1 << 64, b"18446744073709551616"),
    ({"n": -(1 << 70), 1: Point(2)}, b'{"n":-1180591620717411303424,"1":{"x":2}}'),
    ([Point(1 << 70)], b'[{"x":1180591620717411303424}]'),
    ([1 << 70, np.array([1.0, np.nan])], b"[1180591620717411303424,[1.0,null]]"),
    ([1 << 70, np.float32("nan")], b"[1180591620717411303424,null]"),
    ([1 << 64, datetime.date(2026, 1, 2)], b'[18446744073709551616,"2026-01-02"]'),
    ([1 << 64, (math.nan, {"a": math.inf})], b'[18446744073709551616,[null,{"a":null}]]'),
    ([1 << 64, np.array([1, 2])], b"[18446744073709551616,[1,2]]"),
]


@pytest.mark.parametrize(("value", "written"), JSON_VALUES)
def test_json_is_compact_and_takes_what_models_return(value: Any, written: bytes) -> None:
    assert to_json(value) == written


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, b"x", {1, 2}, 1j, "\ud800", Pair, {(1,): 2}]
)
def test_json_refuses_what_it_cannot_hold(value: Any) -> None:
    with pytest.raises(TypeError):
        to_json(value)


@pytest.mark.parametrize("levels", [1, 253, 254, 255, 400, 800])
def test_json_is_written_deeper_than_orjson_writes(levels: int) -> None:
    assert json.loads(to_json(nested(levels))) == nested(levels)


@pytest.mark.parametrize("factor", [1, 10])
def test_json_too_deep_is_an_error(factor: int, too_deep: int) -> None:
    with pytest.raises(NestedTooDeep):
        to_json(nested(too_deep * factor))


def test_json_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises((TypeError, ValueError, NestedTooDeep)):
        to_json(value)


@pytest.mark.parametrize("tail", [{1: "a"}, Tensor(), "ä"])
def test_deep_json_keeps_its_meaning(tail: Any) -> None:
    flat = json.loads(to_json([tail]))
    value = json.loads(to_json([nested(300), tail]))
    assert value[1:] == flat


@pytest.mark.parametrize("body", [b'{"a":[1]}', bytearray(b'{"a":[1]}'), b' {"a" : [1]}\n'])
def test_a_body_is_parsed(body: bytes) -> None:
    assert parse_json(body) == {"a": [1]}


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"\xff", b"[" * 2000])
def test_a_body_that_is_no_json_is_the_clients_fault(body: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format: .+"):
        parse_json(body)


@pytest.mark.parametrize(
    ("sentence", "document"),
    [
        ("no", b'{"error":"no"}'),
        ("", b'{"error":""}'),
        ("\u00e4", b'{"error":"\xc3\xa4"}'),
        ('a "b"\n', b'{"error":"a \\"b\\"\\n"}'),
        ("a\ud800", b'{"error":"a?"}'),
        ({"field": "age", "max": 130}, b'{"error":{"field":"age","max":130}}'),
        ([{"loc": ["age"]}], b'{"error":[{"loc":["age"]}]}'),
        (
            {"at": datetime.date(2026, 1, 2), "n": np.int64(1)},
            b'{"error":{"at":"2026-01-02","n":1}}',
        ),
        (5, b'{"error":5}'),
        ({"a": b"x"}, b"{\"error\":\"{'a': b'x'}\"}"),
    ],
)
def test_the_document_of_an_error(sentence: Any, document: bytes) -> None:
    assert error_document(sentence) == document
