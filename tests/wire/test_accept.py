"""The choice of an encoder, by `Accept` or by the content type that a model has set."""

import time
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slowaccept import NAMES, slow_choice, slow_framed

from modelserve.wire.accept import (
    NOT_ACCEPTABLE,
    choose_among,
    choose_encoder,
    encoder_for_type,
    framed_encoder,
    parse_accept,
)
from modelserve.wire.encoders import COLLECTED, NDJSON, SSE, Encoder, ServerSentEvent

TEXTS, BYTES, OTHER = "a", b"a", {"n": 1}
AXIOS = "application/json, text/plain, */*"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

CHOICES: list[tuple[str | None, Any, str | None]] = [
    (None, OTHER, "application/x-ndjson"),
    (None, TEXTS, "text/plain; charset=utf-8"),
    (None, BYTES, "application/octet-stream"),
    (None, bytearray(b"a"), "application/octet-stream"),
    (None, memoryview(b"a"), "application/octet-stream"),
    (None, None, "application/x-ndjson"),
    (None, ServerSentEvent("a"), "text/plain; charset=utf-8"),
    (None, ServerSentEvent({"n": 1}), "application/x-ndjson"),
    ("", OTHER, "application/x-ndjson"),
    ("*/*", OTHER, "application/x-ndjson"),
    ("*/*", TEXTS, "text/plain; charset=utf-8"),
    ("*", TEXTS, "text/plain; charset=utf-8"),
    ("*/*;q=0.1", BYTES, "application/octet-stream"),
    (BROWSER, TEXTS, "text/plain; charset=utf-8"),
    ("text/event-stream", OTHER, "text/event-stream"),
    ("text/event-stream", TEXTS, "text/event-stream"),
    ("text/event-stream", BYTES, "text/event-stream"),
    ("TEXT/Event-Stream", OTHER, "text/event-stream"),
    ("text/event-stream; charset=utf-8", OTHER, "text/event-stream"),
    ("application/x-ndjson", OTHER, "application/x-ndjson"),
    ("application/x-ndjson", TEXTS, "application/x-ndjson"),
    ("application/jsonl", OTHER, "application/jsonl"),
    ("application/ndjson", TEXTS, "application/ndjson"),
    ("application/json", OTHER, "application/json"),
    ("application/json", TEXTS, "application/json"),
    ("application/json, */*;q=0.5", OTHER, "application/json"),
    ("application/json;q=0.5, */*", TEXTS, "text/plain; charset=utf-8"),
    (AXIOS, OTHER, "application/json"),
    (AXIOS, TEXTS, "application/json"),
    ("text/plain", TEXTS, "text/plain; charset=utf-8"),
    ("text/plain", BYTES, "text/plain; charset=utf-8"),  # the name that is acceptable
    ("text/plain", OTHER, None),
    ("application/octet-stream", BYTES, "application/octet-stream"),
    ("application/octet-stream", TEXTS, "application/octet-stream"),
    ("application/octet-stream", OTHER, None),
    ("text/*", OTHER, "text/event-stream"),
    ("text/*", TEXTS, "text/plain; charset=utf-8"),
    ("application/*", OTHER, "application/x-ndjson"),
    ("application/*", BYTES, "application/octet-stream"),
    # the highest quality, then what is more specific, then the client's order
    ("text/event-stream;q=0.5, application/x-ndjson", OTHER, "application/x-ndjson"),
    ("text/event-stream, application/x-ndjson", OTHER, "text/event-stream"),
    ("application/x-ndjson, text/event-stream", OTHER, "application/x-ndjson"),
    ("*/*, text/event-stream", OTHER, "text/event-stream"),
    ("text/*, application/json", OTHER, "application/json"),
    ("text/plain, text/event-stream;q=0.1", OTHER, "text/event-stream"),
    ("text/event-stream;q=0.9;x=y, */*;q=0.8", OTHER, "text/event-stream"),
    ("text/event-stream ; q = 0.1 , application/json", OTHER, "application/json"),
    # q=0 excludes
    ("text/event-stream;q=0", OTHER, None),
    ("text/event-stream;q=0, */*", OTHER, "application/x-ndjson"),
    ("application/x-ndjson;q=0, */*", OTHER, "text/event-stream"),
    ("application/x-ndjson;q=0, text/event-stream;q=0, */*", OTHER, "application/json"),
    ("text/plain;q=0, */*", TEXTS, "application/x-ndjson"),
    ("text/*;q=0, */*", TEXTS, "application/x-ndjson"),
    ("text/*;q=0, text/event-stream", TEXTS, "text/event-stream"),
    ("*/*;q=0", TEXTS, None),
    ("*/*;q=0, application/json", TEXTS, "application/json"),
    # nothing
    ("image/png", OTHER, None),
    ("image/*", BYTES, None),
    ("text/html", TEXTS, None),
    # garbage is skipped
    ("garbage", OTHER, "application/x-ndjson"),
    (",,;;", OTHER, "application/x-ndjson"),
    ("*/json", OTHER, "application/x-ndjson"),
    ("garbage, text/event-stream", OTHER, "text/event-stream"),
    ("text/event-stream;q=x", OTHER, "text/event-stream"),
    ("text/event-stream;q=2, application/json", OTHER, "text/event-stream"),
    ("text/event-stream;q=-1, application/json", OTHER, "application/json"),
]


