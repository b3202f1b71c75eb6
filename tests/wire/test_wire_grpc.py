"""gRPC on the wire: frames, trailers, statuses and time-outs."""

import pytest

from modelserve.errors import InvalidInput
from modelserve.wire.grpc import (
    Frames,
    code_of_host,
    code_of_http,
    frame,
    is_trailers,
    message_in,
    quoted,
    read_trailers,
    seconds_of,
    split_trailers,
    trailers,
    unquoted,
)

MESSAGES = [b"", b"a", b"x" * 300]


def test_a_frame_is_a_flag_a_length_and_a_message() -> None:
    assert frame(b"ab") == b"\0\0\0\0\2ab"
    assert message_in(frame(b"ab")) == (b"ab", False)
    assert message_in(b"\1\0\0\0\2ab") == (b"ab", True)


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0", frame(b"ab")[:-1], frame(b"a") * 2])
def test_a_body_that_is_not_one_message_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        message_in(body)


@pytest.mark.parametrize("flag", [b"\2", b"\x80", b"\xff"])
def test_flags_without_a_meaning_are_refused(flag: bytes) -> None:
    with pytest.raises(InvalidInput):
        message_in(flag + b"\0\0\0\0")


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
def test_frames_arrive_in_pieces_of_any_size(size: int) -> None:
    data = b"".join(map(frame, MESSAGES))
    frames, found = Frames(300), []
    for start in range(0, len(data), size):
        found += frames.feed(data[start : start + size])
    assert found == [(0, message) for message in MESSAGES]
    assert list(frames.feed(b"\0")) == []


def test_a_frame_over_the_limit_is_refused_before_it_has_come() -> None:
    with pytest.raises(OverflowError):
        list(Frames(3).feed(b"\0\0\0\0\4"))


def test_trailers_are_the_last_frame() -> None:
    ending = trailers(5, "not here", [(b"x-request-id", b"7")])
    body, pairs = split_trailers(frame(b"ab") + ending)
    assert body == frame(b"ab")
    assert pairs == [
        (b"grpc-status", b"5"),
        (b"x-request-id", b"7"),
        (b"grpc-message", b"not here"),
    ]
    assert split_trailers(frame(b"ab")) == (frame(b"ab"), [])
    [(flags, block)] = Frames(100).feed(ending)
    assert is_trailers(flags)
    assert read_trailers(block) == pairs


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain, text!", b"plain, text!"),
        ("100%", b"100%25"),
        ("a\nb", b"a%0Ab"),
        ("Größe", b"Gr%C3%B6%C3%9Fe"),
    ],
)
def test_messages_are_percent_encoded(text: str, written: bytes) -> None:
    assert quoted(text) == written
    assert unquoted(written) == text


def test_a_long_message_is_cut() -> None:
    assert len(quoted("ö" * 10_000)) < 8000
    assert unquoted(b"%FF%") == "\ufffd%"  # what is not so encoded is kept


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, 3), (401, 16), (403, 7), (404, 5), (408, 4), (413, 8), (429, 14), (499, 1), (500, 13),
        (501, 12), (503, 14), (504, 4), (418, 9), (507, 2),
    ],
)  # fmt: skip
def test_statuses_of_http_have_codes(status: int, code: int) -> None:
    assert code_of_http(status) == code


@pytest.mark.parametrize(("status", "code"), [(400, 13), (404, 12), (503, 14), (200, 2), (500, 2)])
def test_answers_that_are_not_of_grpc_have_the_codes_of_its_clients(status: int, code: int) -> None:
    assert code_of_host(status) == code


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9),
        (b"99999999S", 99_999_999), (b"0S", 1e-9), (b"", None), (b"1", None), (b"S", None),
        (b"1s", None), (b"-1S", None), (b"1.5S", None), (b"123456789S", None),
    ],
)  # fmt: skip
def test_time_outs_have_units(timeout: bytes, seconds: float | None) -> None:
    assert seconds_of(timeout) == (None if seconds is None else pytest.approx(seconds))
