"""What it costs to parse a JSON body, told from its bytes before it is parsed. Pure.

A parser holds the interpreter's lock from the beginning to the end, and makes an object of each
value: a body of a few MiB can hold everybody up for seconds, and take forty times its size. So the
values are counted first, by the characters that stand between them, which is a hundred times
faster. A number or a text counts as one value, a list as two, a key as three and an object as four,
which is about what they cost beside a number.
"""

from collections.abc import Iterator
from typing import Final

from modelserve.errors import BodyTooLarge
from modelserve.wire.headers import Body

__all__ = ["MOST_A_BYTE", "check_cost"]

MOST_A_BYTE: Final = 4  # no body has more values than this times its bytes
_KEY: Final = 3
_LIST: Final = 2
_OBJECT: Final = 4
_SPACE: Final = b" \t\r\n"
_MARKS: Final = b'",:[{'
_NO_MARKS: Final = bytes(set(range(256)) - set(_MARKS))
_PIECE: Final = 1 << 17


def check_cost(body: Body, limit: float) -> None:
    """Raise BodyTooLarge for JSON of more values than the limit. The body need not be JSON.

    What stands in texts does not count. The time is about 1 ms for each MiB; where texts hold so
    many commas that they have to be told apart, ten times that.
    """
    if len(body) * MOST_A_BYTE <= limit:
        return
    if isinstance(body, memoryview):
        body = bytes(body)
    # What begins otherwise is one value, or no JSON: the parser sees that at once.
    if _count(body) <= limit or not body.lstrip(_SPACE).startswith((b"[", b"{")):
        return
    if _count_outside_texts(body, limit) > limit:
        raise BodyTooLarge(f"The request body has more than {limit:.0f} JSON values.")


def _count(body: bytes | bytearray) -> int:
    containers = _LIST * body.count(b"[") + _OBJECT * body.count(b"{")
    return body.count(b",") + _KEY * body.count(b":") + containers


def _count_outside_texts(body: bytes | bytearray, limit: float) -> int:
    """Return the count without the marks in texts; stop where it exceeds the limit.

    It goes piece by piece, so that others get their turn where this is a thread.
    """
    count, is_inside = 0, False
    for piece in _pieces(body):
        # An escaped quote ends no text. Of two quotes without a mark between them, neither tells
        # whether a mark is in a text.
        unescaped = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = unescaped.translate(None, _NO_MARKS).replace(b'""', b"").split(b'"')
        count += _count(b"".join(parts[is_inside::2]))
        if count > limit:
            break
        is_inside ^= len(parts) % 2 == 0
    return count


def _pieces(body: bytes | bytearray) -> Iterator[bytes | bytearray]:
    """Yield the parts of a body, of which none begins inside an escape."""
    start = 0
    while start < len(body):
        end = start + _PIECE
        piece = body[start:end]
        end += (len(piece) - len(piece.rstrip(b"\\"))) % 2
        yield body[start:end]
        start = end
