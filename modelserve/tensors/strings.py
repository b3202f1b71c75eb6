"""The elements of BYTES in binary form, `<u32 length><bytes>` each: counted, split, joined. Pure.

The start of an element is known only after reading all lengths before it. Runs of elements with
equal lengths are read together, so that millions of empty elements need no loop.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from modelserve.tensors.elements import Misfit

__all__ = ["count_strings", "join_strings", "span_strings", "split_strings"]

_LENGTH: Final = struct.Struct("<I")
_length_at: Final = _LENGTH.unpack_from
# How many elements are read one by one before a run of equal lengths is looked for again; and how
# many of a run are compared at a time, in a few milliseconds at most.
_FEW: Final = 64
_MANY: Final = 4096
_A_WINDOW: Final = 1 << 18


def count_strings(raw: memoryview, most: int) -> int:
    """Return the number of elements, or `most` + 1 if there are more.

    Raises Misfit for data that ends inside one of these.
    """
    end = count = 0
    steps = _FEW
    while end < len(raw) and count <= most:
        run, end = _run(raw, end, most + 1 - count)
        # If there are no runs, they are looked for less and less often.
        steps = _FEW if run >= _FEW else min(2 * steps, _MANY)
        walked, end = _walk(raw, end, min(steps, most + 1 - count - run))
        count += run + walked
    if end > len(raw):
        raise _cut_short(count - 1)
    return count


def split_strings(raw: memoryview) -> list[bytes]:
    """Return the elements. Raises Misfit for data that ends inside one."""
    return [bytes(raw[start:end]) for start, end in span_strings(raw)]


def join_strings(values: Iterable[Any]) -> bytes:
    """Return elements in binary form: bytes, str, or anything with a `str`."""
    elements = [item if isinstance(item, bytes) else str(item).encode() for item in values]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(item)), item) for item in elements))


def _run(raw: memoryview, end: int, most: int) -> tuple[int, int]:
    """Skip at most `most` elements that have the length of the next one.

    Return how many there were, and where they end.
    """
    found, window = 0, _FEW
    head = bytes(raw[end : end + _LENGTH.size])
    if len(head) < _LENGTH.size:
        return 0, end
    stride = _LENGTH.size + _length_at(head)[0]
    while window := min(window, most - found, (len(raw) - end) // stride):
        lengths = raw[end : end + window * stride]
        columns = [lengths[part::stride].tobytes() for part in range(_LENGTH.size)]
        alike = [len(column.lstrip(head[n : n + 1])) for n, column in enumerate(columns)]
        same = window - max(alike)
        found, end = found + same, end + same * stride
        if same < window:
            break
        window = min(4 * window, _A_WINDOW)
    return found, end


def _walk(raw: memoryview, end: int, steps: int) -> tuple[int, int]:
    """Skip so many elements, one by one; return how many there were, and where they end.

    The last one may end after the data does.
    """
    size = len(raw)
    for done in range(steps):
        if end >= size:
            return done, end
        if size - end < _LENGTH.size:
            return done + 1, size + 1
        end += _LENGTH.size + _length_at(raw, end)[0]
    return steps, end


def span_strings(raw: memoryview) -> Iterator[tuple[int, int]]:
    """Yield where each element starts and ends."""
    end, index = 0, 0
    while end < len(raw):
        start = end + _LENGTH.size
        if start <= len(raw):
            end = start + _length_at(raw, end)[0]
        if start > len(raw) or end > len(raw):
            raise _cut_short(index)
        yield start, end
        index += 1


def _cut_short(index: int) -> Misfit:
    return Misfit(f"has binary data that ends inside element {index}")
