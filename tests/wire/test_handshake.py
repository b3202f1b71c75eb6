"""What a client says when it opens a WebSocket."""

import pytest

from modelserve.wire.handshake import bearer_token, is_allowed_origin, without_bearer


@pytest.mark.parametrize(
    ("offered", "token"),
    [
        ([], None),
        (["modelserve.v1"], None),
        (["modelserve.v1", "bearer.c2VjcmV0"], b"secret"),
        (["bearer.cw"], b"s"),
        (["bearer._-8"], b"\xff\xef"),
        (["bearer.", "bearer.a", "bearer.c2Vj=", "bearer.c2 Vj"], None),
        (["Bearer.c2VjcmV0"], None),
    ],
)
def test_a_token_is_a_subprotocol(offered: list[str], token: bytes | None) -> None:
    assert bearer_token(offered) == token


def test_a_token_is_hidden() -> None:
    assert without_bearer(["modelserve.v1", "bearer.c2VjcmV0", "x"]) == ["modelserve.v1", "x"]


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "answer"),
    [
        ("", "a.org", (), True),
        ("https://a.org", "a.org", (), True),
        ("https://A.org", "a.ORG:443", (), True),
        ("http://a.org:8080", "a.org:8080", (), True),
        ("http://[::1]:80", "[::1]", (), True),
        ("http://a.org:8081", "a.org:8080", (), False),
        ("https://a.org", "a.org:80", (), False),
        ("https://b.org", "a.org", (), False),
        ("https://a.org.b.org", "a.org", (), False),
        ("null", "a.org", (), False),
        ("null", "", (), False),
        ("https://a.org:x", "a.org", (), False),
        ("file://", "", (), False),
        ("https://b.org", "a.org", ("https://b.org",), True),
        ("https://c.org", "a.org", ("https://b.org",), False),
        ("null", "a.org", ("null",), True),
        ("https://c.org", "a.org", ("*",), True),
    ],
)
def test_who_may_open_a_websocket(
    origin: str, host: str, allowed: tuple[str, ...], answer: bool
) -> None:
    assert is_allowed_origin(origin, host, allowed) is answer
