"""What ends a call on gRPC's own port early, at the worst moment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servercommand import Running, Serve, until

from modelserve.protocols.grpc import classes
from modelserve.wire.grpc import SERVICE

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

@app.model("large", limits=Limits(timeout=1.0))
async def large(payload):
    while True:
        yield "x" * 1_000_000
"""


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Running:
    (tmp_path / "models.py").write_text(MODELS)
    return serve("models.py", "--grpc-port", "0")


@pytest.fixture
def channel(served: Running) -> Iterator[Any]:
    port = served.log.partition("gRPC is served on ")[2].partition('"')[0].rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
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
