"""grpcio's own client on the hosts that can send the trailers that gRPC needs."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matrix
import pytest
from hostcalls import asked, read_message
from hostprobes import Host
from realserver import until

from modelserve.wire.grpc import HEALTH, SERVICE

grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(120), pytest.mark.flaky(reruns=1)]

UVICORN = "uvicorn --http zttp --http2 --timeout-graceful-shutdown 5 --port {port} {app}"
# `connect` makes connections of our own clients of a port; here it gives the port.
ROWS = [
    matrix.served("hypercorn", matrix.HYPERCORN, connect=int),
    matrix.served("hypercorn on trio", f"{matrix.HYPERCORN} --worker-class trio", connect=int),
    matrix.served("uvicorn, zttp", UVICORN, connect=int, needs=("zttp",)),
]


@contextmanager
def _served(row: matrix.Row, folder: Path) -> Iterator[tuple[Host, Any]]:
    for package in row.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    with row.run(folder) as host, grpc.insecure_channel(f"127.0.0.1:{host.connect()}") as channel:
        ready = channel.unary_unary(f"{HEALTH}/Check")
        assert until(lambda: ready(b"", timeout=20) == b"\x08\x01", seconds=30)
        yield host, channel


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Host, Any]]:
    with _served(request.param, tmp_path) as found:
        yield found


def infer(channel: Any, model: str, number: int, **options: Any) -> tuple[str, list[int]]:
    method = channel.unary_unary(f"{SERVICE}/ModelInfer")
    return read_message("ModelInfer", method(asked(model, number), timeout=20, **options))


def stream(channel: Any, key: str) -> Any:
    method = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        response_deserializer=lambda message: read_message("ModelStreamInfer", message),
    )
    return method(iter([asked("countdown", 3, key)]), timeout=30)


def test_grpcio_calls_a_model(served: tuple[Host, Any]) -> None:
    _, channel = served
    assert infer(channel, "total", 5) == ("", [5])
    assert infer(channel, "total", 5, compression=grpc.Compression.Gzip) == ("", [5])
    for model, number, code, text in (
        ("total", 0, "INVALID_ARGUMENT", "no zeros, bitte schön"),
        ("none", 1, "NOT_FOUND", "Model with name none does not exist."),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            infer(channel, model, number)
        assert (refused.value.code().name, refused.value.details()) == (code, text)


def test_grpcio_reads_a_stream_item_by_item(served: tuple[Host, Any]) -> None:
    host, channel = served
    key = uuid.uuid4().hex
    call = stream(channel, key)
    assert [next(call), next(call)] == [("", [2]), ("", [1])]
    host.release(key)
    assert [*call] == [("", [0])]
    assert call.code() is grpc.StatusCode.OK


def test_a_model_notices_that_grpcio_cancels(served: tuple[Host, Any]) -> None:
    host, channel = served
    key, other = uuid.uuid4().hex, uuid.uuid4().hex
    call, goes_on = stream(channel, key), stream(channel, other)
    assert next(call) == next(goes_on) == ("", [2])
    call.cancel()
    assert host.will_note(key, "clean")
    host.release(other)
    assert [*goes_on] == [("", [1]), ("", [0])]
    assert infer(channel, "total", 7) == ("", [7])


def test_a_deadline_of_grpcio_ends_a_stream(served: tuple[Host, Any]) -> None:
    host, channel = served
    key = uuid.uuid4().hex
    method = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as late:
        for _ in method(iter([asked("countdown", 2, key)]), timeout=1):
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert host.will_note(key, "clean")
