import itertools
import statistics
from collections.abc import Iterator

import pytest
import realserver
from realserver import Figure, Server, Start

FIGURES = pytest.StashKey[dict[str, list[float]]]()
READINESS = {"broken": 503}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `apps/<app>.py` on a kind of server, once a session, and check it at the end."""
    folder = tmp_path_factory.mktemp("servers")
    servers: dict[tuple[str, str], Server] = {}

    def find(kind: str, app: str) -> Server:
        if (kind, app) not in servers:
            readiness = READINESS.get(app, 200)
            servers[kind, app] = realserver.start(kind, app, folder, readiness=readiness)
        return servers[kind, app]

    yield find
    for server in servers.values():
        server.stop()
    for server in servers.values():
        untidy = realserver.UNTIDY.search(server.log)
        assert not untidy, f"{server.kind}: {untidy[0]!r} in {server.log_path}"


@pytest.fixture(scope="session")
def keys() -> Iterator[str]:
    """Names for requests, so that a test finds its own in the ledger."""
    return (f"k{number}" for number in itertools.count())


@pytest.fixture
def key(keys: Iterator[str]) -> str:
    return next(keys)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Collect measured seconds, to be printed after the run; nothing asserts them tightly."""
    figures = request.config.stash.setdefault(FIGURES, {})

    def record(what: str, seconds: float) -> None:
        figures.setdefault(what, []).append(seconds)

    return record


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if figures := config.stash.get(FIGURES, {}):
        terminalreporter.section("figures, in milliseconds: median, largest, number")
        for what, seconds in figures.items():
            middle, largest = statistics.median(seconds) * 1000, max(seconds) * 1000
            terminalreporter.write_line(f"{middle:8.2f} {largest:8.2f} {len(seconds):4}  {what}")
