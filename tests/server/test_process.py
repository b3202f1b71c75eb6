import os
import signal
from pathlib import Path

import pytest
from servercommand import INT, TERM, Serve, until, until_draining

from modelserve import ModelServer
from modelserve.errors import LoadError
from modelserve.server.process import make_server
from modelserve.server.settings import Settings

HUP = signal.SIGHUP


@pytest.mark.slow
@pytest.mark.parametrize(("sig", "workers"), [(TERM, "1"), (INT, "1"), (TERM, "2"), (INT, "2")])
def test_signal_during_the_import(
    start: Serve, tmp_path: Path, sig: signal.Signals, workers: str
) -> None:
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\nimport time\nPath('importing').touch()\ntime.sleep(60)\n"
    )
    running = start("slow.py", "--workers", workers)
    until(lambda: running.has("importing"))
    os.killpg(running.process.pid, sig)
    assert running.exit_code(within=2) == 0
    assert running.log == ""


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--workers 2", "--reload"])
def test_hangup_drains(serve: Serve, flags: str) -> None:
    """The whole group gets it twice: once from the shell, once from the kernel."""
    running = serve("served.py", *flags.split())
    with running.stream() as stream:
        for _ in range(2):
            os.killpg(running.process.pid, HUP)
            until_draining(running)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    assert running.has("finally") and running.has("stopped")
    assert "Traceback" not in running.log


def test_hangup_after_another_signal_does_not_hurry(serve: Serve) -> None:
    """As systemd sends it, with SendSIGHUP."""
    running = serve()
    with running.stream() as stream:
        running.signal(TERM)
        running.signal(HUP)
        until_draining(running)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ignored_hangup_stays_ignored(serve: Serve, tmp_path: Path, workers: str) -> None:
    program = tmp_path / "nohup.py"
    program.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'modelserve', *sys.argv[1:]])\n"
    )
    address = ("served.py", "--port", "0", "--workers", workers)
    running = serve(address=address, program=program)
    os.killpg(running.process.pid, HUP)
    with running.stream() as stream:
        os.killpg(running.process.pid, HUP)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
    assert running.get("/v2/health/ready")[0] == 200
    running.signal(TERM)
    assert running.exit_code(within=3) == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_handler_of_the_application_is_kept(serve: Serve, tmp_path: Path, workers: str) -> None:
    (tmp_path / "served.py").write_text(
        "import signal\n"
        "from pathlib import Path\n"
        "from modelserve import ModelServer\n"
        "signal.signal(signal.SIGHUP, lambda sig, frame: Path('handled').touch())\n"
        "app = ModelServer()\n"
    )
    running = serve("served.py", "--workers", workers)
    os.kill(running.served_by[0][1], HUP)
    until(lambda: running.has("handled"))
    assert running.get("/v2/health/ready")[0] == 200


@pytest.mark.parametrize(
    ("certfile", "keyfile", "missing"),
    [("none", None, "none"), ("cert.pem", "none", "none"), (".", None, ".")],
)
def test_a_file_for_tls_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certfile: str, keyfile: str, missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert.pem").write_text("a certificate")
    settings = Settings(uvicorn={"ssl_certfile": certfile, "ssl_keyfile": keyfile})
    with pytest.raises(LoadError, match=r"^The TLS certificate or key cannot be used: ") as caught:
        make_server(ModelServer, settings)
    assert str(caught.value).endswith(f": '{missing}'.")
