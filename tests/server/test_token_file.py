import gc
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from servercommand import TERM, Running, Serve, until

from modelserve.server.token_file import follow_token, read_token


@pytest.mark.parametrize(
    "content",
    [b"secret", b"secret\n", b"secret\r\n", b" \tsecret\n\n", b"\xef\xbb\xbfsecret\r\n"],
)
def test_a_token_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    assert read_token(str(tmp_path / "token")) == "secret"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (b"one\ntwo\n", "has more than one line"),
        (b"one\0", "has a control character in it"),
        (b"one two", "has a space in it"),
        ("caf\u00e9".encode(), "has a character that is not ASCII"),
        ("caf\u00e9".encode("latin-1"), "it is not UTF-8"),
        ("one".encode("utf-16"), "it is not UTF-8"),
        (b"x" * 5000, "is longer than 4096 characters"),
    ],
)
def test_a_file_without_a_token(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_token(str(path))
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(problem)


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/gone"])
def test_what_is_no_file_of_a_token(path: str) -> None:
    with pytest.raises(ValueError, match=f"the token file {path}"):
        read_token(path)


@dataclass(eq=False)
class Holder:
    token: str | None = "secret"


def followers() -> int:
    return sum(thread.name == "modelserve-token" for thread in threading.enumerate())


@pytest.mark.slow
def test_a_file_is_followed_until_its_holder_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    holder, before = Holder(), followers()
    follow_token(str(path), holder, every=0.02)
    assert followers() == before + 1
    with caplog.at_level(logging.INFO):
        path.write_text("one\ntwo\n")
        until(lambda: "stays as it was: the token file" in caplog.text, within=5)
        path.unlink()
        until(lambda: "cannot read the token file" in caplog.text, within=5)
        assert holder.token == "secret"
        path.write_text("other\n")
        until(lambda: holder.token == "other", within=5)
    assert len(caplog.records) == 3
    holder = Holder()
    gc.collect()
    until(lambda: followers() <= before, within=5)


def test_a_file_that_has_changed_before_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("other")
    holder = Holder()
    follow_token(str(tmp_path / "token"), holder)
    assert holder.token == "other"


def test_another_file_is_followed_instead(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    holder, before = Holder(), followers()
    follow_token(str(tmp_path / "one"), holder, every=0.02)
    follow_token(str(tmp_path / "two"), holder, every=0.02)
    until(lambda: followers() == before + 1, within=5)
    assert holder.token == "two"
    (tmp_path / "two").write_text("three")
    until(lambda: holder.token == "three", within=5)


def test_a_pipe_is_not_followed(tmp_path: Path) -> None:
    before = followers()
    os.mkfifo(tmp_path / "token")
    follow_token(str(tmp_path / "token"), Holder())
    assert followers() == before


# --- as Kubernetes mounts a secret --------------------------------------------------------------


def mount(folder: Path, version: str, token: str) -> None:
    """Write a version of a secret, and swap the link to it."""
    (folder / version).mkdir(parents=True)
    (folder / version / "token").write_text(token)
    (folder / "new").symlink_to(version)
    (folder / "new").rename(folder / "..data")
    if not (folder / "token").is_symlink():
        (folder / "token").symlink_to("..data/token")


def statuses(running: Running, token: str) -> set[int]:
    """Ask several times, so that each worker is asked."""
    return {status(running, token) for _ in range(8)}


def status(running: Running, token: str) -> int:
    connection = running.connect()
    try:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_rotated_secret(serve: Serve, tmp_path: Path, workers: str) -> None:
    secret = tmp_path / "secret"
    mount(secret, "..1", "first-token")
    flags = ("--workers", workers, "--token-file", "secret/token")
    running = serve("served.py", *flags)
    until(lambda: len(running.served_by) == int(workers))
    assert (statuses(running, "first-token"), statuses(running, "second-token")) == ({200}, {401})
    mount(secret, "..2", "second-token")
    until(lambda: statuses(running, "second-token") == {200}, within=5)
    assert statuses(running, "first-token") == {401}
    mount(secret, "..3", "")
    until(lambda: running.log.count("secret/token is empty") == int(workers), within=5)
    assert statuses(running, "second-token") == {200}
    mount(secret, "..4", "fourth-token\n")
    until(lambda: statuses(running, "fourth-token") == {200}, within=5)
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
    assert not any(
        token in running.log for token in ("first-token", "second-token", "fourth-token")
    )
