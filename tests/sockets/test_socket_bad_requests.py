"""Hundreds of malformed requests: no crash, no hang, and one shape of error wherever we answer."""

import json
from collections.abc import Callable, Iterator

import pytest
from rawclient import Answer, Connection, Cut, post, request
from realserver import Server, Start, until

PREDICT = "/v1/models/unary:predict"
STREAM = "/v1/models/async-generator:predict"
GOOD = b'{"key":"bad","count":2}'

# What the servers' own parsers answer, before any application is asked.
THEIRS = (b"", b"Invalid HTTP request received.", b"Request Timeout")

HOSTS = ["httptools", "h11", "hypercorn", "trio", "granian"]


def bodies() -> Iterator[bytes]:
    values = [
        b"", b" ", b"\n", b"{", b"}", b"[", b"]", b'"', b"{}", b"[]", b'""', b"0", b"-0", b"-", b"1e",
        b"1e400", b"1e-400", b"9" * 400, b"NaN", b"nan", b"Infinity", b"null", b"nul", b"true", b"True",
        b"\x00", b"\xff", b"\xef\xbb\xbf{}", b'"\xff"', b'"\\u12"', b'"\\ud800"', b'"\\x00"', b"{a:1}",
        b'{"a"}', b'{"a":1,}', b'{"a":1 "b":2}', b'{"a":1,"a":2}', b"[1,,2]", b"[1 2]", b"{]", b"[}",
        b'{"instances":5}', b'{"instances":null}', b'{"instances":{}}', b'{"key":5}', b'{"key":null}',
        b'{"key":{"x":[1]}}', b'{"count":"x"}', b'{"key":"bad","count":-1}', b'{"key":"bad","gap":"x"}',
        b'{"key":"bad","before":null}', b"<xml/>", b"a=b&c=d", b"%7B%7D", b"[" * 2000, b'{"a":' * 2000,
        b"[" * 3000 + b"]" * 3000, b'"' + b"x" * 300_000, b"\x1f\x8b\x08\x00", "{}".encode("utf-16"),
        "{}".encode("utf-32"), b'{"a":"\x01"}', b"{}{}", b"{}\n{}", b"[1]\x00",
    ]  # fmt: skip
    types = [
        None,
        "application/json",
        "application/json;charset=utf-16",
        "x/y",
        "",
        "/",
        "json",
        ";",
    ]
    for path in (PREDICT, STREAM):
        for value in values:
            for content_type in types:
                headers = {} if content_type is None else {"content_type": content_type}
                yield request("POST", path, value, **headers)


def paths() -> Iterator[bytes]:
    segments = [
        "%", "%%", "%2", "%zz", "%00", "%0d%0a", "%ff", "%c0%80", "%ed%a0%80", "%u0041", "..", ".", "...",
        "%2e%2e", "%2F", "%5C", "\\", "*", "a" * 5000, "%41" * 2000, "~", "'", '"', "<>", "{}", "|", "^",
        "`", "[", "]", "@", ";", "=", "&", "+", "$", "!", ",", ":", "::", ":predict", "%3A", "%3Apredict",
        "unary:", "unary:predict:", "unary:predict:predict", "unary%3A%3Apredict", "unary:PREDICT",
        "unary:predict%00", "unary%2Fx:predict", "None", "null", "-1", "0", "zz", "zz:predict", "ü",
        "ü".encode().decode("latin-1"), "\xff", "unary#x", "unary?x", "unary;x=1", "%E2%80%AE",
    ]  # fmt: skip
    for segment in segments:
        for template in ("/{}", "/v1/{}", "/v1/models/{}", "/v1/models/unary:{}", "/v2/{}", "{}"):
            for method in ("GET", "POST"):
                body = GOOD if method == "POST" else b""
                yield request(method, template.format(segment), body, connection="close")
    for target in ("", "*", "http://x/", "http://x/v1/models", "//", "/?", "?", "#", "x:80", "/ /"):
        for method in ("GET", "POST", "OPTIONS", "CONNECT"):
            yield request(method, target, connection="close")


