"""A server that answers as it is told, byte by byte, and an ASGI application on a real one."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

Script = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def scripted(*scripts: Script | bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve each connection with the next script, or the next bytes, the last again and again.

    Yield the address and the heads of the requests.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []
    threads: list[threading.Thread] = []

    def run(connection: socket.socket, script: Script | bytes) -> None:
        with connection, contextlib.suppress(OSError):
            head, rest = read_head(connection)
            heads.append(head)
            if isinstance(script, bytes):
                read_body(connection, head, rest)
                connection.sendall(script)
            else:
                script(connection, rest)

    def accept() -> None:
        left = list(scripts)
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                script = left.pop(0) if len(left) > 1 else left[0]
                thread = threading.Thread(target=run, args=(connection, script), daemon=True)
                threads.append(thread)
                thread.start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for each in threads:
            each.join(5)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def received(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionError
    return piece


def read_body(connection: socket.socket, head: bytes, rest: bytes) -> bytes:
    lengths = [x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")]
    while lengths and len(rest) < int(lengths[0].partition(b":")[2]):
        rest += received(connection)
    return rest


def whole(body: bytes, *, status: str = "200 OK", **headers: str) -> bytes:
    """Write an answer as a server does."""
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): text for name, text in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in fields.items() if text)]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def chunked(content_type: str, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + end


@contextlib.contextmanager
def serving(app: Any, **settings: Any) -> Iterator[str]:
    """Serve an application with uvicorn, in a thread."""
    config = uvicorn.Config(app, timeout_graceful_shutdown=1, log_level="error", **settings)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http{'s' if config.is_ssl else ''}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
