"""Check that the client is not what is measured: the same streams by our client and by wrk.

wrk counts whole responses only, and a stream may outlast the measurement; so its items are
reckoned from the bytes it has read. Ours is sound where it is at least as fast as wrk, and the
server's CPU is what is used up.
"""

from dataclasses import dataclass

from benchmarks import client, competitors, environments, measures
from benchmarks.competitors import Endpoint
from benchmarks.servers import Server, running, wait_for_port


@dataclass(frozen=True)
class Seen:
    """What one client measured of a server's streams."""

    per_second: float
    server_cpus: float


def compare_clients(kind: str, connections: int, seconds: int) -> tuple[Seen, Seen]:
    """Measure the bare application's streams by our client and by wrk."""
    competitor = competitors.load("bare")
    endpoint = competitor.ENDPOINTS[kind]
    python = environments.ensure("bare", competitor.REQUIREMENTS)
    with running("bare", python, competitor.COMMAND) as server:
        wait_for_port(server, 30)
        return (
            _by_ours(server, endpoint, connections, seconds),
            _by_wrk(server, endpoint, connections, seconds),
        )


def _by_ours(server: Server, endpoint: Endpoint, connections: int, seconds: int) -> Seen:
    load = client.drive(
        server.port,
        client.request(endpoint.path, endpoint.body, accept=endpoint.accept),
        connections=connections,
        seconds=seconds,
        warm=0.5,
        cpu=server.cpu_seconds,
    )
    return Seen(load.items / load.seconds, load.cpu_seconds / load.seconds)


def _by_wrk(server: Server, endpoint: Endpoint, connections: int, seconds: int) -> Seen:
    one = client.request(endpoint.path, endpoint.body, accept=endpoint.accept)
    size = len(client.ask(server.port, one)[1])
    before = server.cpu_seconds()
    found = measures.run_wrk(server.port, endpoint, connections=connections, seconds=seconds)
    took = found["microseconds"] / 1e6
    items = found["bytes"] / size * endpoint.items
    return Seen(items / took, (server.cpu_seconds() - before) / took)


def report() -> str:
    """Return a table of both clients on the bare application."""
    lines = ["streams    ours items/s (server CPUs)    wrk items/s (server CPUs)"]
    for kind in ("bytes", "sse"):
        for connections in (1, 8, 64):
            ours, wrk = compare_clients(kind, connections, 2)
            lines.append(
                f"{kind:5} {connections:3}  {ours.per_second:12,.0f} ({ours.server_cpus:.2f})"
                f"           {wrk.per_second:12,.0f} ({wrk.server_cpus:.2f})"
            )
    return "\n".join(lines)
