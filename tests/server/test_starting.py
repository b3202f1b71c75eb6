"""The loads of the start, seen from outside of the process: stopped, fatal, counted."""

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from servercommand import TERM, Serve, until

LOADS = """
import time
from pathlib import Path
import anyio
from modelserve import Model, ModelServer

HERE = Path(__file__).parent

class Base(Model):
    def predict(self, payload):
        raise NotImplementedError

class Quick(Base):
    def load(self):
        return True

class InThread(Base):
    def load(self):
        (HERE / "began").touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)
        return True

class OnLoop(Base):
    async def load(self):
        (HERE / "began").touch()
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            (HERE / "cleaned").touch()

class Blocking(Base):
    async def load(self):
        (HERE / "began").touch()
        time.sleep(60)

class Failing(Base):
    def load(self):
        raise RuntimeError("no disk")

quick = Quick("quick")
thread, waiting = [ModelServer([quick, InThread("m")], wait_for_load=w) for w in (False, True)]
on_loop = ModelServer([quick, OnLoop("m")], wait_for_load=True)
blocking = ModelServer([quick, Blocking("m")])
failing = ModelServer([quick, Failing("m")])
named = ModelServer([quick, InThread("m")], control=True)
"""


@pytest.fixture(autouse=True)
def loads(tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(LOADS)


@pytest.mark.slow
@pytest.mark.parametrize("app", ["thread", "waiting", "on_loop", "blocking"])
def test_a_signal_during_the_loads_of_the_start_ends_at_once(
    app: str, start: Serve, tmp_path: Path
) -> None:
    running = start(f"loads.py:{app}", "--log-format", "json")
    until((tmp_path / "began").exists)
    running.signal(TERM)
    assert running.exit_code(within=1.5) == 0
    is_blocked = app == "blocking"
    state = "still loading: quick, m" if is_blocked else "models are loading: m; quick is READY"
    assert state in running.log
    assert (tmp_path / "cleaned").exists() == (app == "on_loop")


@pytest.mark.slow
def test_a_load_that_a_client_asked_for_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    running = serve("loads.py:named")
    (tmp_path / "began").unlink()
    (tmp_path / "go").unlink()
    client = running.open()
    client.sendall(
        b"POST /v2/repository/models/m/load HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    )
    until((tmp_path / "began").exists)
    client.close()
    running.signal(TERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(0.6)
    (tmp_path / "go").touch()
    assert running.exit_code(within=2) == 0


@pytest.mark.parametrize("flags", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_a_load_that_fails_may_end_the_process(flags: tuple[str, ...], start: Serve) -> None:
    running = start("loads.py:failing", "--exit-on-load-failure", *flags)
    assert running.exit_code(within=10) == 4
    assert "Exiting, since models could not be loaded: m" in running.log
    assert "no disk" in running.log


def test_a_terminal_counts_the_loads(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(
        LOADS + "\nfor name in 'ab': named.add_model(InThread(name))\n"
    )
    terminal, stderr = pty.openpty()
    running = start("loads.py:named", stderr=stderr, TERM="xterm", COLUMNS="200")
    os.close(stderr)
    seen = read_until(terminal, b"models loaded; loading a, b, m")
    (tmp_path / "go").touch()
    seen += read_until(terminal, b"Model m is loaded")
    assert b"\r\x1b[K" in seen
    running.signal(TERM)
    assert running.exit_code(within=5) == 0
    os.close(terminal)


def read_until(terminal: int, text: bytes) -> bytes:
    seen, ends = b"", time.monotonic() + 10
    while text not in seen:
        assert time.monotonic() < ends, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536)
    return seen
