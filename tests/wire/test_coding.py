"""Content codings and the size of a body."""

import gzip
import math
import random
import zlib
from typing import Any

import pytest

from modelserve.errors import BodyTooLarge, InvalidInput, UnsupportedCoding
from modelserve.wire.coding import Inflation, check_length, inflation

GZIP = gzip.compress(b"[1]")


def decompressed(body: bytes | bytearray, coding: bytes, limit: float) -> Any:
    """Undo a content coding at once."""
    stream = inflation(body, coding, limit)
    if stream is None:
        return body
    stream.run()
    return stream.plain


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


@pytest.mark.parametrize("body", [b"[1]", b"", GZIP[:-1], GZIP + b"x", GZIP + GZIP[:-1]])
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


@pytest.mark.parametrize("body", [zlib.compress(b"[1]")[2:-4], b"", b"\x78"])
def test_deflate_is_zlibs_form(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="content-encoding"):
        decompressed(body, b"deflate", math.inf)


MEBIBYTE = 1 << 20
KINDS = {"zeros": bytes, "noise": random.Random(7).randbytes}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "size", [0, 1, 65_535, 65_537, MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1, 5 * MEBIBYTE]
)
@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_a_body_of_any_size_is_decompressed_in_short_steps(
    size: int, kind: str, compress: Any
) -> None:
    plain = KINDS[kind](size)
    body = compress(plain)
    stream = Inflation(body, size)
    before = 0
    while stream.plain is None:
        stream.step()
        assert stream.size - before <= MEBIBYTE
        before = stream.size
    assert stream.plain == plain
    for broken in (body[:-1], body + b"x", body + zlib.compress(b""), zlib.compress(b"") + body):
        with pytest.raises(InvalidInput, match=r"does not (end|have)"):
            decompressed(broken, b"gzip", math.inf)
    if size:
        with pytest.raises(BodyTooLarge, match=f"larger than {size - 1} bytes"):
            decompressed(body, b"gzip", size - 1)


@pytest.mark.parametrize("size", [0, 1, 70_000, MEBIBYTE, 2 * MEBIBYTE + 1])
def test_a_gzip_body_may_have_several_members(size: int) -> None:
    plains = [b"", KINDS["noise"](size), b"[1]", bytes(size), b"", b"]"]
    body = b"".join(map(gzip.compress, plains))
    assert decompressed(body, b"gzip", math.inf) == b"".join(plains)
    with pytest.raises(BodyTooLarge):
        decompressed(body, b"gzip", 2 * size + 3)
    for broken in (body[:-1], body + b"\0\0", body + GZIP[:5]):
        with pytest.raises(InvalidInput, match="does not end where"):
            decompressed(broken, b"gzip", math.inf)


@pytest.mark.parametrize("limit", [1000, 3 * MEBIBYTE])
def test_no_memory_is_taken_over_the_limit(limit: int) -> None:
    stream = Inflation(gzip.compress(bytes(8 * MEBIBYTE)), limit)
    with pytest.raises(BodyTooLarge):
        stream.run()
    assert stream.size == limit + 1


def test_a_run_stops_once_enough_has_come() -> None:
    stream = Inflation(gzip.compress(bytes(8 * MEBIBYTE)), math.inf)
    stream.run(most_out=MEBIBYTE)
    assert (stream.size, stream.plain) == (MEBIBYTE, None)
    stream.run(most_out=2 * MEBIBYTE)
    assert (stream.size, stream.plain) == (3 * MEBIBYTE, None)
    plain = KINDS["noise"](MEBIBYTE)
    noise = Inflation(gzip.compress(plain), math.inf)
    noise.run(most_in=100_000)
    assert 100_000 < noise.size <= 1 << 17
    noise.run()
    assert noise.plain == plain


@pytest.mark.slow
def test_a_body_that_grows_a_thousandfold_is_refused_once_it_is_large() -> None:
    small = gzip.compress(bytes(16 * MEBIBYTE))
    assert len(decompressed(small, b"gzip", math.inf)) == 16 * MEBIBYTE
    large = gzip.compress(bytes(64 * MEBIBYTE))
    stream = Inflation(large, math.inf)
    with pytest.raises(BodyTooLarge, match="larger than 200 times its compressed size"):
        stream.run()
    assert stream.size == 16 * MEBIBYTE + 1
    with pytest.raises(BodyTooLarge, match="larger than 9 bytes"):
        decompressed(large, b"gzip", 9)


@pytest.mark.slow
def test_a_large_body_may_be_compressed_well() -> None:
    plain = (KINDS["noise"](8_000) + bytes(MEBIBYTE)) * 40
    body = gzip.compress(plain)
    assert 50 < len(plain) / len(body) < 200
    assert decompressed(body, b"gzip", math.inf) == plain


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
