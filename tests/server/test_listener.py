import socket
from pathlib import Path

import pytest
from servercommand import TERM, Serve, until, until_draining


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


def at(path: Path, mode: str) -> tuple[str, ...]:
    return ("--uds", str(path), "--workers", "1" if mode == "alone" else "2")


def starts_in_vain(start: Serve, path: Path, sentence: str) -> None:
    running = start("served.py:plain", address=("--uds", str(path)))
    assert running.exit_code(within=10) == 3
    assert running.log == f"modelserve: Cannot listen on {path}: {sentence}.\n"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alone", "workers"])
def test_a_path_in_use_is_refused(serve: Serve, start: Serve, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "socket"
    running = serve("served.py:plain", address=at(path, mode))
    starts_in_vain(start, path, "another process has this socket")
    running.touch("go")
    assert running.get("/wait") == (200, "waited")
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert not path.exists()


def test_a_server_that_does_not_listen_yet_keeps_its_path(start: Serve, tmp_path: Path) -> None:
    """It loads its models' modules first."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        starts_in_vain(start, path, "another process has this socket")
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_left_alone(start: Serve, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "here"
    path.touch() if kind == "file" else path.mkdir()
    starts_in_vain(start, path, f"there is a {kind} that is not a socket")
    assert path.exists()


@pytest.mark.parametrize("name", ["gone/socket", "x" * 200])
def test_a_path_that_cannot_be_bound(start: Serve, tmp_path: Path, name: str) -> None:
    running = start("served.py:plain", address=("--uds", name))
    assert running.exit_code(within=10) == 3
    assert running.log.startswith(f"modelserve: Cannot listen on {name}: ")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alone", "workers"])
def test_the_socket_of_another_is_not_removed(serve: Serve, tmp_path: Path, mode: str) -> None:
    """One that has taken the path by force, as by `rm` before the start."""
    path = tmp_path / "socket"
    running = serve("served.py:plain", address=at(path, mode))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        running.signal(TERM)
        assert running.exit_code(within=2) == 0
        assert path.exists()


def test_the_socket_is_removed_where_the_server_ends_at_once(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    running = serve(address=at(path, "alone"))
    with running.stream():
        running.signal(TERM)
        until_draining(running)
        running.signal(TERM)
        assert running.exit_code(within=1) == 128 + TERM
    assert not path.exists()


@pytest.mark.slow
def test_the_socket_is_removed_where_a_handler_blocks(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    running = serve("served.py", "--drain-timeout", "0.1", address=at(path, "alone"))
    running.start_asking("block_loop")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.1) == 0
    assert not path.exists()


@pytest.mark.slow
def test_ipv6(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    running = serve("served.py:plain", "--host", "::1")
    assert running.served_by[0][0].startswith("http://[::1]:")


@pytest.mark.slow
def test_tls(serve: Serve, tls: list[str]) -> None:
    running = serve("served.py:plain", *tls)
    assert running.served_by[0][0].startswith("https://")
    running.touch("go")
    assert running.get("/wait") == (200, "waited")
