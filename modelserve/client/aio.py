"""The client of asyncio and trio programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio
from anyio.abc import TaskGroup

from modelserve.client import flows, requests
from modelserve.client.connections import LARGEST_ERROR
from modelserve.client.duplex import Pipe
from modelserve.client.failures import AnswerError
from modelserve.client.flows import Answer, Flow, Form, Pause, Send
from modelserve.client.items import AsyncItems, closed
from modelserve.client.lots import Lots
from modelserve.client.mapping import Mapped
from modelserve.client.requests import Arrays, Headers
from modelserve.client.settings import Given, Settings
from modelserve.client.sources import Rows, RowSource, as_row
from modelserve.tensors import InferRequest

if TYPE_CHECKING:
    import httpx

__all__ = ["AsyncClient"]


class AsyncClient:
    """Call the models of one server, from asyncio or trio: the async form of `Client`.

    An async context manager; `map` and `pipe` work only inside of it, since their tasks end with
    it. The arguments are those of `Client`. Cancelling a call closes its connection.
    """

    def __init__(self, url: str, **settings: Unpack[Given]) -> None:
        self._settings = Settings(url, **settings)
        self._tasks: TaskGroup | None = None
        self._http = _new_http(self._settings)

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        try:
            # Without the body's error, which the task group would raise in a group.
            await tasks.__aexit__(None, None, None)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def predict(
        self,
        model: str,
        payload: Any,
        *,
        verb: str = "predict",
        version: str | None = None,
        content_type: str | None = None,
        headers: Headers | None = None,
        idempotent: bool = False,
    ) -> Any:
        """Return the answer to one payload, as `Client.predict`."""
        request = requests.predict(
            model, payload, verb=verb, version=version, content_type=content_type
        )
        answer = await self._run(self._settings.flow(request, headers, idempotent=idempotent))
        return flows.document(answer, self._settings.complaints)

    async def stream(
        self,
        model: str,
        payload: Any,
        *,
        verb: str = "predict",
        version: str | None = None,
        content_type: str | None = None,
        sse: bool = False,
        raw: bool = False,
        headers: Headers | None = None,
    ) -> AsyncItems:
        """Send a payload; return an async iterator of the answer's items, as `Client.stream`."""
        request = requests.stream(
            model, payload, verb=verb, version=version, content_type=content_type, sse=sse
        )
        flow = self._settings.flow(request, headers, streams=True)
        return await self._items(flow, "raw" if raw else "items")

    async def infer(
        self,
        model: str,
        inputs: Arrays | InferRequest,
        *,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        version: str | None = None,
        binary: bool = True,
        headers: Headers | None = None,
        idempotent: bool = False,
    ) -> Any:
        """Send tensors over V2, as `Client.infer`."""
        request = requests.infer(
            model, inputs, outputs=outputs, parameters=parameters, version=version, binary=binary
        )
        answer = await self._run(self._settings.flow(request, headers, idempotent=idempotent))
        return flows.tensors(answer, self._settings.complaints, inputs)

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncItems:
        """Ask for the next message; return an async iterator of its pieces, as `Client.chat`."""
        request = requests.chat(model, messages, options)
        return await self._items(self._settings.flow(request, streams=True), "text")

    async def ready(self, model: str | None = None) -> bool:
        """Return whether the server, or one model, is ready, as `Client.ready`."""
        try:
            await self._run(flows.call(requests.readiness(model), flows.ONCE))
        except AnswerError as exc:
            return flows.is_ready(exc)
        return True

    async def models(self) -> list[str]:
        """Return the names of the server's models."""
        answer = await self._run(self._settings.flow(requests.get("/v1/models"), idempotent=True))
        return flows.names(answer, self._settings.complaints)

    def map(
        self,
        model: str,
        rows: RowSource,
        *,
        chunk: int = 256,
        at_once: int = 4,
        verb: str = "predict",
        version: str | None = None,
        headers: Headers | None = None,
        idempotent: bool = False,
    ) -> Lots:
        """Return an async iterator of the predictions for rows, in order, as `Client.map`."""

        async def ask(encoded: Sequence[bytes]) -> list[Any]:
            request = requests.instances(model, encoded, verb=verb, version=version)
            answer = await self._run(self._settings.flow(request, headers, idempotent=idempotent))
            return flows.predictions(answer, self._settings.complaints, count=len(encoded))

        return self._begun(Mapped(Rows(rows, as_row), ask, chunk=chunk, at_once=at_once))

    def pipe(
        self,
        model: str,
        rows: RowSource,
        *,
        verb: str = "predict",
        version: str | None = None,
        content_type: str | None = None,
        on_error: str | None = None,
        raw: bool = False,
        headers: Headers | None = None,
    ) -> Lots:
        """Send rows and return an async iterator of the items that come, as `Client.pipe`."""
        parts = self._settings.pipe(
            model,
            rows,
            verb=verb,
            version=version,
            content_type=content_type,
            on_error=on_error,
            headers=headers,
        )
        return self._begun(Pipe(*parts, form="raw" if raw else "items"))

    def _begun(self, lots: Lots) -> Lots:
        if self._tasks is None:
            raise RuntimeError("map and pipe need the client's tasks: use it with `async with`.")
        self._tasks.start_soon(lots.run)
        return lots

    async def _items(self, flow: Flow, form: Form) -> AsyncItems:
        answer = await self._run(flow)
        decoder = flows.decoder_of(answer, self._settings.complaints, form)
        return AsyncItems(answer.response, decoder, self._settings.complaints)

    async def _run(self, flow: Flow) -> Answer:
        return await _run(flow, self._http, self._settings)


async def _run(flow: Flow, http: httpx.AsyncClient, settings: Settings) -> Answer:
    """Run the steps of a call."""
    steps = flows.Steps(flow)
    while (step := steps.next) is not None:
        with steps.taken() as outcome:
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)
            else:
                outcome.answer = await _send(step, http, settings)
    return steps.result


async def _send(step: Send, http: httpx.AsyncClient, settings: Settings) -> Answer:
    import httpx

    started = False
    try:
        request = http.build_request(**settings.built(step.request))
        response = await http.send(request, stream=True)
        started = True
        response.headers.encoding = "latin-1"
        if not response.is_success:
            body = await _error_body(response)
            return Answer(response.status_code, response.headers, body)
        if not flows.is_plain(response.headers):
            await response.aclose()
            raise settings.complaints.unreadable()
        if step.streams:
            return Answer(response.status_code, response.headers, None, response)
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers, body)
    except httpx.HTTPError as exc:
        raise settings.complaints.broken(exc, started=started) from None


async def _error_body(response: httpx.Response) -> bytes:
    """Read the body of an unsuccessful response as far as it comes; its status is enough."""
    import httpx

    body, pieces = b"", response.aiter_raw()
    try:
        with suppress(httpx.HTTPError):
            async for piece in pieces:
                body += piece
                if len(body) > LARGEST_ERROR:
                    break
    finally:
        await closed(response, pieces)
    return body


def _new_http(settings: Settings) -> httpx.AsyncClient:
    import httpx

    from modelserve.client.transports import with_own_sockets

    options = settings.for_httpx
    made = {name: options.pop(name) for name in ("limits", "verify")}
    transport = with_own_sockets(httpx.AsyncHTTPTransport(**made, trust_env=False))
    return httpx.AsyncClient(transport=transport, **options)
