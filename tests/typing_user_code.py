"""Code as users write it, which must type-check under `mypy --strict` without a single ignore.

pytest does not collect this file; mypy checks it with the package (`files` in pyproject.toml).
"""

import functools
import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypedDict, TypeVar, assert_type

from msgspec import Struct
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.routing import Mount

from modelserve import (
    Coalesced,
    InferenceError,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Limits,
    Model,
    ModelNotFound,
    ModelNotReady,
    ModelRepository,
    ModelServer,
    RequestedOutput,
    RequestRecord,
    ServerSentEvent,
    ServingError,
    Upload,
    instances,
)
from modelserve.client import AsyncClient, Client, ClientError, ItemError
from modelserve.offline import Runner
from modelserve.opentelemetry import Tracing
from modelserve.testing import exchange, lifespan, request

P = ParamSpec("P")
R = TypeVar("R")


class Payload(TypedDict):
    instances: list[float]


class Answer(TypedDict):
    predictions: list[float]


# --- hooks in the signatures that people write -----------------------------------------------------


class Synchronous(Model):
    def __init__(self, name: str, *, factor: float = 2.0) -> None:
        super().__init__(name)
        self.factor = factor

    def load(self) -> bool:
        self.ready = True
        return self.ready

    def predict(self, payload: Payload) -> Answer:
        return {"predictions": [self.factor * x for x in payload["instances"]]}


