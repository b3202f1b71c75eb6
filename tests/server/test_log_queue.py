import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from servercommand import KILL, TERM, Running, Serve, is_alive, post, until

from modelserve.server.log_queue import LineWriter, QueuedHandler, blocking_descriptor
from modelserve.server.logs import HumanFormatter, JsonFormatter, TerminalHandler

LINE = b"x" * 99 + b"\n"
slow = pytest.mark.slow
MORE_THAN_FITS = 40_000


Pipe: TypeAlias = "tuple[io.FileIO, io.FileIO]"


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read, write = os.pipe()
    with io.FileIO(read, "r") as reader, io.FileIO(write, "w") as writer:
        yield reader, writer


@pytest.fixture
def writers() -> Iterator[list[LineWriter]]:
    """Writers, which end after the test."""
    made: list[LineWriter] = []
    yield made
    for writer in made:
        writer.close()


def lost(count: int) -> bytes:
    return b"%d lost\n" % count


def read_until(reader: io.FileIO, last: bytes) -> bytes:
    data = b""
    while not data.endswith(last):
        data += reader.read(1 << 16) or b""
    return data


def flushed(writer: LineWriter) -> float:
    """Return how long a flush has taken."""
    begun = time.monotonic()
    writer.flush(0.1)
    return time.monotonic() - begun


def test_lines_are_written_in_order(pipe: Pipe, writers: list[LineWriter]) -> None:
    writers.append(LineWriter(pipe[1].fileno(), lost))
    lines = [b"%d %s\n" % (n, b"y" * (n % 977)) for n in range(500)]
    for line in lines:
        writers[0].put(line)
    assert read_until(pipe[0], lines[-1]) == b"".join(lines)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_without_a_reader_lines_are_dropped_and_counted(
    pipe: Pipe, writers: list[LineWriter], is_blocking: bool
) -> None:
    os.set_blocking(pipe[1].fileno(), is_blocking)
    writers.append(LineWriter(pipe[1].fileno(), lost))
    for _ in range(MORE_THAN_FITS):
        writers[0].put(LINE)
    assert flushed(writers[0]) < 1
    *kept, told = read_until(pipe[0], b" lost\n").splitlines(keepends=True)
    assert kept == [LINE] * len(kept)
    assert 10_000 < len(kept) < 15_000  # what waits is a mebibyte, and what the pipe takes
    assert told == lost(MORE_THAN_FITS - len(kept))
    writers[0].flush(5)
    writers[0].put(b"back\n")
    assert pipe[0].read(100) == b"back\n"


def test_a_reader_that_has_gone(pipe: Pipe, writers: list[LineWriter]) -> None:
    writers.append(LineWriter(pipe[1].fileno(), lost))
    pipe[0].close()
    for _ in range(MORE_THAN_FITS):
        writers[0].put(LINE)
    writers[0].flush(5)
    assert flushed(writers[0]) < 0.1