@pytest.mark.parametrize(("accept", "first", "media_type"), CHOICES)
def test_the_choice(accept: str | None, first: Any, media_type: str | None) -> None:
    encoder = choose_encoder(accept, first)
    assert (encoder and encoder.media_type) == media_type
    if media_type is not None:
        assert choose_encoder(accept, None, empty=True) is not None


@pytest.mark.parametrize(("accept", "first"), [(accept, first) for accept, first, _ in CHOICES])
def test_what_is_chosen_takes_the_first_item(accept: str | None, first: Any) -> None:
    encoder = choose_encoder(accept, first)
    assert encoder is None or isinstance(encoder.encode(first), bytes)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/x-ndjson"),
        ("*/*", "application/x-ndjson"),
        ("text/event-stream", "text/event-stream"),
        ("application/jsonl", "application/jsonl"),
        ("application/x-jsonl", "application/x-jsonl"),
        ("application/json", "application/json"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/octet-stream", "application/octet-stream"),
        ("image/png", None),
    ],
)
def test_a_stream_without_items_may_have_any_type(
    accept: str | None, media_type: str | None
) -> None:
    encoder = choose_encoder(accept, None, empty=True)
    assert (encoder and encoder.media_type) == media_type


@pytest.mark.parametrize(
    ("accept", "any_stream"),
    [
        (None, True),
        ("", True),
        ("image/png", False),
        ("image/png, */*;q=0", False),
        ("text/plain", True),
        ("application/octet-stream", True),
        ("*/*;q=0.001", True),
    ],
)
def test_whether_any_stream_could_be_sent(accept: str | None, any_stream: bool) -> None:
    assert (choose_encoder(accept, None, empty=True) is not None) is any_stream


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("", []),
        ("a/b", [("a/b", 1.0)]),
        ("a/b;q=0.5, c/d", [("c/d", 1.0), ("a/b", 0.5)]),
        ("*/*, a/*, a/b", [("a/b", 1.0), ("a/*", 1.0), ("*/*", 1.0)]),
        ("a/b;level=1;q=0.3", [("a/b", 0.3)]),
        ("a/b;Q=0.3", [("a/b", 0.3)]),
        ("a/, /b, a, */b, a/b/c", [("a/b/c", 1.0)]),
    ],
)
def test_ranges_are_read_in_the_order_of_preference(header: str, ranges: list[Any]) -> None:
    assert [tuple(r) for r in parse_accept(header)] == ranges


def test_a_quality_that_is_not_a_number_does_not_win() -> None:
    one, other = "text/event-stream;q=nan", "application/json"
    for accept in (f"{one}, {other}", f"{other}, {one}"):
        assert [r.quality == r.quality for r in parse_accept(accept)] == [True, True]


@pytest.mark.parametrize("length", [10, 256, 257, 60_000])
def test_a_header_of_any_length_is_read(length: int) -> None:
    header = "text/event-stream," + "x" * (length - 18)
    encoder = choose_encoder(header, OTHER)
    assert encoder is not None and encoder.media_type == "text/event-stream"


