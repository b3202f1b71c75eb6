"""One model calls another: the call as a request, without HTTP.

It runs in a task of its own, like the flight of a request: however it ends, its hooks clean up
before its slot is free. It has limits, metrics and a line in the access log like a client's
request, and the id of the calling request.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final

import anyio
from starlette.types import Message, Receive

from modelserve.concurrency.bridge import ThreadCall
from modelserve.concurrency.endings import Ending, is_ending
from modelserve.concurrency.flight import Flight, HostCancelled, Phase
from modelserve.concurrency.loops import event_loop
from modelserve.concurrency.nesting import Places, deadlock
from modelserve.concurrency.threads import ExtraThreads, OwnThread, OwnThreadForHooks, Workers
from modelserve.errors import (
    ClientGone,
    InferenceError,
    ServerShuttingDown,
    Stopped,
    describe,
)
from modelserve.exchange.running import Caller, note_running
from modelserve.lifespan import Serving, usable_entry
from modelserve.limits import Deadlines
from modelserve.metrics.series import ModelSeries, Tick
from modelserve.models.hooks import Plan
from modelserve.models.inference import infer
from modelserve.models.registry import Entry
from modelserve.wire.head import NEW_IDS, HookHeaders, valid_id

__all__ = ["CallRequest"]

_PROTOCOL: Final = "call"  # in metrics and in the access log
_DEEPEST: Final = 64


class _Streamed:
    """The record of a call's items.

    Args:
        endings: Where its generators are cleaning up by themselves.
    """

    def __init__(self, endings: Sequence[Ending] | None) -> None:
        self.endings = endings
        self.items = 0
        self.first_item: float | None = None
        self.tick: Tick | None = None

    def note_suspension(self) -> bool:
        return self.endings is not None and is_ending(self.endings)


class CallRequest:
    """One call as a request: its state for the flight, its record, and its results.

    Attributes:
        caller: The request whose hook made the call.
        thread: The hook in a thread that waits for it.
        items: The items, or the result, that the caller has not read yet.
        ahead: The most items that may wait for the caller.
        waits_for_room: So many wait; call `make_room` once half of them are read.
        streams: The model streams.
        ended: The model has cleaned up, its slot is free, and nothing more will come.
        notify: Called on the event loop when there is something to read, or no more to come.
        waited: As in `concurrency.gate.Waits`; unset if it did not wait.
    """

    waited: tuple[float, float]

    def __init__(
        self,
        serving: Serving,
        name: str,
        payload: Any,
        verb: str,
        headers: Mapping[str, str] | None,
        caller: Caller | None,
    ) -> None:
        self.serving = serving
        self.name, self.payload, self.verb = name, payload, verb
        self.headers = {key.lower(): value for key, value in (headers or {}).items()}
        self.caller = caller
        self.id = self._chosen_id()
        self.context = copy_context()
        self.thread: ThreadCall | None = None
        # what the flight reads
        self.arrived = self.since = monotonic()
        self.phase: int = Phase.QUEUE
        self.deadlines = Deadlines()
        self.body_read, self.answered = True, False
        self.reason: Stopped | None = None
        self.flight: Flight | None = None
        self.stream: _Streamed | None = None
        # what is recorded
        self.series: ModelSeries | None = None
        self.entry: Entry | None = None
        self.status = 0
        self.error: BaseException | None = None
        self.admitted = False
        self.seconds: Mapping[str, float] = {}
        # what it gives
        self.items: deque[Any] = deque()
        self.ahead, self.waits_for_room = 1, False
        self.streams = self.begun = self.ended = self.left = False
        self.notify: Callable[[], object] = _nothing

    def _chosen_id(self) -> bytes:
        given = self.headers.get("x-request-id")
        if given is not None:
            return valid_id(given.encode("latin-1", "replace"))
        return next(NEW_IDS) if self.caller is None else self.caller.id

    # -- for the caller

    def note_entry(self, entry: Entry) -> None:
        """Let a model's limits hold for this call; it counts in its metrics."""
        self.series = entry.series
        self.deadlines = entry.deadlines._replace(send_timeout=None)  # callers take their time

    def hook_headers(self) -> HookHeaders:
        """Return the headers that its hooks are given."""
        return HookHeaders({**self.headers, "x-request-id": self.id.decode("latin-1")})

    def begin(self) -> None:
        """Start the call in a task of the event loop."""
        if self.begun:
            return
        self.begun = True
        self.room, self._gone = anyio.Event(), anyio.Event()
        self.receive: Receive = partial(_wait_for_leave, self._gone)
        self.arrived = self.since = monotonic()
        observers, run = self.serving.telemetry.followed, self.run
        run = partial(observers.run_step, self.name, "call", run) if observers else run
        event_loop().start_soon(run, self.context)
        del self.context  # a reference cycle, once the call is noted there

    def make_room(self) -> None:
        """Let the model go on, after an item has been read."""
        self.room.set()

    def whole(self, items: list[Any]) -> Any:
        """Return the model's answer: its items, or its one result."""
        return items if self.streams else items[0]

    def leave(self) -> None:
        """Cancel the model: the caller reads no more. A call that has not begun never begins."""
        self.left = True
        if not self.begun:
            self.begun = self.ended = True
            self.error = ClientGone()
            self.notify()
            return
        self._gone.set()
        if self.flight is not None:
            self.flight.cancel(ClientGone())

    def host_cancelled(self) -> Stopped:
        """Return the reason for a cancellation of the call's task: the event loop is ending."""
        return HostCancelled()

    async def report_early_end(self, reason: Stopped) -> None:
        """Keep the reason, for the caller."""
        self.error = reason

    # -- its task

    async def run(self) -> None:
        """Run the call to its end, as the whole of a task."""
        try:
            rest = self.serving.flights.start(self, _answer(self))
            if rest is not None:
                await rest
        except Stopped as reason:
            self.error = self.reason or reason
        except anyio.get_cancelled_exc_class():
            self.error = ServerShuttingDown()  # the event loop is ending
            raise
        except BaseException as exc:  # the caller raises it
            self.error = exc
        finally:
            self._end()

    def _end(self) -> None:
        self.phase = Phase.DONE
        if self.error is not None:
            self.status = describe(self.error)[0]
        series = self.series or self.serving.telemetry.unknown
        series.record(_PROTOCOL, self.verb, self, monotonic() - self.arrived, self.id)
        self.flight = self.reason = None
        self.ended = True
        self.notify()


