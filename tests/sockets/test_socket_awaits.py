"""A disconnect cancels the handler wherever it waits, and its clean-up completes."""

import json
import time

import pytest
from rawclient import Connection
from realserver import Figure, Start, hosts

WAITS = [
    "sleep", "event", "checkpoints", "polls", "busy_polls", "locks", "locked", "queue", "group",
    "started", "timeouts", "nested_timeouts", "threads", "shielded", "caught", "inner_finally",
    "generators",
]  # fmt: skip
PLACES = [
    *("value", "second", "wrapping"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("first", "preprocessing", "postprocessing")
    ),
]
SOON = 10  # what is not cancelled waits for 20 s
CANCELLED = {"Cancelled", "CancelledError"}


@hosts("httptools", "trio", slow=["h11", "hypercorn", "granian"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wait", WAITS)
def test_client_leaves_while_the_handler_waits(
    start: Start, figure: Figure, key: str, host: str, place: str, wait: str
) -> None:
    server = start(host, "awaits")
    with Connection(server.port) as client:
        body = json.dumps({"key": key, "wait": wait}).encode()
        client.ask("POST", f"/v1/models/{place}:predict", body)
        server.ledger.wait(key, "start")
        time.sleep(0.01)
        closed = time.monotonic()
    delay = server.ledger.wait(key, "end").time - closed
    figure(f"from close to the end of a clean-up of 20 to 60 ms on {host}", delay)
    kinds = {event.name for event in server.ledger.of(key)} - {"start", "end"}
    assert len(kinds) == 1
    assert kinds & CANCELLED or kinds == {"BaseExceptionGroup"}
    assert delay < SOON


@hosts("httptools", "trio", slow=["h11", "hypercorn"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.slow
def test_client_leaves_in_any_form(start: Start, key: str, host: str, accept: str) -> None:
    server = start(host, "awaits")
    for n, wait in enumerate(WAITS):
        with Connection(server.port) as client:
            body = json.dumps({"key": f"{key}-{n}", "wait": wait}).encode()
            client.ask("POST", "/v1/models/second:predict", body, accept=accept)
            server.ledger.wait(f"{key}-{n}", "start")
            closed = time.monotonic()
        assert server.ledger.wait(f"{key}-{n}", "end").time - closed < SOON