def methods() -> Iterator[bytes]:
    names = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND",
        "get", "Post", "X", "x" * 300, "G\xcbT", "GET\x00", "", "PRI", "M-SEARCH", "!#$",
    ]  # fmt: skip
    for name in names:
        for path in ("/", "/v1/models", "/v1/models/unary", PREDICT, "/x", "*"):
            yield request(name, path, connection="close")


def headers() -> Iterator[bytes]:
    lines = [
        b"content-length: -1", b"content-length: +5", b"content-length: 5, 5", b"content-length: 5, 6",
        b"content-length: 0x5", b"content-length: 5 5", b"content-length:", b"content-length: x",
        b"content-length: 99999999999999999999999", b"content-length: 1\r\ncontent-length: 2",
        b"transfer-encoding: chunked\r\ncontent-length: 5", b"transfer-encoding: x",
        b"transfer-encoding: chunked, chunked", b"transfer-encoding: identity", b"transfer-encoding: gzip",
        b"transfer-encoding:\tchunked", b"connection: upgrade\r\nupgrade: websocket",
        b"connection: upgrade\r\nupgrade: h2c", b"upgrade: x", b"expect: 200-ok", b"expect: x",
        b"accept: \xff\xfe", b"accept: \x00", b"accept: a/b;q=\xd9\xa1", b"accept: " + b"a/b," * 5000,
        b"accept: text/event-stream;q=1e400", b"content-type: \xff", b"content-type: a/b/c",
        b"content-type: application/json\r\ncontent-type: image/png", b"content-type: ;;;;",
        b"content-encoding: gzip", b"content-encoding: br, x", b"x-request-id: \xff\xfe",
        b"x-request-id: " + b"a" * 500, b"x-request-id: a b\tc", b"x-request-id:", b"cookie: " + b"a" * 9000,
        b"x-request-timeout-seconds: x", b"x-request-timeout-seconds: 1e400", b"no colon here", b": empty",
        b"a b: c", b" folded: x", b"x: a\r\n folded", b"x: a\rb", b"x: a\nb", b"x: a\x00b", b"\xff: x",
        b"x" * 3000 + b": 1", b"x: " + b"y" * 60_000, b"x: " + b"y" * 200_000, b"range: bytes=0-1",
        b"inference-header-content-length: x", b"ce-specversion: 1.0", b"ce-id: 1\r\nce-specversion: 9",
        b"host:", b"host: x\r\nhost: y", b"authorization: Basic \xff", b"traceparent: x-y",
        b"\r\n".join(b"x-%d: %d" % (n, n) for n in range(60)),
        b"\r\n".join(b"x-%d: %d" % (n, n) for n in range(3000)),
    ]  # fmt: skip
    for line in lines:
        for path in ("/", PREDICT, STREAM):
            method = "GET" if path == "/" else "POST"
            body = b"" if method == "GET" else GOOD
            data = request(method, path, body, connection="close")
            yield data.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


def request_lines() -> Iterator[bytes]:
    end = b"\r\nhost: x\r\n\r\n"
    lines = [
        b"", b"GET", b"GET ", b"GET /", b"GET / ", b"GET / HTTP", b"GET / HTTP/", b"GET / HTTP/1",
        b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET / HTTP/9.9", b"GET / HTTP/0.9", b"GET / HTTP/-1.1",
        b"GET / HTTP/1.1.1", b"GET / http/1.1", b"GET  /  HTTP/1.1", b"GET\t/\tHTTP/1.1", b"GET/HTTP/1.1",
        b" GET / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /\x00 HTTP/1.1", b"GET /\xff HTTP/1.1", b"\x00" * 50,
        b"\xff" * 50, b"a" * 70_000, b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM", b"SSH-2.0-x", b"HTTP/1.1 200 OK", b"{}", b"\r\n\r\n\r\nGET / HTTP/1.1",
    ]  # fmt: skip
    for line in lines:
        yield line + end
        yield line + b"\n\n"
        yield line


