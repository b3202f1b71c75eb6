"""Content codings and the size of a body."""

import gzip
import math
import zlib

import pytest

from modelserve.errors import BodyTooLarge, InvalidInput, UnsupportedCoding
from modelserve.wire.coding import check_length, decompressed

GZIP = gzip.compress(b"[1]")


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (GZIP, b"gzip"),
        (bytearray(GZIP), b" X-GZIP "),
        (zlib.compress(b"[1]"), b"deflate"),
        (b"[1]", b"identity"),
        (b"[1]", b""),
    ],
)
@pytest.mark.parametrize("limit", [3, math.inf])
def test_a_coding_is_undone(body: bytes, coding: bytes, limit: float) -> None:
    assert decompressed(body, coding, limit) == b"[1]"


@pytest.mark.parametrize("body", [b"[1]", b"", GZIP[:-1], GZIP + b"x", GZIP + GZIP])
def test_a_body_that_does_not_have_its_coding(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="content-encoding"):
        decompressed(body, b"gzip", math.inf)


@pytest.mark.parametrize("coding", [b"br", b"gzip, gzip", b"zstd", b"\xff"])
def test_a_coding_that_is_not_known(coding: bytes) -> None:
    with pytest.raises(UnsupportedCoding) as caught:
        decompressed(GZIP, coding, math.inf)
    assert caught.value.headers == {"accept-encoding": "gzip, deflate"}


@pytest.mark.parametrize("limit", [0, 2, 99_999])
def test_a_body_is_not_decompressed_over_the_limit(limit: float) -> None:
    with pytest.raises(BodyTooLarge, match=f"larger than {limit} bytes"):
        decompressed(gzip.compress(b" " * 100_000), b"gzip", limit)


@pytest.mark.parametrize(
    ("declared", "limit", "fits"),
    [
        (b"", 0, True),
        (b"0", 0, True),
        (b"1", 0, False),
        (b"4", 4, True),
        (b"5", 4, False),
        (b"9999", 9_999, True),
        (b"9999", 9_998, False),
        (b"9999", 10_000, True),
        (b"10001", 10_000, False),
        (b"9" * 19, 1 << 40, False),
        (b"9" * 19, math.inf, True),
        (b"9" * 5000, 4, True),  # no number that a host lets through
        (b"-5", 4, True),
        (b"x", 4, True),
    ],
)
def test_a_declared_length(declared: bytes, limit: float, fits: bool) -> None:
    if fits:
        check_length(declared, limit)
    else:
        with pytest.raises(BodyTooLarge):
            check_length(declared, limit)
