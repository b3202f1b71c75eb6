import os
import signal
from pathlib import Path

import pytest
from servercommand import (
    INT,
    KILL,
    SERVED,
    TERM,
    Running,
    Serve,
    is_alive,
    listens,
    until,
    until_draining,
)

from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.server.supervisor import pause_after

VARIABLE = DIRECTORY_VARIABLE.encode()


def serve_with_workers(serve: Serve, *flags: str, **environment: str) -> Running:
    running = serve("served.py", "--workers", "2", *flags, **environment)
    until(lambda: len(running.served_by) == 2)
    return running


def pids(running: Running) -> set[int]:
    return {pid for _, pid in running.served_by}


@pytest.mark.slow
def test_killed_worker_is_replaced(serve: Serve) -> None:
    running = serve_with_workers(serve)
    victim, other = pids(running)
    os.kill(victim, KILL)
    until(lambda: not is_alive(victim))
    assert running.get("/v2/health/live")[0] == 200
    until(lambda: len(pids(running)) == 3)
    until(lambda: pids(running) - {victim, other} <= answering(running))
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
    assert not any(map(is_alive, pids(running)))
    assert "signal 9" in running.log


def answering(running: Running) -> set[int]:
    answers = [running.predict("pid") for _ in range(8)]
    return {body["pid"] for status, body in answers if status == 200}


@pytest.mark.slow
def test_any_worker_shows_the_metrics_of_all(serve: Serve) -> None:
    running = serve_with_workers(serve)
    until(lambda: answering(running) == pids(running))
    shown = {running.get("/metrics")[1] for _ in range(8)}
    counts = {line for text in shown for line in text.splitlines() if "requests_total{" in line}
    assert len(counts) == 1
    assert float(counts.pop().split()[-1]) % 8 == 0
    running.signal(TERM)
    assert running.exit_code(within=3) == 0


@pytest.mark.parametrize("sig", [TERM, INT])
def test_workers_drain(serve: Serve, sig: signal.Signals) -> None:
    running = serve_with_workers(serve)
    with running.stream() as stream:
        os.killpg(running.process.pid, sig)  # as a terminal's Ctrl-C, or systemd
        until_draining(running)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    assert running.has("stopped")
    assert not any(map(is_alive, pids(running)))
    assert "Traceback" not in running.log


@pytest.mark.slow
def test_listener_is_closed_with_the_last_worker_that_answers(serve: Serve, tmp_path: Path) -> None:
    """Not with the process: a connection that nobody will accept is refused, not kept waiting."""
    stop = "def stop(self):\n        (HERE / 'stopping').touch()\n        time.sleep(60)"
    source = SERVED.replace("def stop(self):", f"{stop}\n", 1)
    (tmp_path / "served.py").write_text(source)
    running = serve("served.py", "--workers", "2")
    running.signal(TERM)
    until(lambda: running.has("stopping"))
    until(lambda: not listens(running.port), within=1)


@pytest.mark.slow
def test_worker_whose_handler_blocks(serve: Serve) -> None:
    running = serve_with_workers(serve, "--drain-timeout", "0.5")
    connection = running.start_asking("block_loop")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.5) == 0
    assert not any(map(is_alive, pids(running)))
    connection.close()


@pytest.mark.slow
def test_second_signal_ends_all_workers_at_once(serve: Serve) -> None:
    running = serve_with_workers(serve)
    with running.stream():
        running.signal(TERM)
        until_draining(running)
        running.signal(INT)
        assert running.exit_code(within=1) == 128 + INT
        until(lambda: not any(map(is_alive, pids(running))), within=1)


@pytest.mark.slow
def test_workers_end_with_their_supervisor_and_remove_its_directory(serve: Serve) -> None:
    running = serve_with_workers(serve)
    environment = Path(f"/proc/{min(pids(running))}/environ").read_bytes().split(b"\0")
    directory = {Path(os.fsdecode(line[23:])) for line in environment if line[:22] == VARIABLE}
    assert {path.is_dir() for path in directory} == {True}
    running.signal(KILL)
    until(lambda: not any(map(is_alive, pids(running))), within=3)
    assert {path.exists() for path in directory} == {False}


@pytest.mark.slow
def test_a_directory_that_the_environment_names_is_kept(serve: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "modelserve-mine"
    running = serve_with_workers(serve, MODELSERVE_METRICS_DIR=str(directory))
    running.signal(KILL)
    until(lambda: not any(map(is_alive, pids(running))), within=3)
    assert len(list(directory.iterdir())) == 2


@pytest.mark.slow
def test_worker_that_cannot_be_replaced_leaves_the_others(serve: Serve, tmp_path: Path) -> None:
    running = serve_with_workers(serve)
    victim, _ = pids(running)
    (tmp_path / "served.py").write_text("import not_there_at_all")
    os.kill(victim, KILL)
    until(lambda: "not_there_at_all" in running.log)
    (tmp_path / "served.py").write_text(SERVED)
    assert running.predict("pid")[0] == 200
    until(lambda: len(pids(running)) == 3)
    running.signal(TERM)
    assert running.exit_code(within=3) == 0


@pytest.mark.slow
def test_application_that_does_not_start(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no licence'})\n"
    )
    for workers in ("1", "2"):
        running = start("failing.py", "--workers", workers)
        assert running.exit_code(within=10) == 3
        assert "no licence" in running.log


@pytest.mark.parametrize(
    ("early_ends", "pause"), [(0, 0), (1, 0), (2, 2), (4, 14), (5, 30), (1_024, 30), (10**6, 30)]
)
def test_the_pause_before_a_replacement_is_bounded(early_ends: int, pause: float) -> None:
    assert pause_after(early_ends) == pause


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_slow_import_is_waited_for(serve: Serve, tmp_path: Path, workers: str) -> None:
    hold = "import ctypes\nctypes.PyDLL(None).sleep(15)\n"  # holds the interpreter's lock
    (tmp_path / "served.py").write_text(hold + SERVED)
    running = serve("served.py", "--workers", workers)
    until(lambda: len(running.served_by) == int(workers), within=30)
    assert "is replaced" not in running.log
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
