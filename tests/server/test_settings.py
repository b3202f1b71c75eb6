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


def test_grpc_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    sentence = "gRPC needs grpcio and protobuf: pip install 'modelserve[grpc]'."
    assert Settings(grpc_port=8081).unsupported == sentence
    assert Settings().unsupported is None
