"""What it costs to parse a JSON body, counted by its bytes."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelserve.errors import BodyTooLarge
from modelserve.wire.cost import check_cost

MIB = 1 << 20


def is_accepted(body: bytes, limit: float) -> bool:
    try:
        check_cost(body, limit)
    except BodyTooLarge:
        return False
    return True


def slow_cost(value: Any) -> int:
    """Count as the guide says; the first value of a container is in the container's count."""
    if isinstance(value, dict):
        return 4 + sum(3 + 1 + slow_cost(item) for item in value.values()) - bool(value)
    if isinstance(value, list):
        return 2 + sum(1 + slow_cost(item) for item in value) - bool(value)
    return 0


texts = st.text(alphabet='a",:[]{}\\é\n ', max_size=6)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(values), st.booleans(), st.sampled_from([None, 1]))
@example(['"', '\\"', "\\", "\\\\", ',"', '",', "[[["], False, None)
@pytest.mark.slow
def test_what_is_counted(value: Any, ensure_ascii: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()
    assert is_accepted(body, slow_cost(value))
    assert not is_accepted(body, slow_cost(value) - 1)
    assert is_accepted(memoryview(bytearray(body)), slow_cost(value))


@pytest.mark.parametrize("size", [1 << 17, (1 << 18) + 1])
@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("text", [b"\\\\", b'\\"', b'\\\\\\"', b"a,", b"\\u002c"])
def test_texts_may_be_cut_anywhere(size: int, shift: int, text: bytes) -> None:
    inside = b"a" * shift + text * (size // len(text))
    body = b'["' + inside + b'","' + inside + b'"]'
    assert [is_accepted(body, limit) for limit in (2, 3)] == [False, True]


@pytest.mark.parametrize(
    "body", [b"", b"1,2,3,4,5,6", b'"a,b,c,d"', b"a,b\n1,2\n[3", b" \n1,[,[,[", b"text: a, b: [c]"]
)
def test_what_is_no_list_or_object_is_not_counted(body: bytes) -> None:
    check_cost(body, 0)


def test_the_sentence() -> None:
    with pytest.raises(BodyTooLarge, match=r"^The request body has more than 3 JSON values\.$"):
        check_cost(b"[1,2,3]", 3)
    check_cost(b"[1,2,3]", 4)


@pytest.mark.parametrize(
    ("body", "limit", "accepted"),
    [
        (b"[" + b"1," * (8 * MIB) + b"1]", 5e6, False),
        (b'["' + b"," * (16 * MIB) + b'"]', 5e6, True),
        (b'["' + b"\\\\" * (8 * MIB) + b'",[' + b"," * (6 * MIB) + b"]", 5e6, False),
        (b"[" + b'"",' * (6 * MIB) + b"]", 5e6, False),
        (b"[" + b'"a,b",' * (2 * MIB) + b"]", 5e6, True),
    ],
    ids=["numbers", "commas", "escapes", "quotes", "texts with a comma"],
)
def test_counting_is_fast(body: bytes, limit: float, accepted: bool, a_moment: float) -> None:
    before = time.thread_time()
    assert is_accepted(body, limit) is accepted
    assert time.thread_time() - before < 15 * a_moment
