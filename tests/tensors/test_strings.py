"""Elements of BYTES in binary form: counted, split and joined."""

import struct
import time
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelserve.tensors.elements import Misfit
from modelserve.tensors.strings import count_strings, join_strings, split_strings

MIB = 1 << 20


def packed(lengths: Iterable[int]) -> bytes:
    return b"".join(struct.pack("<I", length) + b"x" * length for length in lengths)


runs = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 1, 2, 5, 255, 256, 300])))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(runs, st.integers(0, 7), st.binary(max_size=6), st.integers(0, 700))
@example([(64, 0)], 0, b"", 64)
@example([(5000, 0), (1, 1), (5000, 3)], 0, b"", 10_000)
@pytest.mark.slow
def test_the_count_is_that_of_the_elements(
    runs: list[tuple[int, int]], cut: int, more: bytes, most: int
) -> None:
    lengths = [length for count, length in runs for _ in range(count)]
    raw = packed(lengths)
    raw = raw[: len(raw) - cut] + more
    try:
        expected = min(len(split_strings(memoryview(raw))), most + 1)
    except Misfit as exc:
        index = int(str(exc).split()[-1])
        if index <= most:
            with pytest.raises(Misfit, match=f"inside element {index}$"):
                count_strings(memoryview(raw), most)
            return
        expected = most + 1
    assert count_strings(memoryview(raw), most) == expected


def test_what_is_joined_is_split_again() -> None:
    elements = [b"", b"a", b"\0" * 300, "ä".encode()]
    assert split_strings(memoryview(join_strings(elements))) == elements
    assert join_strings(["a", 5]) == packed([1]).replace(b"x", b"a") + packed([1]).replace(
        b"x", b"5"
    )


@pytest.mark.parametrize(
    "raw",
    [
        bytes(32 * MIB),
        packed([1]) * (8 * MIB // 5),
        packed([0] * 100 + [1] * 100) * (8 * MIB // 900),
        packed([0, 1]) * (4 * MIB // 9),
        packed([0, 0, 1]) * (4 * MIB // 13),
    ],
    ids=["nothing", "ones", "short runs", "by turns", "two and one"],
)
@pytest.mark.slow
def test_many_short_elements_are_counted_fast(raw: bytes, a_moment: float) -> None:
    before = time.thread_time()
    count_strings(memoryview(raw), len(raw))
    assert time.thread_time() - before < 25 * a_moment


def test_counting_stops_where_there_are_too_many(a_moment: float) -> None:
    raw = memoryview(bytes(64 * MIB))
    before = time.thread_time()
    assert count_strings(raw, 1000) == 1001
    assert time.thread_time() - before < 2 * a_moment
