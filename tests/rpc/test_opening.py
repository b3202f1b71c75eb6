"""The ways in: gRPC-Web in bytes and in text, HTTP/2 with trailers, and what is none of them."""

import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from grpcweb import SERVICE, read

from modelserve import ModelServer
from modelserve.protocols.grpc import classes
from modelserve.tensors.grpc import messages
from modelserve.testing import Response, request
from modelserve.wire.grpc import frame, trailers

pytest.importorskip("google.protobuf")
pytestmark = pytest.mark.anyio

LIVE = f"{SERVICE}/ServerLive"
READY = f"{SERVICE}/ModelReady"


async def post(path: str, body: bytes, content_type: str | None, *, app: Any = None) -> Response:
    headers = {} if content_type is None else {"content-type": content_type}
    return await request(app or ModelServer(), "POST", path, body=body, headers=headers)


def no_model() -> bytes:
    return frame(classes()["ModelReadyRequest"](name="x").SerializeToString())


@pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpc-web+proto"])
async def test_grpc_web_is_answered_in_its_own_type(content_type: str) -> None:
    response = await post(LIVE, frame(b""), content_type)
    assert response.headers["content-type"] == content_type
    assert response.body == frame(b"\x08\1") + trailers(0)


@pytest.mark.parametrize("content_type", ["application/grpc-web-text"])
async def test_text_is_base64_both_ways(content_type: str) -> None:
    response = await post(LIVE, b64encode(frame(b"")), content_type)
    assert (response.status, response.headers["content-type"]) == (200, content_type)
    assert b64decode(response.body) == frame(b"\x08\1") + trailers(0)
    padded_twice = b64encode(no_model()[:4]) + b64encode(no_model()[4:])
    assert read(await post(READY, padded_twice, content_type)).code == 5
    assert read(await post(READY, b"%%%%", content_type)).code == 3


async def with_trailers(app: Any, path: str, body: bytes) -> list[dict[str, Any]]:
    """Call an application as a host of HTTP/2 does; return the events of the answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def host(scope: Any, receive: Any, _: Any) -> None:
        scope["extensions"] = {"http.response.trailers": {}}
        await app(scope, receive, send)
        await _({"type": "http.response.start", "status": 204, "headers": []})
        await _({"type": "http.response.body", "body": b""})

    await request(host, "POST", path, body=body, headers={"content-type": "application/grpc"})
    return sent


async def test_a_host_with_trailers_gets_the_status_in_them() -> None:
    start, *bodies, ending = await with_trailers(ModelServer(), LIVE, frame(b""))
    assert (start["status"], start["trailers"]) == (200, True)
    assert (b"content-type", b"application/grpc") in start["headers"]
    assert b"content-length" not in dict(start["headers"])
    assert b"".join(body["body"] for body in bodies) == frame(b"\x08\1")
    assert not bodies[-1]["more_body"]
    assert ending["type"] == "http.response.trailers"
    assert ending["headers"] == [(b"grpc-status", b"0")]


async def test_an_error_is_in_the_trailers_as_well() -> None:
    start, body, ending = await with_trailers(ModelServer(), READY, no_model())
    assert start["status"] == 200
    assert body["body"] == b""
    assert ending["headers"] == [
        (b"grpc-status", b"5"),
        (b"grpc-message", b"Model with name x does not exist."),
    ]


async def test_a_host_without_trailers_is_told_of_the_other_ways() -> None:
    answer = read(await post(LIVE, frame(b""), "application/grpc"))
    assert answer.code == 12
    assert "--grpc-port" in answer.text


@pytest.mark.parametrize("content_type", [None, "application/json", "application/grpc+json"])
async def test_what_is_not_grpc_is_refused(content_type: str | None) -> None:
    response = await post(LIVE, b"{}", content_type)
    assert response.status == 415
    assert "application/grpc" in response.json()["error"]


@pytest.fixture
def no_protobuf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let protobuf not be installed."""
    for cached in (classes, messages):
        cached.cache_clear()  # type: ignore[attr-defined]
    for name in ("google.protobuf", "google"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    for cached in (classes, messages):
        cached.cache_clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["ServerLive", "ModelInfer", "ModelStreamInfer"])
@pytest.mark.usefixtures("no_protobuf")
async def test_without_protobuf_a_call_says_what_is_missing(method: str) -> None:
    answer = read(await post(f"{SERVICE}/{method}", frame(b""), "application/grpc-web"))
    assert answer.code == 12
    assert answer.text == "gRPC needs protobuf: pip install 'modelserve[grpc]'."


async def test_a_method_that_there_is_not_is_unimplemented() -> None:
    answer = read(await post(f"{SERVICE}/Unknown", frame(b""), "application/grpc-web"))
    assert answer.code == 12
    response = await post("/other.Service/Method", frame(b""), "application/grpc-web")
    assert response.status == 404
