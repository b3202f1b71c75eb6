"""Clients of a host: HTTP/1.1 and HTTP/2 byte by byte, and those that need no server.

Each exchange has `ask` or `upload`, then `head`, then `part` until b"", the proper end; Cut is
another end, and TimeoutError means that nothing came for some seconds.
"""

import asyncio
import base64
import queue
import socket
import sys
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

sys.path.append(str(Path(__file__).parent.parent / "sockets"))

import httpx
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from rawclient import Connection, Cut, request

__all__ = [
    "Cut",
    "Exchange",
    "Http1",
    "Http1Gzip",
    "Http2",
    "Lambda",
    "Transport",
    "WithTestClient",
]

PATIENCE = 10.0  # seconds for what a host does at once, if at all
LINES = "application/x-ndjson"

Headers = dict[str, str]


def named(arguments: Headers) -> Headers:
    """Return headers by the names of arguments: `content_type` is `content-type`."""
    return {name.replace("_", "-"): text for name, text in arguments.items()}


class Exchange:
    """One request, its answer, and the connection of both."""

    def ask(
        self, method: str, path: str, body: bytes = b"", accept: str = "*/*", **headers: str
    ) -> None:
        raise NotImplementedError

    def head(self) -> int:
        raise NotImplementedError

    def part(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def whole(self) -> bytes:
        parts = []
        while part := self.part():
            parts.append(part)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- over a socket


class Http1(Exchange):
    gzip = False

    def __init__(self, port: int) -> None:
        self.connection = Connection(port, timeout=PATIENCE)
        self.left: int | None = None
        self.bodiless = False
        self.encoding: Any = None

    def ask(
        self, method: str, path: str, body: bytes = b"", accept: str = "*/*", **headers: str
    ) -> None:
        more = {"accept_encoding": "gzip"} if self.gzip else {}
        self.bodiless = method == "HEAD"
        self.connection.send(request(method, path, body, accept=accept, **more, **headers))

    def upload(self, path: str) -> None:
        self.connection.send(
            f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: {LINES}\r\naccept: {LINES}\r\n"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )

    def feed(self, data: bytes) -> None:
        self.connection.send(b"%x\r\n%s\r\n" % (len(data), data))

    def head(self) -> int:
        head = self.connection.head()
        if self.bodiless:
            self.left = 0
        elif "content-length" in head.headers:
            self.left = int(head.headers["content-length"])
        if head.headers.get("content-encoding") == "gzip":
            self.encoding = zlib.decompressobj(31)
        return head.status

    def part(self) -> bytes:
        if self.left is not None:
            data = self.connection.exactly(self.left)
            self.left = 0
        else:
            data = self.connection.chunk()
        if self.encoding is None or not data:
            return data
        text: bytes = self.encoding.decompress(data)
        return text or self.part()

    def close(self) -> None:
        self.connection.close()


class Http1Gzip(Http1):
    gzip = True


class Http2(Exchange):
    """HTTP/2 with prior knowledge; it opens the window only as far as it reads."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.state = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.events: deque[Any] = deque()
        self.state.initiate_connection()
        self._flush()

    def ask(
        self, method: str, path: str, body: bytes = b"", accept: str = "*/*", **headers: str
    ) -> None:
        self._open(method, path, *named({"accept": accept, **headers}).items(), end=not body)
        if body:
            self.state.send_data(self.stream, body, end_stream=True)
            self._flush()

    def upload(self, path: str) -> None:
        self._open("POST", path, ("content-type", LINES), ("accept", LINES), end=False)

    def feed(self, data: bytes) -> None:
        self.state.send_data(self.stream, data, end_stream=not data)
        self._flush()

    def head(self) -> int:
        event = self._next(ResponseReceived)
        return int(dict(event.headers)[":status"])

    def part(self) -> bytes:
        event = self._next(DataReceived, StreamEnded)
        if isinstance(event, StreamEnded):
            return b""
        self.state.acknowledge_received_data(event.flow_controlled_length, self.stream)
        self._flush()
        return event.data or self.part()

    def close(self) -> None:
        self.socket.close()

    def _open(self, method: str, path: str, *headers: tuple[str, str], end: bool) -> None:
        self.stream = self.state.get_next_available_stream_id()
        pseudo = {":method": method, ":path": path, ":scheme": "http", ":authority": "test"}
        self.state.send_headers(self.stream, [*pseudo.items(), *headers], end_stream=end)
        self._flush()

    def _next(self, *kinds: type) -> Any:
        while True:
            while self.events:
                event = self.events.popleft()
                if isinstance(event, kinds):
                    return event
                if isinstance(event, StreamReset):
                    raise Cut(b"")
            try:
                data = self.socket.recv(65536)
                self.events.extend(self.state.receive_data(data))
            except (ConnectionError, ProtocolError) as error:
                raise Cut(b"") from error
            if not data:
                raise Cut(b"")
            self._flush()

    def _flush(self) -> None:
        try:
            self.socket.sendall(self.state.data_to_send())
        except ConnectionError as error:
            raise Cut(b"") from error


# -- without a server


class Local(Exchange):
    """A client that calls the application itself, in a thread, so that one can see it wait."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(
        self, method: str, path: str, body: bytes = b"", accept: str = "*/*", **headers: str
    ) -> None:
        def guarded() -> None:
            try:
                self.run(method, path, body, named({"accept": accept, **headers}))
                self.found.put(b"")
            except BaseException as error:
                self.found.put(error)

        self.thread = threading.Thread(target=guarded, daemon=True)
        self.thread.start()

    def run(self, method: str, path: str, body: bytes, headers: Headers) -> None:
        for each in self.answer(method, path, body, headers):
            self.found.put(each)

    def answer(self, method: str, path: str, body: bytes, headers: Headers) -> Iterator[Any]:
        """Yield the status, then the body as it comes."""
        raise NotImplementedError

    def head(self) -> int:
        status: int = self._next()
        return status

    def part(self) -> bytes:
        data: bytes = self._next()
        return data

    def close(self) -> None:
        self.thread.join(PATIENCE)

    def _next(self) -> Any:
        try:
            found = self.found.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, BaseException):
            raise Cut(b"") from found
        return found


