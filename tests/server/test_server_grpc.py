"""gRPC's own port: `modelserve --grpc-port`, called with grpcio's client."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servercommand import TERM, Running, Serve, until

from modelserve.protocols.grpc import classes
from modelserve.wire.grpc import HEALTH, SERVICE

grpc = pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")

MODELS = """
import os, time
from pathlib import Path
import anyio
from modelserve import Limits, ModelServer

HERE = Path(__file__).parent
app = ModelServer(limits=Limits(max_body_bytes=100_000))

async def until_there(name):
    while not (HERE / name).exists():
        await anyio.sleep(0.01)

@app.model("echo")
async def echo(payload):
    return payload.inputs[0].data[0]

@app.model("large")
async def large(payload):
    return "x" * 5_000_000

@app.model("headers")
async def headers(payload, headers, response_headers):
    response_headers["x-back"] = headers["x-there"]
    response_headers["data-bin"] = headers["data-bin"]
    return "done"

@app.model("wait")
async def wait(payload):
    try:
        (HERE / "asked").touch()
        await until_there("go")
    finally:
        await anyio.sleep(0.01)
        (HERE / "finally").touch()
    return "waited"

@app.model("pid")
async def pid(payload):
    return str(os.getpid())
"""


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Running:
    (tmp_path / "models.py").write_text(MODELS)
    return serve("models.py", "--grpc-port", "0")


def port_of(running: Running) -> int:
    found = re.search(r"gRPC is served on \S+:(\d+)", running.log)
    assert found is not None, running.log
    return int(found[1])


def opened(running: Running, *options: tuple[str, Any]) -> Any:
    return grpc.insecure_channel(f"127.0.0.1:{port_of(running)}", options)


@pytest.fixture
def channel(served: Running) -> Iterator[Any]:
    with opened(served) as channel:
        yield channel


def method(channel: Any, name: str, *, service: str = SERVICE) -> Any:
    kind = {"Check": "HealthCheck"}.get(name, name)
    return channel.unary_unary(
        f"{service}/{name}",
        request_serializer=lambda fields: classes()[f"{kind}Request"](**fields).SerializeToString(),
        response_deserializer=classes()[f"{kind}Response"].FromString,  # type: ignore[attr-defined]
    )


def request_for(model: str, value: bytes = b"a") -> dict[str, Any]:
    contents = {"bytes_contents": [value]}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "contents": contents}
    return {"model_name": model, "id": "7", "inputs": [tensor]}


def infer(channel: Any, model: str, value: bytes = b"a", **options: Any) -> bytes:
    response = method(channel, "ModelInfer")(request_for(model, value), timeout=20, **options)
    return bytes(response.outputs[0].contents.bytes_contents[0])


def test_both_ports_serve_the_same_models(served: Running, channel: Any) -> None:
    assert infer(channel, "echo", b"hello") == b"hello"
    assert served.get("/v2/health/ready")[0] == 200
    assert 'protocol="grpc"' in served.get("/metrics")[1]
    assert method(channel, "Check", service=HEALTH)({}).status == 1


@pytest.mark.slow
def test_errors_have_a_code_and_a_sentence(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as missing:
        infer(channel, "none")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert missing.value.details() == "Model with name none does not exist."
    with pytest.raises(grpc.RpcError) as unknown:
        channel.unary_unary("/other.Service/Method")(b"", timeout=20)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.slow
def test_messages_may_be_as_large_as_the_limits_say(served: Running, channel: Any) -> None:
    with opened(served, ("grpc.max_receive_message_length", -1)) as unlimited:
        assert len(infer(unlimited, "large")) == 5_000_000
    with pytest.raises(grpc.RpcError) as refused:
        infer(channel, "echo", bytes(200_000))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_metadata_goes_both_ways(channel: Any) -> None:
    metadata = (("x-there", "text"), ("data-bin", b"\0\xff"), ("x-request-id", "r1"))
    _, call = method(channel, "ModelInfer").with_call(
        request_for("headers"), metadata=metadata, timeout=20
    )
    back = dict(call.trailing_metadata())
    assert (back["x-back"], back["data-bin"], back["x-request-id"]) == ("text", b"\0\xff", "r1")


@pytest.mark.slow
def test_a_compressed_request_is_read(channel: Any) -> None:
    compression = grpc.Compression.Gzip
    assert infer(channel, "echo", b"a" * 1000, compression=compression) == b"a" * 1000


@pytest.mark.slow
def test_a_client_that_cancels_cancels_the_model(served: Running, channel: Any) -> None:
    call = method(channel, "ModelInfer").future(request_for("wait"))
    until((served.folder / "asked").exists)
    call.cancel()
    until((served.folder / "finally").exists)
    until(lambda: 'outcome="disconnected"' in served.get("/metrics")[1])


@pytest.mark.slow
def test_a_deadline_is_the_clients(served: Running, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as late:
        method(channel, "ModelInfer")(request_for("wait"), timeout=0.2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until((served.folder / "finally").exists)


def test_a_drain_lets_calls_finish_and_refuses_others(served: Running, channel: Any) -> None:
    waiting = method(channel, "ModelInfer").future(request_for("wait"), timeout=20)
    until((served.folder / "asked").exists)
    served.process.send_signal(TERM)
    until(lambda: method(channel, "Check", service=HEALTH)({}).status == 2)
    with pytest.raises(grpc.RpcError) as refused:
        infer(channel, "echo")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    (served.folder / "go").touch()
    assert waiting.result().outputs[0].contents.bytes_contents == [b"waited"]
    assert served.process.wait(20) == 0


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(served: Running, start: Serve) -> None:
    second = start("models.py", "--grpc-port", str(port_of(served)))
    assert second.process.wait(30) == 3
    assert "gRPC's port" in second.log
    assert "Traceback" not in second.log


@pytest.mark.slow
def test_tls_is_that_of_http(serve: Serve, tmp_path: Path, tls: list[str]) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    running = serve("models.py", "--grpc-port", "0", *tls)
    trusted = grpc.ssl_channel_credentials((tmp_path / "cert.pem").read_bytes())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(f"127.0.0.1:{port_of(running)}", trusted, options) as channel:
        assert infer(channel, "echo", b"secret") == b"secret"


@pytest.mark.slow
def test_workers_share_the_port(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free_port = sock.getsockname()[1]
    serve("models.py", "--grpc-port", str(free_port), "--workers", "2")
    seen: set[bytes] = set()
    ends = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < ends:
        options = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own
        with grpc.insecure_channel(f"127.0.0.1:{free_port}", options) as channel:
            seen.add(infer(channel, "pid"))
    assert len(seen) == 2
