"""gRPC's methods that run no model, and its health checks."""

from typing import Any

import anyio
import pytest
from grpcweb import HEALTH, SERVICE, WEB, Answer, call

from modelserve import Model, ModelServer
from modelserve.protocols.grpc import classes
from modelserve.testing import exchange
from modelserve.version import __version__
from modelserve.wire.grpc import Frames, frame

pytest.importorskip("google.protobuf")
pytestmark = pytest.mark.anyio

TENSORS = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


class Known(Model):
    versions = ("1", "2")
    platform = "numpy"

    async def predict(self, payload: Any) -> Any:
        return payload

    def get_input_types(self) -> Any:
        return TENSORS

    def get_output_types(self) -> Any:
        return TENSORS


class Unready(Known):
    def load(self) -> bool:
        return False


def serve(**options: Any) -> ModelServer:
    return ModelServer([Known("m")], **options)


async def ask(app: Any, method: str, *, of: str = SERVICE, **fields: Any) -> tuple[Answer, Any]:
    """Call a method; return the answer, and its message if there is one."""
    name = f"Health{method}" if of == HEALTH else method
    answer = await call(app, f"{of}/{method}", classes()[f"{name}Request"](**fields))
    message = classes()[f"{name}Response"]
    return answer, message.FromString(answer.messages[0]) if answer.messages else None


async def test_the_server_says_what_it_is() -> None:
    app = serve()
    assert (await ask(app, "ServerLive"))[1].live
    assert (await ask(app, "ServerReady"))[1].ready
    answer, about = await ask(app, "ServerMetadata")
    assert (answer.code, about.name, about.version) == (0, "modelserve", __version__)
    assert "model_repository_extension" in about.extensions


async def test_a_model_says_what_it_is() -> None:
    app = serve()
    assert (await ask(app, "ModelReady", name="m"))[1].ready
    assert (await ask(app, "ModelReady", name="m", version="2"))[1].ready
    _, about = await ask(app, "ModelMetadata", name="m")
    assert (about.name, about.versions, about.platform) == ("m", ["1", "2"], "numpy")
    assert [(t.name, t.datatype, t.shape) for t in about.inputs] == [("x", "FP32", [-1, 2])]
    _, answer = await ask(app, "ModelConfig", name="m")
    assert [(t.name, t.data_type, t.dims) for t in answer.config.input] == [("x", 11, [-1, 2])]
    _, answer = await ask(app, "ModelStatistics")
    assert [row.name for row in answer.model_stats] == ["m"]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig"])
async def test_a_model_that_there_is_not_is_not_found(method: str) -> None:
    answer, _ = await ask(serve(), method, name="other")
    assert (answer.code, answer.text) == (5, "Model with name other does not exist.")
    answer, _ = await ask(serve(), method, name="m", version="3")
    assert answer.code == 5


async def test_models_are_loaded_and_unloaded() -> None:
    app = serve(control=True)
    for fields in ({"model_name": "m"}, {"model_name_of_triton": "m"}):
        _, done = await ask(app, "RepositoryModelUnload", **fields)
        assert (done.model_name, done.isUnloaded) == ("m", True)
        assert (await ask(app, "RepositoryIndex", ready=True))[1].models == []
        _, done = await ask(app, "RepositoryModelLoad", **fields)
        assert (done.model_name, done.isLoaded) == ("m", True)
        _, index = await ask(app, "RepositoryIndex", ready=True)
        assert {(row.name, row.state) for row in index.models} == {("m", "READY")}
    assert (await ask(app, "RepositoryModelLoad", model_name="other"))[0].code == 5
    assert (await ask(serve(), "RepositoryModelUnload", model_name="m"))[0].code == 7


async def test_health_is_that_of_the_server_or_of_a_model() -> None:
    app = serve()
    app.add_model(Unready("broken"))
    assert (await ask(serve(), "Check", of=HEALTH))[1].status == 1
    assert (await ask(app, "Check", of=HEALTH))[1].status == 2
    assert (await ask(app, "Check", of=HEALTH, service="m"))[1].status == 1
    assert (await ask(app, "Check", of=HEALTH, service="broken"))[1].status == 2
    assert (await ask(app, "Check", of=HEALTH, service="other"))[0].code == 5
    service = "inference.GRPCInferenceService"
    assert (await ask(app, "Check", of=HEALTH, service=service))[1].status == 2


async def test_a_watch_tells_of_each_change_until_the_drain() -> None:
    app = serve(control=True)
    kind = classes()["HealthCheckResponse"]
    headers = {"content-type": WEB}
    body = frame(classes()["HealthCheckRequest"](service="m").SerializeToString())

    def status(chunk: bytes | None) -> int:
        [(_, payload)] = Frames(100).feed(chunk or b"")
        return int(kind.FromString(payload).status)

    async with exchange(app, "POST", f"{HEALTH}/Watch", body=body, headers=headers) as client:
        await client.head()
        assert status(await client.chunk()) == 1
        await ask(app, "RepositoryModelUnload", model_name="m")
        assert status(await client.chunk()) == 3
        await ask(app, "RepositoryModelLoad", model_name="m")
        assert status(await client.chunk()) == 1
        app.serving.announce_stop()
        assert status(await client.chunk()) == 2
        app.serving.refuse_new()
        ending = await client.chunk()
        assert ending is not None
        assert b"grpc-status:0" in ending
        assert await client.chunk() is None


async def test_a_watch_ends_with_its_client() -> None:
    app = serve()
    headers = {"content-type": WEB}
    path = f"{HEALTH}/Watch"
    async with exchange(app, "POST", path, body=frame(b""), headers=headers) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        await client.ended()
    assert len(app.serving.flights) == 0


async def test_probes_are_answered_during_the_drain() -> None:
    app = serve()
    app.serving.announce_stop()
    app.serving.refuse_new()
    assert (await ask(app, "ServerLive"))[1].live
    assert not (await ask(app, "ServerReady"))[1].ready
    assert not (await ask(app, "ModelReady", name="m"))[1].ready
    assert (await ask(app, "Check", of=HEALTH))[1].status == 2
    assert (await ask(app, "ServerMetadata"))[0].code == 14


async def test_probes_need_no_token() -> None:
    app = serve(token="secret")
    for method in ("ServerLive", "ServerReady"):
        assert (await ask(app, method))[0].code == 0
    assert (await ask(app, "Check", of=HEALTH))[0].code == 0
    answer, _ = await ask(app, "ServerMetadata")
    assert answer.code == 16
    known = classes()["ServerMetadataRequest"]()
    answer = await call(app, f"{SERVICE}/ServerMetadata", known, authorization="Bearer secret")
    assert answer.code == 0


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\1", frame(b"\xff"), frame(b"") * 2])
async def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    headers = {"content-type": WEB}
    async with exchange(serve(), "POST", f"{SERVICE}/ModelReady", body=body, headers=headers) as c:
        response = await c.response()
    assert response.headers["grpc-status"] == "3"


async def test_a_large_message_of_a_probe_is_refused() -> None:
    with anyio.fail_after(10):
        answer = await call(serve(), f"{SERVICE}/ModelReady", bytes(1 << 17))
    assert answer.code == 8