def test_another_reader_of_a_named_pipe_is_told(tmp_path: Path, writers: list[LineWriter]) -> None:
    """As containerd opens them."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with path.open("wb", buffering=0) as end:
        writers.append(LineWriter(end.fileno(), lost))
        os.close(first)
        for _ in range(10):
            writers[0].put(LINE)
        writers[0].flush(5)
        with io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as second:
            os.set_blocking(second.fileno(), True)
            writers[0].put(b"back\n")
            assert read_until(second, b" lost\n") == b"back\n" + lost(10)
            writers[0].flush(5)


def test_two_processes_on_one_pipe_do_not_mix_lines(pipe: Pipe, writers: list[LineWriter]) -> None:
    writers += LineWriter(pipe[1].fileno(), lost), LineWriter(pipe[1].fileno(), lost)
    for n in range(2000):
        for writer, letter in zip(writers, (b"a", b"b"), strict=True):
            writer.put(letter * (n % 600) + b"\n")
    seen = b""
    while seen.count(b"\n") < 4000:
        seen += pipe[0].read(1 << 16) or b""
    assert all(len(set(line)) <= 1 for line in seen.splitlines())


def test_a_forked_child_writes_itself() -> None:
    code = (
        "import os, time\n"
        "from modelserve.server.log_queue import LineWriter\n"
        "writer = LineWriter(1, lambda n: b'')\n"
        "if os.fork() == 0:\n"
        "    writer.put(b'of the child\\n')\n"
        "    writer.flush()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    assert done.stdout == b"of the child\n"


def test_what_may_block(pipe: Pipe, tmp_path: Path) -> None:
    terminal, other = pty.openpty()
    left, right = socket.socketpair()
    with left, right:
        for end in (pipe[1].fileno(), terminal, left.fileno()):
            with open(end, "w", closefd=False) as stream:
                assert blocking_descriptor(stream) == end
    for end in (terminal, other):
        os.close(end)
    with (tmp_path / "file").open("w") as file, Path(os.devnull).open("w") as null:
        assert [blocking_descriptor(s) for s in (file, null, io.StringIO(), None)] == [None] * 4
    assert blocking_descriptor(pipe[1]) is None  # as of a notebook: it may write elsewhere


@pytest.mark.parametrize("formatter", [JsonFormatter(), HumanFormatter()])
def test_what_was_lost_has_the_form_of_the_log(pipe: Pipe, formatter: logging.Formatter) -> None:
    handler = QueuedHandler(pipe[1].fileno(), "ascii")
    handler.setFormatter(formatter)
    fields = {"name": "x", "msg": "caf\u00e9 %s", "args": ("x" * 3000,)}
    record = logging.makeLogRecord(fields)
    for _ in range(500):
        handler.handle(record)
    log = b""
    while b"nobody read them" not in log:
        log += read_until(pipe[0], b"\n")
    told = log.splitlines()[-1]
    if isinstance(formatter, JsonFormatter):
        line = json.loads(told)
        assert line["message"] == f"{line['lost_lines']} log lines were lost: nobody read them"
        assert (line["level"], line["logger"]) == ("warning", "modelserve")
    else:
        assert b"WARNING modelserve: " in told
    handler.close()


def test_a_record_that_cannot_be_formatted_is_reported(pipe: Pipe) -> None:
    handler = QueuedHandler(pipe[1].fileno(), "utf-8")
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    shown = read_until(pipe[0], b"Message: '%d'\n")
    assert shown.startswith(b"--- Logging error ---\nTraceback")
    handler.close()


def test_lines_clear_the_last_one_of_a_terminal_even_where_some_are_lost(pipe: Pipe) -> None:
    handler = TerminalHandler(pipe[1].fileno(), "utf-8")
    handler.show("loading")
    assert read_until(pipe[0], b"loading") == b"\r\x1b[Kloading"
    handler.flush()
    handler.write("a line")
    assert read_until(pipe[0], b"\n") == b"\r\x1b[Ka line\n"
    handler.flush()
    handler.show("loading")
    handler.hide()  # not written yet, or taken back
    handler.write("another")
    assert read_until(pipe[0], b"another\n").removesuffix(b"another\n").endswith(b"\r\x1b[K")
    handler.flush()
    handler.show("loading")
    for _ in range(500):
        handler.write("x" * 3000)
        handler.show("never shown, since lines wait")
    log = b""
    while b"nobody read them" not in log:
        log += read_until(pipe[0], b"\n")
    assert log.startswith(b"\r\x1b[Kloading\r\x1b[Kx")
    assert log.split(b"\n")[-2].startswith(b"\r\x1b[K")
    assert b"never" not in log
    handler.close()


# --- the command, with a log that nobody reads --------------------------------------------------


@pytest.fixture
def unread(start: Serve, pipe: Pipe) -> Iterator[Any]:
    """Start a server and make its log full."""
    started: list[Running] = []

    def run(*flags: str, ends: tuple[int, int] | None = None) -> Running:
        reader, descriptor = ends or (pipe[0].fileno(), pipe[1].fileno())
        running = start("served.py", "--drain-timeout", "1", *flags, stderr=descriptor)
        started.append(running)
        log = b""
        workers = 2 if flags[-2:] == ("--workers", "2") else 1
        while log.count(b"Serving on") < workers:
            log += os.read(reader, 4096)
        url = log.partition(b"Serving on ")[2].split()[0].decode()
        line = {"message": f"Serving on {url} (process {running.process.pid})"}
        running.log_path.write_text(json.dumps(line) + "\n")
        until(lambda: running.get("/v2/health/ready")[0] == 200)
        return running

    yield run
    for running in started:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, KILL)


def ask_often(running: Running, times: int) -> None:
    with running.open() as sock:
        for _ in range(times):
            sock.sendall(post("pid").encode())
            answer = b""
            while not answer.endswith(b"}"):
                answer += sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["", "--workers 2", pytest.param("--log-format human --reload", marks=slow)]
)
def test_a_log_that_nobody_reads_stops_no_server(unread: Any, flags: str) -> None:
    running = unread(*flags.split())
    ask_often(running, 600)  # a pipe takes 200 lines
    assert running.get("/v2/health/live")[0] == 200
    running.signal(TERM)
    assert running.exit_code(within=3.5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_was_lost_is_told_once_the_reader_is_back(
    unread: Any, pipe: Pipe, workers: str
) -> None:
    running = unread("--workers", workers)
    ask_often(running, 10_000)
    log = b""
    while b"log lines were lost" not in log:
        log += pipe[0].read(1 << 16) or b""
    running.signal(TERM)
    pipe[1].close()
    log += pipe[0].readall()
    lines = [json.loads(line) for line in log.splitlines()[1:]]  # the first may be a part
    access = [line for line in lines if line["logger"] == "modelserve.access"]
    told = [line["lost_lines"] for line in lines if "lost_lines" in line]
    assert len(access) + sum(told) in (10_000, 9_999)
    assert lines[-1]["message"].startswith("Finished server process")


@pytest.mark.slow
def test_a_killed_worker_and_a_full_log(unread: Any) -> None:
    """The supervisor has a lot to say, and nobody to say it to."""
    running = unread("--workers", "2")
    ask_often(running, 600)
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    victims = [int(pid) for pid in children.read_text().split()]
    for pid in victims[-2:]:
        os.kill(pid, KILL)
    until(lambda: not any(map(is_alive, victims[-2:])))
    until(lambda: running.get("/v2/health/ready")[0] == 200)
    running.signal(TERM)
    assert running.exit_code(within=3.5) == 0


@pytest.mark.slow
def test_a_stopped_terminal(unread: Any) -> None:
    """Ctrl-S."""
    terminal, other = pty.openpty()
    running = unread(ends=(terminal, other))
    termios.tcflow(other, termios.TCOOFF)
    ask_often(running, 600)
    running.signal(TERM)
    assert running.exit_code(within=3.5) == 0
    termios.tcflow(other, termios.TCOON)
    os.close(terminal)
    os.close(other)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=slow)])
@pytest.mark.slow
def test_the_reader_goes(unread: Any, pipe: Pipe, workers: str) -> None:
    running = unread("--workers", workers)
    pipe[0].close()
    ask_often(running, 20)
    running.signal(TERM)
    assert running.exit_code(within=3.5) == 0


@pytest.mark.parametrize(
    ("closed", "workers"),
    [
        ("0<&- 1>&- 2>&-", "1"),
        pytest.param("2>&-", "2", marks=slow),
        pytest.param("0<&- 1>&- 2>&-", "2", marks=slow),
    ],
)
def test_closed_standard_streams(tmp_path: Path, closed: str, workers: str) -> None:
    (tmp_path / "served.py").write_text("from modelserve import ModelServer\napp = ModelServer()\n")
    path = tmp_path / "socket"
    program = f'exec "{sys.executable}" -m modelserve served.py --uds socket --workers {workers}'
    process = subprocess.Popen(["sh", "-c", f"{program} {closed}"], cwd=tmp_path)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            until(lambda: path.exists() and sock.connect_ex(str(path)) == 0)
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
        assert Path(f"/proc/{process.pid}/fd/2").readlink() == Path(os.devnull)
        process.send_signal(TERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
