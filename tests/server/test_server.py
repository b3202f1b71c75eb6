import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from servercommand import INT, SERVED, TERM, Serve, listens, post, until, until_draining


@pytest.mark.parametrize(
    ("sig", "flags"),
    [(TERM, ""), (INT, ""), (TERM, "--http h11 --loop asyncio"), (TERM, "--cors-origin *")],
)
def test_drain(serve: Serve, sig: signal.Signals, flags: str) -> None:
    running = serve("served.py", *flags.split())
    with running.stream() as stream:
        running.signal(sig)
        until_draining(running)
        assert running.predict("pid")[0] == 503
        assert running.get("/v1/models/pid")[0] == 503
        assert running.get("/v2/health/live")[0] == 200
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    assert running.has("stopped")
    assert "Traceback" not in running.log


@pytest.mark.parametrize(
    ("accept", "last"),
    [
        ("application/x-ndjson", b'{"error":"server shutting down"}\n'),
        ("text/event-stream", b'event: error\ndata: {"error":"server shutting down"}\n\n'),
    ],
)
@pytest.mark.slow
def test_end_of_the_drain(serve: Serve, accept: str, last: bytes) -> None:
    running = serve("served.py", "--drain-timeout", "0.3")
    with running.stream(accept=accept) as stream:
        running.signal(TERM)
        assert stream.read().removeprefix(b"\n") == last
        assert running.exit_code(within=2) == 0
    assert running.has("finally")
    assert running.has("stopped")
    assert "Traceback" not in running.log


@pytest.mark.slow
def test_handler_that_blocks(serve: Serve) -> None:
    running = serve("served.py", "--drain-timeout", "0.5")
    connection = running.start_asking("block")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.5) == 0
    assert "busy threads: block" in running.log
    assert running.has("stopped")  # the other model
    assert "Traceback" not in running.log
    connection.close()


@pytest.mark.slow
def test_handler_that_blocks_the_event_loop(serve: Serve) -> None:
    running = serve("served.py", "--drain-timeout", "0")
    connection = running.start_asking("block_loop")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.2) == 0
    assert not running.has("stopped")
    connection.close()


@pytest.mark.slow
def test_event_loop_that_stood_still_is_logged(serve: Serve, tmp_path: Path) -> None:
    source = SERVED + "async def still(payload):\n    time.sleep(1.5)\n    return []\n"
    (tmp_path / "still.py").write_text(source + 'app.add_model(still, "still")\n')
    running = serve("still.py")
    assert running.predict("still")[0] == 200
    until(lambda: "The event loop stood still for" in running.log)


@pytest.mark.slow
def test_log_that_nobody_reads(start: Serve, tmp_path: Path) -> None:
    source = "import logging\n" + SERVED.replace(
        "async def block_loop(payload):\n    block(payload)",
        "async def block_loop(payload):\n"
        '    (HERE / "asked").touch()\n'
        "    while True:\n"
        '        logging.error("x" * 1000)',
    )
    (tmp_path / "served.py").write_text(source)
    running = start("served.py", "--drain-timeout", "0", stderr=subprocess.PIPE)
    pipe = running.process.stderr
    assert pipe is not None
    with pipe:
        while b"Serving" not in (line := pipe.readline()):
            pass
        running.log_path.write_bytes(line)
        until(lambda: running.get("/v2/health/ready")[0] == 200)
        connection = running.start_asking("block_loop")
        until(lambda: running.has("asked"))
        running.signal(TERM)
        assert running.exit_code(within=2.5) == 0
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_are_served_for_the_delay_before_the_drain(serve: Serve, workers: str) -> None:
    delay = "--shutdown-delay", "5", "--drain-timeout", "0.3", "--workers", workers
    running = serve("served.py", *delay)
    running.signal(TERM)
    signalled = time.monotonic()
    until_draining(running)
    assert running.get("/v1/models/pid")[0] == 503
    assert running.get("/v2/health/live")[0] == 200
    with running.stream(accept="application/x-ndjson") as stream:  # it began after the signal
        assert running.predict("pid")[0] == 200
        assert time.monotonic() - signalled < 5
        assert stream.read() == b'{"error":"server shutting down"}\n'
    assert 5 < time.monotonic() - signalled < 15
    assert running.exit_code(within=2) == 0
    assert running.has("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_ends_the_delay_at_once(serve: Serve, workers: str) -> None:
    running = serve("served.py", "--shutdown-delay", "60", "--workers", workers)
    running.signal(TERM)
    until_draining(running)
    running.signal(TERM)
    assert running.exit_code(within=2) == 128 + TERM


@pytest.mark.slow
def test_the_end_is_not_logged_as_that_of_the_request_a_signal_interrupts(
    serve: Serve, tmp_path: Path
) -> None:
    source = SERVED + "async def end(payload):\n    os.kill(os.getpid(), 15)\n    return []\n"
    (tmp_path / "ended.py").write_text(source + 'app.add_model(end, "end")\n')
    running = serve("ended.py")
    assert running.predict("end")[0] == 200
    assert running.exit_code(within=2) == 0
    [stopping] = [line for line in running.log.splitlines() if '"Stopping: ' in line]
    assert "request_id" not in json.loads(stopping)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["words", "block", "block_loop"])
def test_second_signal_ends_at_once(serve: Serve, model: str) -> None:
    running = serve()
    connection = running.start_asking(model)
    until(lambda: running.has("asked"))
    running.signal(TERM)
    time.sleep(0.3)  # nothing tells of the first signal while the event loop is blocked
    assert running.process.poll() is None
    running.signal(TERM)
    assert running.exit_code(within=1) == 128 + TERM
    connection.close()


@pytest.mark.slow
def test_idle_connection_does_not_hold_up_the_end(serve: Serve) -> None:
    running = serve()
    connection = running.connect()
    connection.request("GET", "/")
    connection.getresponse().read()
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert connection.sock.recv(1) == b""
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--http h11 --loop asyncio"])
def test_connection_without_a_request_is_answered_at_the_end(serve: Serve, flags: str) -> None:
    """One that was accepted in time reads a 503, though the listener has gone meanwhile."""
    running = serve("served.py", *flags.split())
    with running.send() as client:
        running.ask("GET", "/v2/health/live")  # it has been accepted by now
        running.signal(TERM)
        until(lambda: not listens(running.port))
        client.sendall(post("pid").encode())
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert running.exit_code(within=2) == 0


@pytest.mark.slow
def test_load_that_blocks_does_not_hold_up_the_end(start: Serve) -> None:
    running = start("served.py")
    running.touch("slow-load")
    until(running.has_begun)
    assert running.get("/v2/health/ready")[0] == 503
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert "busy threads: load of words" in running.log
    assert not running.has("stopped")


def test_mounted(serve: Serve) -> None:
    running = serve("served.py:host")
    with running.stream("/ml") as stream:
        waiting = running.start_asking("", path="/wait")
        running.signal(TERM)
        until_draining(running, "/ml")
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    waiting.close()
    assert running.has("stopped")


@pytest.mark.slow
def test_other_application(serve: Serve) -> None:
    running = serve("served.py:plain")
    connection = running.connect()
    connection.request("GET", "/wait")
    time.sleep(0.2)
    running.signal(TERM)
    until(lambda: not is_listening(running.port), within=2)
    running.touch("go")
    assert connection.getresponse().read() == b"waited"
    assert running.exit_code(within=2) == 0
    connection.close()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
