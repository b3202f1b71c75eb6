"""Lines of a streamed body, however its pieces are cut."""

import math
from typing import Any

import pytest

from modelserve.wire.lines import BLANK, BadLine, Lines, Pieces


def parsed(body: bytes, cuts: tuple[int, ...] = (), limit: float = math.inf) -> list[Any]:
    lines = Lines(limit)
    records: list[bytes] = []
    for start, end in zip((0, *cuts), (*cuts, len(body)), strict=True):
        records += lines.feed(body[start:end])
    return lines.parse(records + lines.finish())[0]


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", []),
        (b"1", [1]),
        (b"1\n", [1]),
        (b'{"a": 1}\r\n[2]\r\n', [{"a": 1}, [2]]),
        (b"null\nfalse\n", [None, False]),
        (b"\n1\n \n2", [BLANK, 1, BLANK, 2]),
        ('"é"\n'.encode(), ["é"]),
        (b'"a\\nb"\n', ["a\nb"]),
        (b"1,2\n[3\n4]\n", [BadLine, BadLine, BadLine]),
        (b'"\xff"\n1', [BadLine, 1]),
        (b"NaN\n", [BadLine]),
        (b"\xef\xbb\xbf1\r\n2", [1, 2]),
        (b"\xef\xbb\xbf\n\xef\xbb\xbfx", [BLANK, BadLine]),
    ],
)
def test_every_cut_gives_the_same_lines(body: bytes, values: list[Any]) -> None:
    cuts: list[tuple[int, ...]] = [(), tuple(range(1, len(body)))]
    cuts += [(one, other) for one in range(len(body)) for other in range(one, len(body))]
    for cut in cuts:
        found = parsed(body, cut)
        assert len(found) == len(values)
        for value, expected in zip(found, values, strict=True):
            if expected is BadLine:
                assert type(value) is BadLine and value.error.startswith("not JSON: ")
            else:
                assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_a_line_over_the_limit_is_skipped_wherever_it_is_cut(limit: int) -> None:
    body = b"1\n12345678\n[22]\n123456789"
    short: Any = [22] if limit > 3 else BadLine(f"longer than {limit} bytes")
    expected = [1, BadLine(f"longer than {limit} bytes"), short]
    expected.append(BadLine(f"longer than {limit} bytes"))
    for one in range(len(body)):
        for other in range(one, len(body)):
            assert parsed(body, (one, other), limit) == expected
    assert parsed(body, tuple(range(1, len(body))), limit) == expected


def test_a_long_line_is_not_kept() -> None:
    lines = Lines(100)
    for _ in range(1000):
        assert lines.feed(b"x" * 64) == []
    assert len(lines._rest) <= 100  # nothing public shows it
    assert lines.parse(lines.feed(b"\n1\n"))[0] == [BadLine("longer than 100 bytes"), 1]


def test_what_is_wrong_with_a_line_names_the_column() -> None:
    (bad,) = parsed(b'{"a": tru}')
    assert bad.error.startswith("not JSON: ") and bad.error.endswith("(column 7)")


def test_lines_that_are_all_instances_are_regular() -> None:
    lines = Lines(math.inf)
    assert lines.parse([b"1", b"2"]) == ([1, 2], True)
    assert lines.parse([b"1", b""]) == ([1, BLANK], False)


def test_pieces_stay_as_they_are() -> None:
    pieces = Pieces()
    assert pieces.feed(b"") == []
    assert pieces.feed(b"a\nb") == [b"a\nb"]
    assert pieces.finish() == []
    assert pieces.parse([b"1", b"x"]) == ([b"1", b"x"], True)