FORMS = {
    "a": ("text", "ndjson", "sse", "collected"),
    b"a": ("octets", "ndjson", "sse", "collected"),
    None: ("ndjson", "sse", "collected"),
}
WHATEVER = ("ndjson", "sse", "collected", "text", "octets")
OTHERS = ("*/*", "*", "text/*", "application/*", "image/png", "*/json", "a/", "", "app*/*", "a/b/*")
media_ranges = st.sampled_from([*sorted(set(chain(*NAMES.values()))), *OTHERS])
qualities = st.sampled_from(
    ["", ";q=0", ";q=1", ";q=0.5", "; Q=0.50", ";q=nan", ";q=9", ";a=b;q=0.2"]
)
headers = st.lists(st.tuples(media_ranges, qualities).map("".join), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(headers.map(", ".join))
@pytest.mark.slow
def test_the_choice_is_that_of_the_rfc(header: str) -> None:
    for first, forms in FORMS.items():
        assert named(choose_encoder(header, first)) == slow_choice(header, forms)
    assert named(choose_encoder(header, None, empty=True)) == slow_choice(header, WHATEVER)
    among = choose_among(header, (COLLECTED, NDJSON, SSE))
    assert named(among) == slow_choice(header, ("collected", "ndjson", "sse"))
    assert named(framed_encoder(header)) == slow_framed(header)


def named(encoder: Encoder | None) -> str | None:
    return encoder and encoder.media_type.partition(";")[0]


NOBODYS = (
    "application/x-ndjson;q=0,text/event-stream;q=0,application/json;q=0,text/plain;q=0,"
    "application/octet-stream;q=0,"
)


@pytest.mark.parametrize(
    "header",
    [
        NOBODYS + ",".join(["*/*"] * 16_000),
        NOBODYS + ",".join(f"application/*;q=0.{n:04}" for n in range(1, 3000)),
        NOBODYS + ",".join(f"*/*;a={n}" for n in range(7000)),
        ",".join(f"a/b{n}" for n in range(8000)),
        ",".join(f"application/x-ndjson;q=0.{n:04}" for n in range(2500)),
        "*/*" + ";a=b" * 16_000,
        "*/*;q=0." + "1" * 64_000,
        "," * 64_000 + "*/*",
        " " * 64_000,
    ],
    ids=lambda header: header[-12:],
)
def test_no_header_takes_long(header: str, a_moment: float) -> None:
    before = time.thread_time()
    for _ in range(3):
        choose_encoder(header, OTHER)
        choose_encoder(header, None, empty=True)
        framed_encoder(header)
    assert time.thread_time() - before < 15 * a_moment  # quadratic, it is more than fifty


# --- a content type that the model sets ----------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "failure", "item", "sent"),
    [
        ("audio/wav", None, b"a", b"a"),
        ("text/csv; charset=utf-8", None, "ä", "ä".encode()),
        ("text/event-stream", SSE.failure, "data: a\n\n", b"data: a\n\n"),
        ("Text/Event-Stream; charset=utf-8", SSE.failure, b"a", b"a"),
        ("text/event-stream", SSE.failure, "a", b"a"),
        ("text/event-stream", SSE.failure, ServerSentEvent("a", id="1"), b"id: 1\ndata: a\n\n"),
        ("application/x-ndjson", NDJSON.failure, "1\n", b"1\n"),
        ("application/jsonl", NDJSON.failure, b"1\n", b"1\n"),
    ],
)
def test_items_pass_as_they_are_under_the_models_type(
    content_type: str, failure: Any, item: Any, sent: bytes
) -> None:
    encoder = encoder_for_type(content_type)
    assert encoder.media_type == content_type
    assert encoder.failure is failure
    assert encoder.encode(item) == sent
    with pytest.raises(TypeError):
        encoder.encode({"n": 1})


# --- a choice among some --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("garbage", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "text/event-stream"),
        ("application/x-ndjson, text/event-stream;q=0.5", "application/x-ndjson"),
        ("application/jsonl", "application/jsonl"),
        ("application/json;q=0, */*", "application/x-ndjson"),
        ("text/plain", None),
    ],
)
def test_a_choice_among_some(accept: str | None, media_type: str | None) -> None:
    encoder = choose_among(accept, (COLLECTED, NDJSON, SSE))
    assert (encoder and encoder.media_type) == media_type


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, None),
        ("", None),
        ("*/*", None),
        ("text/*", None),
        ("application/json", None),
        ("application/json, text/event-stream;q=0.9", None),
        ("text/event-stream;q=0", None),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0.5, */*;q=0.1", "text/event-stream"),
        ("application/x-ndjson, text/event-stream", "application/x-ndjson"),
        ("application/jsonl", "application/jsonl"),
    ],
)
def test_a_framed_stream_is_asked_for_by_name(accept: str | None, media_type: str | None) -> None:
    encoder = framed_encoder(accept)
    assert (encoder and encoder.media_type) == media_type
    assert encoder is None or encoder.idle is not None


def test_the_sentence_of_a_406_names_what_there_is() -> None:
    for name in ("application/x-ndjson", "text/event-stream", "application/json", "text/plain"):
        assert name in NOT_ACCEPTABLE
