"""The client of ordinary programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from anyio.from_thread import start_blocking_portal

from modelserve.client import flows, requests
from modelserve.client.aio import AsyncClient
from modelserve.client.connections import LARGEST_ERROR
from modelserve.client.failures import AnswerError
from modelserve.client.flows import Answer, Flow, Form, Pause, Send
from modelserve.client.items import Items
from modelserve.client.lots import Lots
from modelserve.client.requests import Arrays, Headers
from modelserve.client.settings import ForMap, ForPipe, Given, Settings
from modelserve.client.sources import RowSource
from modelserve.tensors import InferRequest

if TYPE_CHECKING:
    import httpx

__all__ = ["Client", "lots"]


class Client:
    """Call the models of one server. A context manager; threads may share it.

    Args:
        url: The server's address, with the path that it is mounted below, if any.
        token: The bearer token.
        headers: More headers for each request.
        timeout: The seconds for which nothing may move before a call fails (60).
        retries: How often a call is tried again if the server says when (2).
        verify: Whether certificates must be trusted, or an `ssl.SSLContext` that decides.

        Calls raise `ClientError`. The constructor raises ExtraMissing without httpx, ValueError for
        an invalid address.
    """

    def __init__(self, url: str, **settings: Unpack[Given]) -> None:
        self._settings = Settings(url, **settings)
        self._async = partial(AsyncClient, url, **settings)
        self._http = _new_http(self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
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
        """Return the answer to one payload: a document, text or bytes.

        A list is sent as `{"instances": [...]}`, bytes as they are, anything else as JSON. A model
        that streams is asked for one document.
        """
        request = requests.predict(
            model, payload, verb=verb, version=version, content_type=content_type
        )
        answer = self._run(self._settings.flow(request, headers, idempotent=idempotent))
        return flows.document(answer, self._settings.complaints)

    def stream(
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
    ) -> Items:
        """Send a payload as `predict` does; return an iterator of the answer's items.

        Items are what the model yielded: of NDJSON a line's value, of SSE an event's data, or the
        whole `ServerSentEvent` if it has a name or an id. An error of one line of the request is an
        `ItemError`. An error record raises AnswerError, a stream that is cut CutShort. An answer
        that does not stream is one item. With `raw` the items are the bytes of the answer as they
        come.
        """
        request = requests.stream(
            model, payload, verb=verb, version=version, content_type=content_type, sse=sse
        )
        flow = self._settings.flow(request, headers, streams=True)
        return self._items(flow, "raw" if raw else "items")

    def infer(
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
        """Send arrays over V2, by the names of the inputs; return arrays by those of the outputs.

        `outputs` names the outputs to return. The data is binary in both directions, or JSON with
        `binary=False`. For an `InferRequest` an `InferResponse` is returned.
        """
        request = requests.infer(
            model, inputs, outputs=outputs, parameters=parameters, version=version, binary=binary
        )
        answer = self._run(self._settings.flow(request, headers, idempotent=idempotent))
        return flows.tensors(answer, self._settings.complaints, inputs)

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Items:
        """Ask for the next message of a conversation; return an iterator of the pieces of its text.

        `options` are those of OpenAI's protocol, such as `temperature`.
        """
        request = requests.chat(model, messages, options)
        return self._items(self._settings.flow(request, streams=True), "text")

    def ready(self, model: str | None = None) -> bool:
        """Return whether the server, or a model, is ready. Raises AnswerError for no such model."""
        try:
            self._run(flows.call(requests.readiness(model), flows.ONCE))
        except AnswerError as exc:
            return flows.is_ready(exc)
        return True

    def models(self) -> list[str]:
        """Return the names of the server's models."""
        answer = self._run(self._settings.flow(requests.get("/v1/models"), idempotent=True))
        return flows.names(answer, self._settings.complaints)

    def map(self, model: str, rows: RowSource, **settings: Unpack[ForMap]) -> Iterator[Any]:
        """Return an iterator of the predictions for rows, in order, by ordinary requests.

        Each request has `chunk` rows (256). At most `at_once` (4) are under way, or done and not
        yet read; rows are read only for these. This works through any proxy. A sync source is read
        in a thread. `verb`, `version`, `headers` and `idempotent` are those of `predict`.
        """
        return self._each(lambda client: client.map(model, rows, **settings))

    def pipe(self, model: str, rows: RowSource, **settings: Unpack[ForPipe]) -> Iterator[Any]:
        """Send rows in one request, and return an iterator of the items that come meanwhile.

        A row is any JSON value, or bytes that are a line of JSON. With a `content_type` other than
        NDJSON, `audio/wav` for example, rows are the pieces of a binary body. Items are those of
        `stream`. Each side waits for the other, and an early error ends the sending. Exceptions of
        the rows' source are raised here. `on_error="stop"` has the server stop at a bad line.
        `verb`, `version` and `headers` are those of `predict`, `raw` is that of `stream`. A pipe is
        never tried again.
        """
        return self._each(lambda client: client.pipe(model, rows, **settings))

    def _each(self, begin: Callable[[AsyncClient], Lots]) -> Iterator[Any]:
        with closing(lots(self._async, begin)) as found:
            for lot in found:
                yield from lot

    def _items(self, flow: Flow, form: Form) -> Items:
        answer = self._run(flow)
        decoder = flows.decoder_of(answer, self._settings.complaints, form)
        return Items(answer.response, decoder, self._settings.complaints)

    def _run(self, flow: Flow) -> Answer:
        return _run(flow, self._http, self._settings)


def lots(
    new_client: Callable[[], AsyncClient], begin: Callable[[AsyncClient], Lots]
) -> Generator[list[Any]]:
    """Yield the results of `begin` from an event loop in a thread; closing ends both."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(new_client()) as client,
    ):
        found = portal.call(begin, client)
        while lot := portal.call(found.lot):
            yield lot


def _run(flow: Flow, http: httpx.Client, settings: Settings) -> Answer:
    """Run the steps of a call."""
    steps = flows.Steps(flow)
    while (step := steps.next) is not None:
        with steps.taken() as outcome:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                outcome.answer = _send(step, http, settings)
    return steps.result


def _send(step: Send, http: httpx.Client, settings: Settings) -> Answer:
    import httpx

    started = False
    try:
        request = http.build_request(**settings.built(step.request))
        response = http.send(request, stream=True)
        started = True
        response.headers.encoding = "latin-1"
        if not response.is_success:
            body = _error_body(response)
            return Answer(response.status_code, response.headers, body)
        if not flows.is_plain(response.headers):
            response.close()
            raise settings.complaints.unreadable()
        if step.streams:
            return Answer(response.status_code, response.headers, None, response)
        try:
            body = response.read()
        finally:
            response.close()
        return Answer(response.status_code, response.headers, body)
    except httpx.HTTPError as exc:
        raise settings.complaints.broken(exc, started=started) from None


def _error_body(response: httpx.Response) -> bytes:
    """Read the body of an unsuccessful response as far as it comes; its status is enough."""
    import httpx

    body = b""
    with closing(response), suppress(httpx.HTTPError):
        for piece in response.iter_raw():
            body += piece
            if len(body) > LARGEST_ERROR:
                break
    return body


def _new_http(settings: Settings) -> httpx.Client:
    import httpx

    return httpx.Client(**settings.for_httpx)
