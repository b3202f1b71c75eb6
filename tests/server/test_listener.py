import shutil
import socket
import ssl
import subprocess
from http.client import HTTPSConnection
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
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            assert answer.read().endswith(b"waited")
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


def test_tls(serve: Serve, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    made = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    flags = ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]
    running = serve("served.py:plain", *flags)
    assert running.served_by[0][0].startswith("https://")
    running.touch("go")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    connection = HTTPSConnection("localhost", running.port, context=context, timeout=10)
    connection.request("GET", "/wait")
    assert connection.getresponse().read() == b"waited"
    connection.close()
