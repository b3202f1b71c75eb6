import os
import signal
from pathlib import Path

import pytest
from servercommand import INT, KILL, ROOT, SERVED, TERM, Running, Serve, is_alive, until


def edit(running: Running, text: str) -> None:
    (running.folder / "served.py").write_text(text)


def answering(running: Running, **answer: object) -> bool:
    return running.predict("pid") == (200, answer)


def processes_of(running: Running) -> list[int]:
    """Return the processes that were started with a command, which leads their group."""
    group = running.process.pid
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in found if is_alive(pid) and os.getpgid(pid) == group]


def test_an_edited_file_is_served_until_ctrl_c(serve: Serve) -> None:
    running = serve("served.py", "--reload")
    (_, before), *others = running.served_by
    assert not others
    assert answering(running, pid=before)
    edit(running, SERVED.replace('{"pid": os.getpid()}', '{"pid": "edited"}'))
    until(lambda: len(running.served_by) == 2)
    until(lambda: answering(running, pid="edited"))
    assert "Restarting; changed: served.py" in running.log
    assert not is_alive(before)
    os.killpg(running.process.pid, INT)  # as a terminal's Ctrl-C
    assert running.exit_code(within=3) == 0
    until(lambda: not processes_of(running), within=2)
    assert running.has("stopped")
    assert "Traceback" not in running.log
    assert "Worker" not in running.log


@pytest.mark.slow
def test_a_file_that_cannot_be_imported_is_reported_and_can_be_mended(serve: Serve) -> None:
    running = serve("served.py", "--reload")
    edit(running, "import not_there_at_all")
    until(lambda: "waiting for a change" in running.log)
    assert "No module named 'not_there_at_all'" in running.log
    assert running.process.poll() is None
    edit(running, SERVED)
    until(lambda: len(running.served_by) == 2)
    assert running.predict("pid")[0] == 200
    assert running.log.count("waiting for a change") == 1


@pytest.mark.slow
def test_an_open_stream_does_not_hold_up_a_restart(serve: Serve) -> None:
    running = serve("served.py", "--reload")
    with running.stream(accept="application/x-ndjson") as stream:
        edit(running, f"{SERVED}\n")
        assert stream.read() == b'{"error":"server shutting down"}\n'
    until(lambda: running.has("finally"), within=1)  # a file as well, but no Python
    until(lambda: len(running.served_by) == 2)
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
    assert len(running.served_by) == 2


@pytest.mark.slow
def test_models_of_a_directory_are_watched(serve: Serve, tmp_path: Path) -> None:
    model = tmp_path / "models" / "m" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("def load(path, name): return lambda payload: 1")
    running = serve("served.py", "--reload", "--model-dir", "models")
    assert running.predict("m") == (200, 1)
    model.write_text("def load(path, name): return lambda payload: 2")
    until(lambda: len(running.served_by) == 2)
    until(lambda: running.predict("m") == (200, 2))


@pytest.mark.slow
def test_second_signal_ends_all_at_once(serve: Serve) -> None:
    running = serve("served.py", "--reload", "--drain-timeout", "30")
    with running.stream():
        running.signal(INT)
        until(lambda: running.get("/v2/health/ready")[0] == 503, within=2)
        running.signal(INT)
        assert running.exit_code(within=1) == 128 + INT
        until(lambda: not processes_of(running), within=2)


@pytest.mark.slow
def test_worker_ends_with_the_process_that_watches(serve: Serve) -> None:
    running = serve("served.py", "--reload")
    running.signal(KILL)
    until(lambda: not processes_of(running), within=3)


@pytest.mark.slow
@pytest.mark.parametrize("sig", [TERM, INT])
def test_signal_during_the_import(start: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\nimport time\nPath('importing').touch()\ntime.sleep(60)\n"
    )
    running = start("slow.py", "--reload")
    until(lambda: running.has("importing"))
    os.killpg(running.process.pid, sig)
    assert running.exit_code(within=3) == 0
    assert "Traceback" not in running.log


def test_file_that_is_not_there(start: Serve, tmp_path: Path) -> None:
    running = start("gone.py", "--reload")
    assert running.exit_code(within=10) == 2
    assert running.log == f"modelserve: There is no file {tmp_path}/gone.py.\n"


def test_without_watchfiles(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import sys; sys.modules['watchfiles'] = None"
    )
    path = f"{tmp_path}/without{os.pathsep}{ROOT}"
    running = start("served.py", "--reload", PYTHONPATH=path)
    assert running.exit_code(within=10) == 2
    assert running.log == (
        "modelserve: --reload needs the package watchfiles, which comes with uvicorn[standard].\n"
    )
