"""A small HTTP client that costs less than any server it loads.

One thread, epoll, no headers looked at but the status and the framing. Items are counted by a
byte that each contains once, so a read of many chunks costs one `bytes.count`. While the client
is busy the server's chunks gather in the socket and the next read takes them together, so it is
never what a stream waits for; `validate` in `benchmarks.load` checks that against wrk.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.payloads import MARK

READ_SIZE = 1 << 18
CHUNKED_END = b"\r\n0\r\n\r\n"


@dataclass
class Load:
    """The result of a load: how much was done in how long, and what it cost the server."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    requests: int = 0
    items: int = 0
    errors: int = 0
    latencies: list[float] = field(default_factory=list)
    """Seconds from request to whole answer, unsorted."""


class Exchange:
    """The state of one response on one connection."""

    def __init__(self) -> None:
        self.status = 0
        self.whole = False
        self._head = b""
        self._remaining: int | None = None
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the response; `whole` says when it has ended."""
        if not self.status:
            data = self._read_head(data)
        if self.status:
            self._read_body(data)

    def _read_head(self, data: bytes) -> bytes:
        self._head += data
        head, separator, body = self._head.partition(b"\r\n\r\n")
        if not separator:
            return b""
        self.status = int(head[9:12])
        self._remaining = _content_length(head)
        # A chunked body that ends at once has no line end of its own before the last chunk.
        self._tail = b"\r\n"
        return body

    def _read_body(self, data: bytes) -> None:
        if self._remaining is not None:
            self._remaining -= len(data)
            self.whole = self._remaining <= 0
        elif data:
            self._tail = (self._tail + data[-7:])[-7:]
            self.whole = self._tail == CHUNKED_END


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


def request(path: str, body: bytes, *, accept: str = "*/*") -> bytes:
    """Return the bytes of one POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(port: int, message: bytes, *, seconds: float = 30.0) -> tuple[int, bytes]:
    """Send one request and return the status and every byte that came back."""
    exchange, received = Exchange(), b""
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as peer:
        peer.sendall(message)
        while not exchange.whole and (data := peer.recv(READ_SIZE)):
            received += data
            exchange.feed(data)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer within {seconds:g} s")
    return exchange.status, received


class _Peer:
    """One connection that sends its next request as soon as it has the response."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.socket = self._connect()
        self.exchange = Exchange()
        self.asked = 0.0

    def _connect(self) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def ask(self, message: bytes) -> None:
        self.exchange = Exchange()
        self.asked = time.perf_counter()
        self.socket.sendall(message)

    def reconnect(self) -> None:
        self.socket.close()
        self.socket = self._connect()


class Crowd:
    """A number of connections that all repeat the same request for a time."""

    def __init__(self, port: int, message: bytes, connections: int) -> None:
        self._message = message
        self._peers: dict[int, _Peer] = {}
        self._poll = select.epoll()
        self._load = Load()
        for _ in range(connections):
            self._add(_Peer(port))

    def _add(self, peer: _Peer) -> None:
        self._peers[peer.socket.fileno()] = peer
        self._poll.register(peer.socket, select.EPOLLIN)
        peer.ask(self._message)

    def run(self, seconds: float) -> Load:
        """Load the server for so long and return what was done in that time."""
        self._load = load = Load()
        start = time.perf_counter()
        while (left := start + seconds - time.perf_counter()) > 0:
            for descriptor, _ in self._poll.poll(left):
                self._read(self._peers[descriptor])
        load.seconds = time.perf_counter() - start
        return load

    def _read(self, peer: _Peer) -> None:
        data = peer.socket.recv(READ_SIZE)
        self._load.items += data.count(MARK)
        peer.exchange.feed(data)
        if not data:
            self._again(peer)
        elif peer.exchange.whole:
            self._finish(peer)

    def _finish(self, peer: _Peer) -> None:
        self._load.requests += 1
        self._load.errors += peer.exchange.status != 200
        self._load.latencies.append(time.perf_counter() - peer.asked)
        peer.ask(self._message)

    def _again(self, peer: _Peer) -> None:
        """Connect anew where the server has closed; in the middle of an answer is an error."""
        self._load.errors += 1
        self._poll.unregister(peer.socket)
        del self._peers[peer.socket.fileno()]
        peer.reconnect()
        self._add(peer)

    def close(self) -> None:
        """Close the connections, also in the middle of responses."""
        for peer in self._peers.values():
            peer.socket.close()
        self._poll.close()


def drive(
    port: int,
    message: bytes,
    *,
    connections: int,
    seconds: float,
    warm: float,
    cpu: Callable[[], float],
) -> Load:
    """Load a server, first to warm it and then to measure; `cpu` reads its CPU time."""
    with contextlib.closing(Crowd(port, message, connections)) as crowd:
        crowd.run(warm)
        before = cpu()
        load = crowd.run(seconds)
        load.cpu_seconds = cpu() - before
        return load


def first_items(port: int, message: bytes, *, count: int, seconds: float) -> list[float]:
    """Return the seconds to the first item of each of up to `count` streams, one at a time."""
    found: list[float] = []
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while len(found) < count and time.monotonic() < deadline:
            found.append(_first_item(peer, message))
    return found


def _first_item(peer: socket.socket, message: bytes) -> float:
    exchange, first, asked = Exchange(), 0.0, time.perf_counter()
    peer.sendall(message)
    while not exchange.whole:
        data = peer.recv(READ_SIZE)
        if not data:
            raise ConnectionError("the server closed a stream before its end")
        if not first and MARK in data:
            first = time.perf_counter() - asked
        exchange.feed(data)
    return first


@contextlib.contextmanager
def held_streams(
    port: int, message: bytes, count: int, *, seconds: float
) -> Iterator[list[socket.socket]]:
    """Hold `count` streams open, each with its first item received, for the length of a block.

    Raises `TimeoutError` where they are not all there in time.
    """
    peers: list[socket.socket] = []
    deadline = time.monotonic() + seconds
    try:
        for _ in range(0, count, 100):
            batch = [_start(port, message) for _ in range(min(100, count - len(peers)))]
            peers += batch
            _await_items(batch, deadline, len(peers))
        yield peers
    finally:
        for peer in peers:
            peer.close()


def _start(port: int, message: bytes) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=10)
    peer.sendall(message)
    return peer


def _await_items(peers: list[socket.socket], deadline: float, opened: int) -> None:
    for peer in peers:
        received = b""
        while MARK not in received:
            peer.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = peer.recv(READ_SIZE)
            except TimeoutError:
                raise TimeoutError(f"not all of {opened} streams had a first item") from None
            if not data:
                raise ConnectionError(f"the server refused one of {opened} streams")
            received += data