class Asynchronous(Model):
    async def load(self) -> bool:
        self.ready = True
        return True

    async def predict(self, payload: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        return {"predictions": payload["instances"], "agent": headers.get("user-agent", "")}


class LoadsNothingBack(Model):
    def load(self) -> None:
        self.ready = True


class AsyncGenerator(Model):
    async def predict(self, payload: Any) -> AsyncIterator[dict[str, str]]:
        for word in payload["instances"][0].split():
            yield {"word": word}


class SyncGenerator(Model):
    def predict(self, payload: Any) -> Iterator[str]:
        yield from payload


class KServeStyle(Model):
    """KServe's own signatures, defaults included."""

    def preprocess(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        return payload

    def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | AsyncIterator[Any]:
        return {"predictions": payload}

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        return await self._explain(payload)

    def postprocess(
        self,
        result: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        return result

    async def _explain(self, payload: Any) -> Any:
        return payload


class WithHeaders(Model):
    async def predict(
        self, payload: Any, response_headers: MutableMapping[str, str]
    ) -> AsyncIterator[bytes]:
        response_headers["content-type"] = "audio/wav"
        yield b"RIFF"

    async def postprocess(self, result: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in result:
            yield chunk


class KeywordOnly(Model):
    def predict(self, instances: list[Any], *, headers: Mapping[str, str]) -> list[Any]:
        return [*instances, headers["host"]]


class CallsItsBase(Asynchronous):
    async def predict(self, payload: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        answer = await super().predict(payload, headers)
        return answer | {"more": True}


class WholeLife(Model):
    engine = True
    limits = Limits(concurrency=1, queue=10, timeout=30.0, idle_timeout=math.inf)
    coalesce = True
    heartbeat = 15.0

    def start(self) -> None: ...

    async def start_engine(self) -> None: ...

    async def load(self) -> bool:
        return True

    async def healthy(self) -> bool:
        return self.ready and await super().healthy()

    async def stop_engine(self) -> None: ...

    async def stop(self) -> None: ...

    def predict(self, payload: Any) -> Any:
        raise InvalidInput("no")


class SyncHealth(Model):
    def healthy(self) -> bool:
        return True


class SyncStop(Model):
    def stop(self) -> None: ...

    def stop_engine(self) -> None: ...


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Be a user's decorator."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return wrapper


class Decorated(Model):
    @logged
    async def predict(self, payload: Any) -> Any:
        return payload

    @staticmethod
    def preprocess(payload: Any) -> Any:
        return payload


class Composed(Model):
    """Calls another model of the application, in each of the ways."""

    def preprocess(self, payload: Any) -> Any:
        return {"instances": [app.call("double", payload).result(), *app.call("events", payload)]}

    async def predict(self, payload: Any, headers: Mapping[str, str]) -> AsyncIterator[Any]:
        yield await app.call("double", payload, verb="explain", headers=headers)
        async with app.call("events", payload) as items:
            async for item in items:
                yield item


# --- declared payloads --------------------------------------------------------------------------


class House(BaseModel):
    rooms: int


class Flat(Struct):
    floor: int


@dataclass
class Price:
    euros: float


EXAMPLE = {"rooms": 3}
PRICE_SCHEMA = {"type": "object"}


class DeclaresPayload(Model):
    example = EXAMPLE
    input_schema = House
    output_schema = PRICE_SCHEMA

    async def predict(self, payload: House) -> Price:
        return Price(1000.0 * payload.rooms)


class DeclaresInstances(Model):
    def predict(self, instances: list[Flat]) -> list[Price]:
        return [Price(flat.floor) for flat in instances]

    def explain(self, payload: House | InferRequest | None) -> dict[str, Flat]:
        return {"flat": Flat(1)}


class DeclaresInPreprocess(Model):
    def preprocess(self, payload: list[House]) -> list[int]:
        return [house.rooms for house in payload]

    async def predict(self, payload: list[int]) -> AsyncIterator[Price]:
        for rooms in payload:
            yield Price(rooms)


class DeclaresAnIterator(Model):
    async def predict(self, payload: AsyncIterator[Flat]) -> AsyncIterator[Price]:
        async for flat in payload:
            yield Price(flat.floor)


class ChecksInstances(Model):
    def predict(self, payload: Any) -> Any:
        assert_type(instances(payload), list[Any])
        assert_type(instances(payload, str, at_least=1), list[str])
        assert_type(instances(payload, (int, float)), list[Any])


# --- applications -------------------------------------------------------------------------------

app = ModelServer(
    [Synchronous("double", factor=2), AsyncGenerator("writer"), WholeLife("whole")],
    limits=Limits(max_body_bytes=1 << 20, drain_timeout=0),
    threads=4,
    prefix="/ml",
    debug=True,
    aliases={"/ping": "/v2/health/ready"},
)


@app.model("double-2", path="/predict")
def double(payload: Payload) -> Answer:
    return {"predictions": [2 * x for x in payload["instances"]]}


@app.model("limited", limits=Limits(concurrency=1), heartbeat=5.0, versions=["1"])
def limited(payload: Payload) -> Answer:
    return double(payload)


@app.model("limited", verb="chat")
async def chatted(document: Any) -> AsyncIterator[str]:
    yield "text"


@app.model("events")
async def events(payload: Any) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent({"n": 1}, event="token", id="1", retry=1000)
    yield ServerSentEvent("text")
    yield ServerSentEvent(event="ping")


@app.model("class")
class Registered(Model):
    def predict(self, payload: Any) -> Any:
        return payload


class NoModel:
    def predict(self, payload: Any) -> Any:
        return payload


@app.model("flats", example=EXAMPLE, input_schema=House, output_schema=PRICE_SCHEMA)
def flats(instances: list[Flat]) -> list[Price]:
    return [Price(flat.floor) for flat in instances]


app.add_model(NoModel(), "plain")
app.add_model(lambda payload: payload, "lambda", own_thread=True)
app.add_alias("/lambda", "/v1/models/lambda:predict")
assert_type(app.aliases, dict[str, str])
app.add_model(Asynchronous("async"))

# The decorator keeps types.
assert_type(double({"instances": [1.0]}), Answer)
assert_type(events(None), AsyncIterator[ServerSentEvent])
assert_type(Registered("x"), Registered)
assert_type(app.model("name")(NoModel), type[NoModel])


def main() -> None:
    app.run(host="0.0.0.0", port=8080, workers=2, timeout=30.0, cors_origin=["*"])


async def in_a_notebook() -> None:
    await app.serve(port=8080, max_body_bytes=1 << 20)


# --- in a host ----------------------------------------------------------------------------------


@asynccontextmanager
async def host_lifespan(host: Starlette) -> AsyncIterator[None]:
    async with app.lifespan():
        yield


host = Starlette(routes=[Mount("/ml", app=app)], lifespan=host_lifespan)
short = Starlette(routes=[Mount("/ml", app=app)], lifespan=app.lifespan)


# --- V2's messages, and a directory of models -----------------------------------------------------


class Tensors(Model):
    async def predict(self, payload: InferRequest) -> InferResponse:
        first = payload.inputs[0]
        assert_type(first, InferInput)
        assert_type(payload.request_outputs, list[RequestedOutput] | None)
        output = InferOutput("sum", [1], "FP32", [float(first.as_numpy().sum())])
        return InferResponse(payload.id, self.name, [output])


class Joined(Model):
    def predict(self, payload: Any) -> Coalesced:
        return Coalesced(iter(payload["instances"]))


shelf = ModelServer([Tensors("t"), Joined("j")], repository=ModelRepository("models"))


# --- errors -------------------------------------------------------------------------------------


class Teapot(ServingError):
    status = 418


def fail(kind: int, cause: ValueError) -> None:
    if kind == 0:
        raise InvalidInput("bad") from cause
    if kind == 1:
        raise InferenceError("busy", status=429)
    if kind == 2:
        raise ModelNotFound("m")
    if kind == 3:
        raise ModelNotReady("m", "No disk.")
    raise Teapot("short and stout")


# --- tests of a user's own ------------------------------------------------------------------------


async def check() -> None:
    async with lifespan(app):
        response = await request(app, "POST", "/v1/models/double:predict", json={"instances": [1]})
        assert_type(response.status, int)
        assert_type(response.body, bytes)
        async with exchange(host, "GET", "/ml/", headers={"accept": "*/*"}) as client:
            assert_type(await client.chunk(), bytes | None)
            async for chunk in client:
                assert_type(chunk, bytes)
            client.hang_up()


class Files(Model):
    async def preprocess(self, form: FormData) -> bytes:
        upload = form["image"]
        if not isinstance(upload, Upload):
            raise InvalidInput("Expected a file")
        assert_type(upload.filename, str | None)
        assert_type(upload.read(), bytes)
        return await upload.aread()

    def predict(self, payload: bytes) -> int:
        return len(payload)


def as_hook(hook: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    return app.model("hook")(hook)


class Bill:
    """An observer that is an object."""

    def __call__(self, record: RequestRecord) -> int:
        assert_type(record.hooks, Mapping[str, float])
        return 0 if record.generation is None else record.generation.output_tokens or 0


def log_slow(record: RequestRecord) -> None:
    if record.seconds > 1 and record.outcome != "done":
        print(record.model, record.request_id, record.error)


observed = ModelServer(observers=[Bill(), log_slow, Tracing(record_exceptions=True)])


def calling(url: str) -> list[str]:
    with Client(url, token="t", timeout=5, verify=False) as client:
        assert_type(client.ready("m"), bool)
        for item in client.pipe("m", ({"n": n} for n in range(3)), on_error="stop"):
            if isinstance(item, ItemError):
                assert_type(item.line, int)
        with client.stream("m", [1], sse=True) as items:
            list(items)
        list(client.map("m", range(3), chunk=2, at_once=2))
        return client.models()


async def calling_async(url: str, rows: AsyncIterator[bytes]) -> None:
    try:
        async with AsyncClient(url, headers={"x": "y"}) as client:
            async for _ in client.pipe("m", rows):
                break
            async with await client.stream("m", [1]) as items:
                async for _ in items:
                    pass
            await client.predict("m", {"instances": [1]}, version="2", idempotent=True)
    except ClientError as exc:
        print(exc)


def scoring(rows: Iterable[list[float]]) -> list[Any]:
    with Runner(Synchronous("m"), verb="predict", limits=Limits(timeout=5)) as run:
        first = run({"instances": [1]}, headers={"x-kind": "y"})
        for item in run.stream(rows):
            print(item)
    run.start().close()
    return [first]
