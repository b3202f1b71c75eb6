"""What ends a call on gRPC's own port early, at the worst moment; and what is no call."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)
from servercommand import TERM, Running, Serve, until

from modelserve.protocols.grpc import classes
from modelserve.wire.grpc import SERVICE, frame

grpc = pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")

pytestmark = pytest.mark.slow

MODELS = """
from modelserve import Limits, ModelServer

app = ModelServer()

@app.model("fast")
async def fast(payload):
    while True:
        yield "x"

@app.model("whole")
async def whole(payload):
    return "x" * 5_000_000

@app.model("large", limits=Limits(timeout=1.0))
async def large(payload):
    while True:
        yield "x" * 1_000_000
"""


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Running:
    (tmp_path / "models.py").write_text(MODELS)
    return serve("models.py", "--grpc-port", "0")


def port_of(served: Running) -> int:
    return int(served.log.partition("gRPC is served on ")[2].partition('"')[0].rpartition(":")[2])


@pytest.fixture
def channel(served: Running) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{port_of(served)}") as channel:
        yield channel


def stream(channel: Any, model: str, **options: Any) -> Any:
    method = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        response_deserializer=classes()["ModelStreamInferResponse"].FromString,  # type: ignore[attr-defined]
    )
    tensor = {"name": "x", "datatype": "INT32", "shape": [0]}
    message = classes()["ModelInferRequest"](model_name=model, inputs=[tensor])
    return method(iter([message.SerializeToString()]), **options)


@pytest.mark.parametrize(
    "path", ["/v1/models/fast:predict", "/v2/repository/models/fast/unload", "/metrics", "/"]
)
def test_paths_of_http_are_not_served(served: Running, channel: Any, path: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(path)(b"", timeout=20)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert '"logger":"modelserve.access"' not in served.log


def test_a_limit_that_passes_while_a_client_does_not_read_has_its_code(
    served: Running, channel: Any
) -> None:
    call = stream(channel, "large", timeout=60)
    next(call)
    until(lambda: '"outcome":"timeout"' in served.log)
    with pytest.raises(grpc.RpcError) as late:
        for _ in call:
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert late.value.details() == "timeout: the request took longer than 1 s"


def test_a_deadline_may_pass_at_any_moment(served: Running, channel: Any) -> None:
    """Among them the moment in which the start of the answer is on its way."""
    codes = set()
    for number in range(600):
        with pytest.raises(grpc.RpcError) as late:
            for _ in stream(channel, "fast", timeout=0.0002 * (number % 20 + 1)):
                pass
        codes.add(late.value.code())
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert "Traceback" not in served.log


def test_garbage_on_the_port_ends_nothing_and_is_not_logged(served: Running, channel: Any) -> None:
    state = H2Connection(H2Configuration(header_encoding="utf-8"))
    state.initiate_connection()
    pseudo = {":method": "POST", ":path": f"{SERVICE}/ModelInfer", ":scheme": "http"}
    headers = [*pseudo.items(), (":authority", "a"), ("te", "trailers"), ("grpc-timeout", "soon")]
    state.send_headers(1, headers, end_stream=True)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (state.data_to_send(), b"GET / HTTP/1.1\r\n\r\n", preface + os.urandom(1000), b"x"):
        with socket.create_connection(("127.0.0.1", port_of(served)), timeout=20) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while sock.recv(65536):
                    pass
    assert channel.unary_unary(f"{SERVICE}/ServerLive")(b"", timeout=20) == b"\x08\x01"
    assert all(json.loads(line) for line in served.log.splitlines())


class Slow:
    """A client that makes one call, and opens its window when it is told to."""

    def __init__(self, sock: socket.socket, message: bytes) -> None:
        self.sock = sock
        self.read = 0  # bytes of the answer
        self._rest = b""
        state = H2Connection(H2Configuration(header_encoding="utf-8"))
        state.initiate_connection()
        pseudo = {":method": "POST", ":path": f"{SERVICE}/ModelInfer", ":scheme": "http"}
        state.send_headers(1, [*pseudo.items(), (":authority", "a"), ("te", "trailers")])
        state.send_data(1, frame(message), end_stream=True)
        sock.sendall(state.data_to_send())

    def open_window(self) -> None:
        for stream in (0, 1):
            self.sock.sendall(WindowUpdateFrame(stream, window_increment=1 << 30).serialize())

    def read_frame(self) -> Frame:
        found, length = Frame.parse_frame_header(memoryview(self._exactly(9)))
        found.parse_body(memoryview(self._exactly(length)))
        if isinstance(found, PingFrame) and "ACK" not in found.flags:
            answer = PingFrame(0, opaque_data=found.opaque_data, flags=["ACK"])
            self.sock.sendall(answer.serialize())
        if isinstance(found, DataFrame):
            self.read += len(found.data)
        assert not isinstance(found, RstStreamFrame)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            data = self.sock.recv(65536)
            assert data, "cut"
            self._rest += data
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def test_a_drain_waits_for_an_answer_to_be_read(served: Running) -> None:
    tensor = {"name": "x", "datatype": "INT32", "shape": [0]}
    message = classes()["ModelInferRequest"](model_name="whole", inputs=[tensor])
    with socket.create_connection(("127.0.0.1", port_of(served)), timeout=20) as sock:
        client = Slow(sock, message.SerializeToString())
        while client.read < 65_535:
            client.read_frame()
        served.process.send_signal(TERM)
        sock.settimeout(2)  # for which nothing of the answer comes, nor is it cut
        with pytest.raises(TimeoutError):
            while True:
                client.read_frame()
        sock.settimeout(20)
        client.open_window()
        while not (
            isinstance(ended := client.read_frame(), HeadersFrame) and "END_STREAM" in ended.flags
        ):
            pass
    assert client.read > 5_000_000
    assert served.process.wait(20) == 0