# --- the pipeline -------------------------------------------------------------------------------


async def _answer(request: CallRequest) -> None:
    note_running(request)
    try:
        if request.left:
            raise ClientGone
        request.entry = entry = await _usable_entry(request)
        plan = entry.plans[request.verb]
        slot = request.serving.admission.nesting.slot
        async with slot(entry.gate, _held(request), request):
            await _run_hooks(request, entry, plan)
        request.status = 200
    except BaseException as exc:
        if request.flight is not None and request.flight.is_interrupted_by(exc):
            raise
        request.error = exc


async def _usable_entry(request: CallRequest) -> Entry:
    """Return the model, usable. Raises ModelNotFound, ModelNotReady, Overloaded."""
    if sum(1 for _ in _chain(request)) > _DEEPEST:
        raise InferenceError(f"Models call one another more than {_DEEPEST} deep.")
    entry = await usable_entry(request.serving, request.name, None, request.note_entry)
    # Other hooks are refused when they wait for the thread; here that is not this request's wait.
    if entry.is_joint and any(t.holds is entry.workers.slots for t in _threads(request)):
        raise deadlock()
    return entry


def _chain(request: CallRequest) -> Iterator[Caller]:
    """Yield the calls that wait for this one, and finally the client's request."""
    caller = request.caller
    while caller is not None:
        if caller.phase != Phase.DONE:
            yield caller
        caller = caller.caller if isinstance(caller, CallRequest) else None


def _threads(request: CallRequest) -> Iterator[ThreadCall]:
    """Yield the hooks in threads that wait for this call, or for one that waits for it."""
    for call in chain((request,), _chain(request)):
        thread = call.thread if isinstance(call, CallRequest) else None
        if thread is not None and not thread.finished:
            yield thread


def _held(request: CallRequest) -> dict[object, Places]:
    """Return whose slots and own threads are not free before this call has ended."""
    entries = ((caller, _entry_of(request, caller)) for caller in _chain(request))
    held: dict[object, Places] = {who: entry.gate for who, entry in entries if entry is not None}
    held.update((hook, hook.holds) for hook in _threads(request) if hook.holds is not None)
    return held


def _entry_of(request: CallRequest, caller: Caller) -> Entry | None:
    """Return the model that a request runs, if it is one of this application."""
    if isinstance(caller, CallRequest):
        return caller.entry
    known = request.serving.registry.entries.values()
    return next((entry for entry in known if entry.series is caller.series), None)


def _workers_for(request: CallRequest, entry: Entry) -> Workers:
    """Return the threads for a model's hooks: not those that wait for the hooks."""
    workers = entry.workers
    if isinstance(workers, OwnThread):
        return OwnThreadForHooks(workers, partial(_waiting_for_thread, request, entry))
    waits = next(_threads(request), None) is not None
    return ExtraThreads(workers) if waits else workers


def _waiting_for_thread(request: CallRequest, entry: Entry) -> AbstractContextManager[None]:
    """Return the block in which an admitted call waits for its model's own thread."""
    held = {**_held(request), request: entry.gate}
    return request.serving.admission.nesting.waiting_for_thread(entry.workers.slots, held)


async def _run_hooks(request: CallRequest, entry: Entry, plan: Plan) -> None:
    """Run the hooks and pass on their results; then close what they have opened."""
    _enter(request, Phase.FIRST)
    payload, request.payload = request.payload, None
    async with entry.new_call(*plan.headers_for(request), request) as call:
        call.workers = _workers_for(request, entry)
        request.seconds = call.seconds
        result = await infer(plan, payload, call, _nothing)
        if call.is_stream(result):
            request.stream = _Streamed(call.endings())
            await _hand_on(request, request.stream, result)
        else:
            request.items.append(result)
        request.phase = Phase.DONE


async def _hand_on(request: CallRequest, streamed: _Streamed, items: AsyncIterator[Any]) -> None:
    """Give the items to the caller, one at a time."""
    request.streams = True
    async for item in items:
        _record(request, streamed, monotonic())
        _enter(request, Phase.SEND)
        while len(request.items) >= request.ahead:
            request.room, request.waits_for_room = anyio.Event(), True
            if len(request.items) >= request.ahead:  # none was read meanwhile, by another thread
                await request.room.wait()
        request.waits_for_room = False
        request.items.append(item)
        request.notify()
        _enter(request, Phase.ITEM)


def _record(request: CallRequest, streamed: _Streamed, now: float) -> None:
    streamed.items += 1
    if streamed.tick is not None:
        streamed.tick(now)
        return
    assert request.series is not None
    streamed.first_item = now - request.arrived
    streamed.tick = request.series.stream(request.arrived, now)


def _enter(request: CallRequest, phase: int) -> None:
    request.phase = phase
    request.since = monotonic()


# --- the event loop -----------------------------------------------------------------------------


async def _wait_for_leave(gone: anyio.Event) -> Message:
    """Wait until the caller leaves, as a host's `receive` does for a client."""
    await gone.wait()
    return {"type": "http.disconnect"}


def _nothing(*args: object) -> None:
    """Do nothing."""