class WithTestClient(Local):
    """`app` is an open TestClient."""

    def answer(self, method: str, path: str, body: bytes, headers: Headers) -> Iterator[Any]:
        with self.app.stream(method, path, content=body, headers=headers) as response:
            yield response.status_code
            yield from response.iter_raw()


class Transport(Local):
    """`app` is an application for `httpx.ASGITransport`."""

    def run(self, method: str, path: str, body: bytes, headers: Headers) -> None:
        asyncio.run(self._exchange(method, path, body, headers))

    async def _exchange(self, method: str, path: str, body: bytes, headers: Headers) -> None:
        transport = httpx.ASGITransport(self.app)
        given: dict[str, Any] = {"content": body, "headers": headers}
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            client.stream(method, path, **given) as response,
        ):
            self.found.put(response.status_code)
            async for each in response.aiter_raw():
                self.found.put(each)


class Lambda(Local):
    """`app` is a Mangum; the event is that of an HTTP API of Amazon's API Gateway."""

    def answer(self, method: str, path: str, body: bytes, headers: Headers) -> Iterator[Any]:
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        http = {"method": method, "path": unquote(path), "sourceIp": "127.0.0.1"}
        event = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": "",
            "headers": {**headers, "host": "test"},
            "requestContext": {"http": http, "stage": "$default"},
            "body": base64.b64encode(body).decode(),
            "isBase64Encoded": True,
        }
        try:
            answer = self.app(event, None)
        finally:
            loop.close()
        yield answer["statusCode"]
        text = answer["body"]
        data = base64.b64decode(text) if answer["isBase64Encoded"] else text.encode()
        if data:
            yield data
