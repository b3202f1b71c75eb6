"""The endpoints of gRPC's methods that run no model.

Each reads one message, makes the document of the same request over HTTP, and writes it as a
message. Probes are answered while the server drains, with "not ready".
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from modelserve import endpoints
from modelserve.concurrency.flight import Phase
from modelserve.endpoints import Endpoint, Target
from modelserve.errors import ModelNotFound, ServingError
from modelserve.exchange.body import decoded, read_body
from modelserve.exchange.exchange import Exchange
from modelserve.grpc.watching import Seen, watching
from modelserve.lifespan import Serving
from modelserve.models.registry import Entry
from modelserve.protocols.grpc import CONTENT, DONE, GRPC, read_call, write_answer
from modelserve.protocols.signature import tensors_in
from modelserve.wire.grpc import HEALTH, SERVICE

__all__ = ["OTHERS", "PUBLIC"]

_MESSAGE_BYTES: Final = 1 << 16

Document: TypeAlias = dict[str, Any]
Method: TypeAlias = Callable[[Serving, Any], Awaitable[Document]]


def _method(name: str, document: Method) -> Endpoint:
    """Return the endpoint of a method whose messages have its name."""

    async def answer(serving: Serving, target: Target, exchange: Exchange) -> None:
        call = read_call(f"{name}Request", await _read_message(serving, exchange))
        message = write_answer(f"{name}Response", await document(serving, call))
        exchange.check_reason()
        await exchange.send_document(200, [CONTENT], [message + DONE])

    return answer


async def _read_message(serving: Serving, exchange: Exchange) -> bytes | bytearray:
    length = exchange.get(b"content-length")
    share = serving.admission.budget.hold(0)
    try:
        body = await read_body(exchange.receive, _MESSAGE_BYTES, length, share)
        body, coding = GRPC.unwrap(body, exchange)
        body = await decoded(body, coding, _MESSAGE_BYTES, share, serving.decoders)
    finally:
        share.close()
    exchange.ignore_body()
    return body


def _entry(serving: Serving, call: Any) -> Entry:
    """Return the model that a call names. Raises ModelNotFound."""
    return serving.registry.get(call.name, call.version or None)


# --- the server and its models ------------------------------------------------------------------


async def _server_live(serving: Serving, call: Any) -> Document:
    return {"live": True}


async def _server_ready(serving: Serving, call: Any) -> Document:
    return {"ready": await _is_ready(serving)}


async def _is_ready(serving: Serving) -> bool:
    try:
        await serving.check_ready()
    except ServingError:
        return False
    return True


async def _server_metadata(serving: Serving, call: Any) -> Document:
    return endpoints.server_document()


async def _model_ready(serving: Serving, call: Any) -> Document:
    entry = _entry(serving, call)
    return {"ready": not serving.stopping and await entry.is_ready()}


async def _model_metadata(serving: Serving, call: Any) -> Document:
    about = await serving.registry.metadata(_entry(serving, call))
    for key in ("inputs", "outputs"):
        about[key] = [tensor._asdict() for tensor in tensors_in(about[key])]
    return about


async def _model_config(serving: Serving, call: Any) -> Document:
    return {"config": await endpoints.config_of(serving, _entry(serving, call))}


async def _model_statistics(serving: Serving, call: Any) -> Document:
    entries = [_entry(serving, call)] if call.name else dict.fromkeys(serving.registry)
    return await endpoints.statistics_of(serving, entries, call.version or None)


# --- the repository -----------------------------------------------------------------------------


async def _index(serving: Serving, call: Any) -> Document:
    return {"models": await endpoints.index_of(serving, ready_only=call.ready)}


async def _load(serving: Serving, call: Any) -> Document:
    endpoints.check_controllable(serving)
    name = call.model_name_of_triton or call.model_name
    await endpoints.load_model(serving, name)
    return {"model_name": name, "isLoaded": True}


async def _unload(serving: Serving, call: Any) -> Document:
    endpoints.check_controllable(serving)
    name = call.model_name_of_triton or call.model_name
    await serving.loading.unload(name)
    return {"model_name": name, "isUnloaded": True}


# --- health -------------------------------------------------------------------------------------


async def _check(serving: Serving, call: Any) -> Document:
    """Health/Check: of the server, of the service by its name, or of a model by its name."""
    return {"status": await _status(serving, call.service)}


async def _status(serving: Serving, service: str) -> str:
    """Return a status of health. Raises ModelNotFound."""
    if service in ("", SERVICE.strip("/")):
        is_ready = await _is_ready(serving)
    else:
        entry = serving.registry.get(service, None)
        is_ready = not serving.stopping and await entry.is_ready()
    return "SERVING" if is_ready else "NOT_SERVING"


async def _watch(serving: Serving, target: Target, exchange: Exchange) -> None:
    """Health/Watch: the status, then every change of it, until the server drains."""
    service = read_call("HealthCheckRequest", await _read_message(serving, exchange)).service

    async def look() -> Seen:
        is_last = serving.draining
        try:
            return Seen(await _status(serving, service), is_last)
        except ModelNotFound:
            return Seen("SERVICE_UNKNOWN", is_last)

    await exchange.start(200, [CONTENT])
    with watching(serving.watches, service, look) as watch:
        seen, sent = await watch.now(), ""
        while True:
            if seen.status != sent:
                exchange.check_reason()
                exchange.enter(Phase.SEND)
                message = write_answer("HealthCheckResponse", {"status": seen.status})
                await exchange.send_part(message)
                exchange.enter(Phase.QUEUE)
                sent = seen.status
            if seen.is_last:
                break
            seen = await watch.after(seen)
    exchange.check_reason()
    await exchange.finish(DONE)


PUBLIC: Final = {
    f"{SERVICE}/ServerLive": _method("ServerLive", _server_live),
    f"{SERVICE}/ServerReady": _method("ServerReady", _server_ready),
    f"{SERVICE}/ModelReady": _method("ModelReady", _model_ready),
    f"{HEALTH}/Check": _method("HealthCheck", _check),
    f"{HEALTH}/Watch": _watch,
}
OTHERS: Final = {
    f"{SERVICE}/ServerMetadata": _method("ServerMetadata", _server_metadata),
    f"{SERVICE}/ModelMetadata": _method("ModelMetadata", _model_metadata),
    f"{SERVICE}/ModelConfig": _method("ModelConfig", _model_config),
    f"{SERVICE}/ModelStatistics": _method("ModelStatistics", _model_statistics),
    f"{SERVICE}/RepositoryIndex": _method("RepositoryIndex", _index),
    f"{SERVICE}/RepositoryModelLoad": _method("RepositoryModelLoad", _load),
    f"{SERVICE}/RepositoryModelUnload": _method("RepositoryModelUnload", _unload),
}
