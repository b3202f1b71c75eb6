import sys
from typing import Any

import pytest

from modelserve.server.settings import Settings


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, "127.0.0.1:8080"),
        ({"host": "0.0.0.0", "port": 1}, "0.0.0.0:1"),
        ({"uds": "a.sock", "port": 1}, "a.sock"),
        ({"fd": 3, "uds": "a.sock"}, "file descriptor 3"),
    ],
)
def test_the_address_in_words(options: dict[str, Any], address: str) -> None:
    assert Settings(**options).address == address


def test_unix_can_do_everything() -> None:
    assert Settings(uds="a.sock", workers=2).unsupported is None


@pytest.mark.parametrize("kind", ["port", "grpc_port"])
@pytest.mark.parametrize(
    ("port", "is_one"), [(0, True), (65535, True), (65536, False), (-1, False)]
)
def test_ports_end_at_65535(kind: str, port: int, is_one: bool) -> None:
    """A program of `modelserve.kserve` may ask for any number."""
    settings: dict[str, Any] = {kind: port}
    sentence = f"{port} is not a port: those are the numbers from 0 to 65535."
    assert Settings(**settings).unsupported == (None if is_one else sentence)


def test_grpc_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    sentence = "gRPC needs grpcio and protobuf: pip install 'modelserve[grpc]'."
    assert Settings(grpc_port=8081).unsupported == sentence
    assert Settings().unsupported is None
