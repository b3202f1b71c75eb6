"""Run the hooks of a model without HTTP: in a script, a notebook, or a worker of a batch engine.

The hooks run as they do on a server, in an event loop that has a thread of its own. So the caller
may be any thread, even one that runs an event loop.
"""

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, Literal, Self

import anyio
import anyio.lowlevel

from modelserve.composing.reading import items_in_thread
from modelserve.composing.requests import CallRequest
from modelserve.concurrency.feeding import Feed
from modelserve.concurrency.loops import Event, EventLoop, event_loop
from modelserve.concurrency.threads import start_thread
from modelserve.errors import ClientGone, ModelNotReady
from modelserve.lifespan import Serving
from modelserve.limits import Limits
from modelserve.models.hooks import VERBS
from modelserve.models.lifecycle import start_and_load
from modelserve.models.load_reports import log_load
from modelserve.tensors import InferRequest

__all__ = ["Runner"]

logger = logging.getLogger("modelserve")

_AHEAD: Final = 64  # items that a stream may be ahead of its reader
_PAYLOADS: Final = (dict, str, bytes, bytearray, memoryview, InferRequest, AsyncIterable)


class Runner:
    """Run the hooks of one model: `with Runner(model) as run: run(payload)`.

    A call runs `preprocess`, the verb's hook and `postprocess`, checks a declared payload, keeps
    the model's limits, and raises what the hooks raise. Several threads may call at once.

    The model is started and loaded by `with`, by `start` or else by the first call, and stopped at
    the end of `with`, by `close` or else when the process ends. Each process has a model of its
    own: after unpickling or a fork, a Runner starts its model again; a model that was loaded before
    is not loaded again.

    Args:
        model: A `Model`, another object with a `predict`, a function, or a class of models.
        verb: The hook: "predict", "explain", "chat", "complete" or "embed".
        limits: Like those of an application; the model's own limits apply within them.
        threads: How many sync hooks run at the same time.
        backend: What runs the event loop.

    Raises TypeError or ValueError, in one sentence, for a model that cannot be run.
    """

    def __init__(
        self,
        model: Any,
        *,
        verb: str = "predict",
        limits: Limits | None = None,
        threads: int = 40,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> None:
        if verb not in VERBS:
            raise ValueError(f"There is no verb {verb!r}: there are {', '.join(VERBS)}")
        life = _Life(model, verb, limits or Limits(), threads, backend)
        self._arguments = (life.entry.model, verb, limits or Limits(), threads, backend)
        self._lives = {life.pid: life}

    def __call__(self, payload: Any, *, headers: Mapping[str, str] | None = None) -> Any:
        """Return the result of the hooks for one payload; the list of the items of a stream.

        A hook that takes its instances one by one takes any iterable of rows as well.
        """
        life = self._started()
        request = life.request(payload, headers)
        return request.whole([*life.items(request)])

    def stream(self, payload: Any, *, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """Yield the items of the hooks for one payload as they are made; a result is one item.

        The hooks work ahead by at most 64 items. If the caller stops before the last, they are
        cancelled, and have cleaned up once the generator is closed. The thread that reads the items
        also reads the rows, when the hook asks for them.
        """
        life = self._started()
        yield from life.items(life.request(payload, headers))

    def start(self) -> Self:
        """Start and load the model now, unless it is loaded; return this object.

        A Runner that was closed starts again. Raises what the hooks raise.
        """
        if self._life().is_closed:
            self._lives.pop(os.getpid(), None)
        self._started()
        return self

    def close(self) -> None:
        """Cancel running calls, wait until they have cleaned up, and stop the model.

        An exception of `stop` is logged.
        """
        self._life().close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> Any:
        return self._arguments

    def __setstate__(self, arguments: Any) -> None:
        self._arguments = arguments
        self._lives = {}

    def _life(self) -> "_Life":
        pid = os.getpid()
        return self._lives.get(pid) or self._lives.setdefault(pid, _Life(*self._arguments))

    def _started(self) -> "_Life":
        life = self._life()
        life.check_open()
        try:
            if life.start():
                weakref.finalize(self, life.announce_end).atexit = False
        except BaseException:
            life.announce_end()
            if self._lives.get(life.pid) is life:
                del self._lives[life.pid]  # the next call tries again
            raise
        return life


class _Life:
    """One model in one process, from its start to its stop.

    Attributes:
        pid: The process.
        is_closed: Nothing may begin any more.
    """

    def __init__(self, model: Any, verb: str, limits: Limits, threads: int, backend: str) -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self._serving = Serving(limits, threads=threads)
        registry = self._serving.registry
        self.entry = registry.add(model, _name_for(model))
        registry.pending.remove(self.entry)  # it is loaded here, which raises the hooks' exceptions
        self._verb, self._plan = verb, self.entry.plans[verb]
        self._backend = backend
        self._lock = threading.RLock()  # may be called by a garbage collection
        self._thread: threading.Thread | None = None
        self._up: Future[None] = Future()
        self._over = threading.Event()
        self._calls: set[CallRequest] = set()
        self._loop: EventLoop | None = None
        self._closing: anyio.Event | None = None

    # -- for callers

    def start(self) -> bool:
        """Start and load the model, and wait for that; return whether this call did it.

        Raises what the hooks raise.
        """
        with self._lock:
            is_first = self._thread is None
            if is_first:
                self._thread = start_thread("modelserve-runner", self._run)
                atexit.register(self.close)
        self._up.result()
        return is_first

    def request(self, payload: Any, headers: Mapping[str, str] | None) -> CallRequest:
        """Return a call of the model that has not begun."""
        name, verb = self.entry.name, self._verb
        request = CallRequest(self._serving, name, payload, verb, headers, None)
        request.ahead = _AHEAD
        if "sniffio" in sys.modules:  # if the caller is in another library's event loop
            request.context.run(_note_library, self._backend)
        return request

    def items(self, request: CallRequest) -> Iterator[Any]:
        """Yield the items of a call. Raises RuntimeError if the Runner is closed before its end."""
        feed = None
        if self._plan.iterates is not None and _is_rows(request.payload):
            request.payload = feed = Feed(request.payload)
        leave = partial(self._call_soon, request.leave)
        begin = partial(self._begin, request)
        try:
            yield from items_in_thread(request, self._call_soon, begin, leave, feed)
        except ClientGone:
            self.check_open()
            raise
        finally:
            self._calls.discard(request)

    def close(self) -> None:
        """End all calls and stop the model, if it is running, and wait for that.

        This does not wait for a load under way.
        """
        self.announce_end()
        is_elsewhere = self.pid != os.getpid() or threading.current_thread() is self._thread
        if self._thread is not None and self._up.done() and not is_elsewhere:
            self._over.wait()

    def announce_end(self) -> None:
        """End all calls and stop the model, without waiting. May be called more than once."""
        if self.pid != os.getpid():
            return
        with self._lock:
            self.is_closed = True
            if self._loop is not None and self._closing is not None:
                self._loop.call_from_thread(self._closing.set)
        atexit.unregister(self.close)

    def check_open(self) -> None:
        """Raise RuntimeError if the Runner is closed, or if waiting would deadlock."""
        if self.is_closed:
            raise RuntimeError("This Runner is closed")
        if threading.current_thread() is self._thread:
            raise RuntimeError("An async hook cannot wait for the Runner that it runs in")

    def _begin(self, request: CallRequest) -> None:
        with self._lock:  # so that it begins before the end
            self.check_open()
            self._calls.add(request)
            self._call_soon(request.begin)

    def _call_soon(self, function: Any) -> None:
        assert self._loop is not None
        self._loop.call_from_thread(function)

    # -- its own thread

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend=self._backend)
        except BaseException as exc:
            if self._up.done():
                logger.error("Running model %s has failed", self.entry.name, exc_info=exc)
            else:
                self._up.set_exception(exc)
        finally:
            with self._lock:
                self.is_closed = True
            for request in [*self._calls]:
                if not request.begun:  # and never will be
                    request.leave()
            self._over.set()

    async def _main(self) -> None:
        with self._lock:
            self._loop, self._closing = event_loop(), anyio.Event()
            if self.is_closed:
                self._closing.set()
        async with self._serving.lifespan():
            self.entry.attempted = Event()
            try:
                with log_load(lambda: self.entry):
                    await start_and_load(self.entry)
            finally:
                self.entry.attempted.set()
            if not self.entry.model.ready:
                raise ModelNotReady(self.entry.name, "Its load() returned False.")
            self._up.set_result(None)
            await self._closing.wait()
            await anyio.lowlevel.checkpoint()  # for calls that began at the same moment
            for request in [*self._calls]:
                request.leave()


def _name_for(model: Any) -> str | None:
    """Return a name for a model that has none."""
    if getattr(model, "name", None) is not None:
        return None
    return str(getattr(model, "__name__", type(model).__name__))


def _is_rows(payload: Any) -> bool:
    """Return whether a payload is an iterable of rows; a table iterates over columns."""
    is_iterable = isinstance(payload, Iterable) and not isinstance(payload, _PAYLOADS)
    return is_iterable and not hasattr(payload, "columns")


def _note_library(backend: str) -> None:
    sys.modules["sniffio"].current_async_library_cvar.set(backend)
