"""A raw client: it sends bytes, and reads one head, then one chunk at a time."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self


class Cut(Exception):
    """The server closed the connection inside an answer."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    def __init__(self, port: int, *, timeout: float = 10.0, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        self.send(request(method, path, body, **headers))

    def line(self) -> bytes:
        line = self._read(self.file.readline)
        if not line.endswith(b"\r\n"):
            raise Cut(line)
        return line[:-2]

    def head(self) -> Answer:
        """Read a status line and headers; names in lower case, repeated ones joined by a comma."""
        self.status = int(self.line().split()[1])
        self.headers: dict[str, str] = {}
        while line := self.line():
            name, _, value = line.decode("latin-1").partition(":")
            key = name.lower()
            self.headers[key] = ", ".join(filter(None, [self.headers.get(key), value.strip()]))
        return Answer(self.status, self.headers)

    def chunk(self) -> bytes:
        """Read one chunk of a chunked body; b"" is the proper end, an early end is Cut."""
        size = int(self.line(), 16)
        data = self.exactly(size)
        self.line()
        return data

    def chunks(self) -> Iterator[bytes]:
        while data := self.chunk():
            yield data

    def exactly(self, size: int) -> bytes:
        data = self._read(lambda: self.file.read(size))
        if len(data) < size:
            raise Cut(data)
        return data

    def rest(self) -> bytes:
        return self._read(self.file.read)

    def answer(self, *, bodiless: bool = False) -> Answer:
        """Read one whole answer, as its headers frame it."""
        head = self.head()
        if bodiless or head.status in (204, 304) or head.status < 200:
            return head
        if "chunked" in head.headers.get("transfer-encoding", ""):
            head.body = b"".join(self.chunks())
        elif "content-length" in head.headers:
            head.body = self.exactly(int(head.headers["content-length"]))
        else:
            head.body = self.rest()
        return head

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.file.close()
        self.socket.close()

    def _read(self, read: Any) -> bytes:
        try:
            data: bytes = read()
        except ConnectionError as error:
            raise Cut(b"") from error
        return data


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Write a request; `accept="..."` and `content_type="..."` become headers."""
    fields = {"host": "test", **{name.replace("_", "-"): text for name, text in headers.items()}}
    if body or method in ("POST", "PUT", "PATCH"):
        fields.setdefault("content-length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(port: int, path: str, *, method: str = "GET", **headers: str) -> Answer:
    with Connection(port) as client:
        client.ask(method, path, **headers)
        return client.answer(bodiless=method == "HEAD")


def post(port: int, path: str, value: Any = None, *, body: bytes | None = None, **h: str) -> Answer:
    """POST `value` as JSON, or `body` as it is, without a content type unless one is given."""
    with Connection(port) as client:
        client.ask("POST", path, json.dumps(value).encode() if body is None else body, **h)
        return client.answer()


def read_events(body: bytes) -> list[dict[str, str]]:
    """Read server-sent events as a browser does (HTML, section 9.2.6), CR and CRLF included."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    events = []
    for block in text.split("\n\n")[:-1]:
        event: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        events.append(event)
    return events
