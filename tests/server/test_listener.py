import socket
from pathlib import Path

import pytest
from servercommand import TERM, Serve


@pytest.mark.parametrize("workers", ["1", "2"])
def test_unix_domain_socket(serve: Serve, tmp_path: Path, workers: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    address = ("--uds", str(path), "--workers", workers)
    running = serve("served.py:plain", address=address)
    assert running.served_by[0][0] == f"unix:{path}"
    running.touch("go")
    assert running.get("/wait") == (200, "waited")
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert not path.exists()


def test_ipv6(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    running = serve("served.py:plain", "--host", "::1")
    assert running.served_by[0][0].startswith("http://[::1]:")


def test_tls(serve: Serve, tls: list[str]) -> None:
    running = serve("served.py:plain", *tls)
    assert running.served_by[0][0].startswith("https://")
    running.touch("go")
    assert running.get("/wait") == (200, "waited")