def chunks() -> Iterator[bytes]:
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    tails = [
        b"x\r\n", b"-1\r\n", b"\r\n", b"0\r\n", b"5\r\nab", b"5\r\nabcdefgh\r\n", b"5;x=y\r\n{}   \r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n", b"2\n{}\n0\n\n", b"2\r\n{}\r\n0\r\nx: y\r\n\r\n", b"2\r\n{}\r\n0\r\nbad\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n", b" 2\r\n{}\r\n0\r\n\r\n", b"2 \r\n{}\r\n0\r\n\r\n", b"2" * 5000, b"0\r\n\r\n" * 3,
    ]  # fmt: skip
    for path in (PREDICT, STREAM):
        for tail in tails:
            yield head % path.encode() + tail


def truncated() -> Iterator[bytes]:
    for path in (PREDICT, STREAM, "/v1/models/sync-generator:predict"):
        whole = request("POST", path, GOOD, content_type="application/json")
        for size in range(len(whole)):
            yield whole[:size]


# Hypercorn keeps on waiting for the rest of a request whose sender has half-closed, and its trio
# worker ends where that happens while it sends; so it gets only what is whole.
BATCHES = [
    ("httptools", bodies),
    *((host, batch) for host in HOSTS for batch in (paths, methods)),
    *(
        (host, batch)
        for host in ("httptools", "h11")  # granian 2.8 sometimes hides a disconnect
        for batch in (headers, request_lines, chunks, truncated)
    ),
]


def answers(server: Server, data: bytes) -> Iterator[Answer]:
    """Send, end the sending side, and read all the answers there are; a hang is a time-out."""
    bodiless = data.startswith(b"HEAD")
    with Connection(server.port, timeout=20) as client:
        try:
            client.send(data)
            client.socket.shutdown(1)
        except ConnectionError:
            pass
        except OSError as error:
            if error.errno != 107:  # not connected any more
                raise
        while True:
            try:
                answer = client.answer(bodiless=bodiless)
            except (Cut, ValueError, IndexError):
                return
            if answer.status != 100:
                yield answer


def assert_one_shape(answer: Answer, data: bytes) -> None:
    """Our errors are `{"error": "<sentence>"}`; those of servers are not JSON."""
    content_type = answer.headers.get("content-type", "")
    if answer.status >= 400 and content_type == "application/json":
        assert data.startswith(b"HEAD") or error_shape(answer.body), (data[:200], answer)
        assert b"Traceback" not in answer.body
    elif answer.status >= 400:
        assert "x-request-id" not in answer.headers, (data[:200], answer)
        assert answer.body in THEIRS or answer.status in (
            400,
            404,
            408,
            413,
            414,
            431,
            500,
            501,
            505,
        )


def error_shape(body: bytes) -> bool:
    value = json.loads(body)
    return list(value) == ["error"] and isinstance(value["error"], str) and bool(value["error"])


@pytest.mark.parametrize(("host", "batch"), BATCHES)
@pytest.mark.slow
def test_bad_requests(start: Start, host: str, batch: Callable[[], Iterator[bytes]]) -> None:
    server = start(host, "streams")
    for data in batch():
        for answer in answers(server, data):
            assert_one_shape(answer, data)
    assert server.process.poll() is None
    assert until(lambda: not server.ledger.running(), seconds=20)
    assert post(server.port, PREDICT, {"key": "good"}).status == 200
    assert post(server.port, STREAM, {"key": "good", "count": 1}).body == b'{"n":0}\n'


@pytest.mark.parametrize("path", [PREDICT, STREAM])
def test_whole_requests_with_bad_bodies_are_answered(start: Start, path: str) -> None:
    """Where the client stays, there is always one answer, and the connection is of further use."""
    server = start("httptools", "streams")
    client = Connection(server.port)
    for data in bodies():
        if path.encode() in data.split(b"\r\n")[0]:
            client.send(data)
            answer = client.answer()
            assert answer.status in (200, 400, 500), data
            assert_one_shape(answer, data)
    client.close()
    assert until(lambda: not server.ledger.running(), seconds=20)
