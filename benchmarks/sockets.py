"""Messages a second over one WebSocket, beside a bare application that parses and writes the same.

`flow` sends without waiting for results, from a thread of its own; `turns` waits for each result
before it sends the next message. The CPU time is the server's; it says more on a busy machine.
"""

import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence

from benchmarks.duplex import cpu_seconds, serving

KINDS = ("bare", "lists", "iterator")
MESSAGE = b'{"x": 12345, "name": "a row of an ordinary size", "more": [1.5, 2.5, 3.5]}'
RESULT = b'{"y":12345}'
# Masked, as a client's must be, with a mask that changes nothing (RFC 6455, 5.2).
FRAME = bytes([0x81, 0x80 | len(MESSAGE)]) + bytes(4) + MESSAGE
ANSWER = bytes([0x81, len(RESULT)]) + RESULT
LOT = 200


def run(messages: int, rounds: int, host: str = "uvicorn", kinds: Sequence[str] = KINDS) -> str:
    """Measure all kinds in turn; return a table."""
    lines = [f"{host}, {messages} messages of {len(MESSAGE)} bytes, median of {rounds}"]
    for way, send in (("flow", flow), ("turns", turns)):
        count = messages if way == "flow" else messages // 5
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                with serving(host, "benchmarks.apps.sockets:app") as (port, pid):
                    send(port, kind, count // 10)
                    used = cpu_seconds(pid)
                    rates[kind].append(count / send(port, kind, count))
                    cpu[kind].append((cpu_seconds(pid) - used) / count * 1e6)
        for kind in kinds:
            pairs = zip(rates[kind], rates[kinds[0]], strict=True)
            ratio = statistics.median(ours / bare for ours, bare in pairs)
            rate = statistics.median(rates[kind])
            lines.append(
                f"{way:6} {kind:10} {rate:10.0f} messages/s {ratio:6.2f} of {kinds[0]}"
                f" {statistics.median(cpu[kind]):6.1f} us CPU a message"
            )
    return "\n".join(lines)


def flow(port: int, kind: str, messages: int) -> float:
    """Send messages and read their results at the same time; return the seconds until the last."""
    with _connected(port, kind) as client:
        began = time.perf_counter()
        writer = threading.Thread(target=_write, args=(client, messages))
        writer.start()
        _read(client, messages)
        writer.join()
        return time.perf_counter() - began


def turns(port: int, kind: str, messages: int) -> float:
    """Send each message once the result of the one before has come."""
    with _connected(port, kind) as client:
        began = time.perf_counter()
        for _ in range(messages):
            client.sendall(FRAME)
            _read(client, 1)
        return time.perf_counter() - began


def _connected(port: int, kind: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f"GET /v1/models/{kind}:predict HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
    head += "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
    head += "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    client.sendall(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101"), answer
    return client


def _write(client: socket.socket, messages: int) -> None:
    while messages:
        lot = min(messages, LOT)
        client.sendall(FRAME * lot)
        messages -= lot


def _read(client: socket.socket, messages: int) -> None:
    left = messages * len(ANSWER)
    while left:
        data = client.recv(min(left, 1 << 18))
        assert data, "the server has closed"
        left -= len(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from `python -m benchmarks.sockets MESSAGES ROUNDS HOST KIND,...`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    defaults = ["50000", "3", "uvicorn", ",".join(KINDS)]
    messages, rounds, host, kinds = [*given, *defaults[len(given) :]]
    print(run(int(messages), int(rounds), host, kinds.split(",")))


if __name__ == "__main__":
    main()
