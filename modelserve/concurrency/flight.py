"""How long a request's user code may run, and what ends it early.

Servers neither cancel an application nor raise from `send` when the client leaves, so each request
in flight is watched. Whatever ends one early (client gone, a deadline, the drain, the host) comes
through one door, `Flight.cancel(reason)`, and user code is told once: the awaits of its clean-up
complete, within `cleanup_timeout`, after which it is cancelled again until it ends.

Three ways to do that, with one interface:

`Flight`, on asyncio, is the host's own task. Cancelling is `task.cancel()`, which asyncio delivers
once. The walk is begun by hand: one that never suspends is over before anybody could end it, so it
is never registered: 1.5 us of a small request. (The quick walk, `quick`, has no flight at all before
it suspends.) Most of the others are over in milliseconds, so watching (a task that awaits
`http.disconnect`, a timer for the deadlines) begins only with those that are still running when the
register sweeps, every 20 ms. A task group a request would double the cost of a small one.

`ShieldedFlight` is the same where the host runs us inside a cancel scope of anyio's, whose
cancellation is delivered again at every await: a shielded scope goes around the walk, and a task
beside it relays the host's cancellation once.

`ScopedFlight`, on trio, where cancellation is always delivered again at every await: the walk is
driven by hand inside two scopes. The outer one is cancelled; at the first cancellation that is
seen, the inner one becomes a shield with the bound on clean-up as its deadline.

An exception leaves a flight as itself, never inside a group of ours.
"""

import asyncio
import math
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, MutableMapping
from time import monotonic
from typing import Any, ClassVar, Final, cast

import anyio
import anyio.lowlevel

from modelserve.errors import BodyTimeout, ClientGone, DeadlineExceeded, ServerShuttingDown, Stopped
from modelserve.limits import Deadlines

try:
    # What anyio knows of each task, by weak reference: nothing where no task is in a scope of its.
    # Its public functions tell a part of this at a hundred times the cost (5 us, as much as all of
    # a small request), so they are what is used should this name go away.
    from anyio._backends._asyncio import _task_states

    _states: Any = vars(_task_states)["data"]
except (ImportError, KeyError):  # pragma: no cover
    _states = None

__all__ = ["OVER", "Flight", "Flights", "Phase", "go_on", "runs_natively"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Farewell = Callable[[Stopped], Coroutine[Any, Any, None]]

_SWEEP_SECONDS: Final = 0.02
_INSIST_SECONDS: Final = 0.1


class HostCancelled(ServerShuttingDown):
    """The host has cancelled the request, as servers do when they stop."""


class Phase:
    """What a request is waiting for; each has its own limit."""

    BODY: Final = 0
    QUEUE: Final = 1
    FIRST: Final = 2
    ITEM: Final = 3
    SEND: Final = 4
    DONE: Final = 5  # all has been sent; what is still being closed has no deadline but the drain's


OVER: Final = object()
_BODY: Final = Phase.BODY  # as a global it is found six times as fast
_NO_DEADLINES: Final = Deadlines()


class Flight:
    """One request in flight, in the task that the host runs it in.

    `phase` and `since` (of `time.monotonic`) are written by the walk as it goes on, and read only
    by those who watch, while it is suspended. `answered` says that the last event is on its way,
    `over` that user code has ended.
    """

    __slots__ = (
        "_cancelling",
        "_cancels",
        "_companion",
        "_farewell_task",
        "_patience",
        "_register",
        "_task",
        "_timer",
        "_watcher",
        "answered",
        "arrived",
        "deadlines",
        "farewell",
        "over",
        "phase",
        "reason",
        "receive",
        "since",
        "watched",
    )

    is_native: ClassVar[bool] = True

    def __init__(self, register: "Flights", arrived: float) -> None:
        self.arrived = self.since = arrived
        self.phase = _BODY
        self.deadlines = _NO_DEADLINES
        self.answered = self.over = self.watched = False
        self.reason: Stopped | None = None
        self.farewell: Farewell | None = None
        self.receive: Receive | None = None
        self._register = register
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._farewell_task: asyncio.Task[None] | None = None
        self._companion: asyncio.Task[None] | None = None
        self._patience: float | None = None
        self._cancels = self._cancelling = 0

    def begin(self, walk: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
        """Run the walk until it suspends; return the rest of it, None if nothing is left.

        The rest raises the reason if something ended it early. The host's own cancellation is
        raised again once the walk has cleaned up and the farewell has been said.
        """
        try:
            # `next` need not catch an exception to see the end: 0.3 us less than `send`.
            trap = next(walk.__await__(), OVER)
        except BaseException:
            self._land()
            raise
        if trap is OVER:
            self.over = True
            if self._companion is not None:
                self._companion.cancel()
            return None
        return self._run_here(go_on(walk, trap))

    def watch(self) -> None:
        """Listen on `receive` for the client's leaving, from now on: the body has been read."""
        assert self.receive is not None
        self._start_watcher(self.receive)

    def cancel(self, reason: Stopped) -> None:
        """End the walk early, once; the first reason counts. Safe to call at any time.

        After the last event every host says that the client is gone, which means nothing then.
        """
        if self.reason is not None or self.over:
            return
        if self.answered and isinstance(reason, ClientGone):
            return
        if self._is_being_told() and self._may_wait():
            self._task_loop().call_later(_INSIST_SECONDS, self.cancel, reason)
            return
        self.reason = reason
        self._interrupt()
        if self.farewell is not None and not isinstance(reason, ClientGone):
            self._say_farewell(self.farewell(reason))

    def interrupted(self, exc: BaseException) -> bool:
        """Say whether an exception belongs to the request's end, rather than to a hook of its own.

        A hook may raise CancelledError of itself, by awaiting a task that somebody cancelled.
        """
        return self.reason is not None or (
            isinstance(exc, asyncio.CancelledError) and self._is_being_told()
        )

    def beside(self, companion: Coroutine[Any, Any, None]) -> None:
        """Run something beside the walk, until the walk ends; ClientGone ends the walk."""
        self._companion = asyncio.get_running_loop().create_task(self._accompany(companion))

    async def _accompany(self, companion: Coroutine[Any, Any, None]) -> None:
        try:
            await companion
        except ClientGone as gone:
            self.cancel(gone)

    def begin_clean_up(self) -> None:
        """Say that user code has ended, or is about to be closed: nothing is left to be told."""

    def hurry(self, seconds: float) -> None:
        """Give a walk that is cleaning up no longer than this from now."""
        if self.reason is not None and self._timer is not None and not self.over:
            loop = self._task_loop()
            if self._timer.when() - loop.time() > seconds:
                self._timer.cancel()
                self._timer = loop.call_later(seconds, self._insist, _INSIST_SECONDS)

    def _is_being_told(self) -> bool:
        """Say whether somebody else's cancellation is under way: the host's, or a hook's own."""
        return self._task is not None and self._task.cancelling() > self._cancelling

    def _may_wait(self) -> bool:
        """Wait until that one is over, if it ever is: two at once reach into the clean-up."""
        left = self.deadlines.cleanup_timeout if self._patience is None else self._patience
        self._patience = left - _INSIST_SECONDS
        return left > 0

    def enter(self, phase: int) -> None:
        """Note what the walk waits for from now on."""
        self.phase = phase
        self.since = monotonic()

    # -- the clock

    def expired(self, now: float) -> Stopped | None:
        """Return the limit that has passed, if one has."""
        limits = self.deadlines
        if self.phase == Phase.DONE:
            return None
        if limits.timeout is not None and now - self.arrived >= limits.timeout:
            if self.phase == Phase.BODY:
                return BodyTimedOut(limits.timeout)
            return DeadlineExceeded(f"timeout: the request took longer than {limits.timeout:g} s")
        limit = self._phase_limit(self.phase)
        if limit is None or now - self.since < limit:
            return None
        return DeadlineExceeded(_PHASE_TEXT[self.phase].format(limit))

    def next_check(self, now: float) -> float:
        """Return when to look again: no limit, of this phase or a later one, can pass before."""
        limits = self.deadlines
        if self.phase == Phase.DONE:
            return math.inf
        due = math.inf if limits.timeout is None else self.arrived + limits.timeout
        for phase in _PHASE_TEXT:
            limit = self._phase_limit(phase)
            if limit is not None:
                due = min(due, (self.since if phase == self.phase else now) + limit)
        return due

    def _phase_limit(self, phase: int) -> float | None:
        limits = self.deadlines
        if phase == Phase.FIRST:
            return limits.first_item_timeout
        if phase == Phase.ITEM:
            return limits.idle_timeout
        return limits.send_timeout if phase == Phase.SEND else None

    # -- asyncio

    async def _run_here(self, walk: Awaitable[None]) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._register.add(self)
        try:
            await walk
        except asyncio.CancelledError:
            if self.reason is not None:
                raise self.reason from None
            self._host_has_cancelled()
            raise
        except BaseException as exc:
            if self.reason is not None and exc is not self.reason:
                raise self.reason from exc
            raise
        finally:
            self._land()
            if self._farewell_task is not None:
                await _settled(self._farewell_task)
            self._register.remove(self)

    def _task_loop(self) -> asyncio.AbstractEventLoop:
        assert self._task is not None
        return self._task.get_loop()

    def _land(self) -> None:
        """End the watching."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._companion is not None:
            self._companion.cancel()
        if self._task is not None:
            for _ in range(self._cancels):
                self._task.uncancel()

    def adopt(self) -> None:
        """Begin to watch: the request is not one of the quick ones."""
        self.watched = True
        if self.reason is not None:
            return
        if self.receive is not None:
            self.watch()
        self._set_timer()

    def _start_watcher(self, receive: Receive) -> None:
        self._watcher = self._task_loop().create_task(_watch(self, receive))

    def _set_timer(self) -> None:
        now = monotonic()
        due = self.next_check(now)
        if due < math.inf:
            delay = max(0.0, due - now)
            self._timer = self._task_loop().call_later(delay, self._look_at_clock)

    def _look_at_clock(self) -> None:
        stopped = self.expired(monotonic())
        if stopped is not None:
            self.cancel(stopped)
        else:
            self._set_timer()

    def _interrupt(self) -> None:
        self._insist(self._register.cleanup_bound(self.deadlines.cleanup_timeout))

    def _insist(self, again_after: float) -> None:
        """Cancel natively, and again if the walk has not ended by then."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._timer = self._task_loop().call_later(again_after, self._insist, _INSIST_SECONDS)

    def _say_farewell(self, farewell: Coroutine[Any, Any, None]) -> None:
        self._farewell_task = self._task_loop().create_task(farewell)

    def _host_has_cancelled(self) -> None:
        self.reason = HostCancelled()
        if self.farewell is not None:
            self._say_farewell(self.farewell(self.reason))


class ShieldedFlight(Flight):
    """One request in flight inside a cancel scope of the host's, on asyncio."""

    __slots__ = ()

    def begin(self, walk: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        return self._run_shielded(walk)

    async def _run_shielded(self, walk: Coroutine[Any, Any, None]) -> None:
        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(_relay_host_cancellation, self)
            with anyio.CancelScope(shield=True):
                try:
                    await self._run_here(walk)
                except BaseException as exc:
                    error = exc
            group.cancel_scope.cancel()
        if isinstance(error, HostCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()  # the host's own cancellation goes on
        if error is not None:
            raise error


class ScopedFlight(Flight):
    """One request in flight under trio: a task group, two scopes, the walk driven by hand."""

    __slots__ = ("_farewell_said", "_group", "_inner", "_outer", "told_in")

    is_native: ClassVar[bool] = False
    _group: anyio.abc.TaskGroup
    _outer: anyio.CancelScope
    _inner: anyio.CancelScope

    def __init__(self, register: "Flights", arrived: float) -> None:
        super().__init__(register, arrived)
        self._farewell_said: anyio.Event | None = None
        self.told_in: list[Any] | None = None

    def begin(self, walk: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        return self._run_in_scopes(walk)

    async def _run_in_scopes(self, walk: Coroutine[Any, Any, None]) -> None:
        error: BaseException | None = None
        finished = False
        async with anyio.create_task_group() as self._group:
            self.watched = True
            self._register.add(self)
            self._group.start_soon(self._keep_time)
            try:
                with anyio.CancelScope(shield=True) as self._outer:
                    with anyio.CancelScope() as self._inner:
                        await cast(Awaitable[None], _drive(self, walk))
                        finished = True
            except BaseException as exc:
                error = exc
            self._land()
            if self._farewell_said is not None:
                with anyio.CancelScope(shield=True):
                    await self._farewell_said.wait()
            self._register.remove(self)
            self._group.cancel_scope.cancel()
        if finished:
            return
        if isinstance(self.reason, HostCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()  # the host's own cancellation goes on
        if self.reason is not None and error is not self.reason:
            raise self.reason from error
        assert error is not None
        raise error

    def interrupted(self, exc: BaseException) -> bool:
        return self.reason is not None

    def hurry(self, seconds: float) -> None:
        if self.reason is not None and not self.over:
            self._inner.deadline = min(self._inner.deadline, anyio.current_time() + seconds)

    def begin_clean_up(self) -> None:
        """Shield the walk from a cancellation that it was told of, or need not be told of."""
        if self.reason is not None and not self._inner.shield:
            from trio.lowlevel import current_task

            self.note_told(current_task())
            self._inner.shield = True
            if self._inner.deadline == math.inf:
                bound = self._register.cleanup_bound(self.deadlines.cleanup_timeout)
                self._inner.deadline = anyio.current_time() + bound

    def note_told(self, task: Any) -> None:
        """Remember the nurseries that the walk is in when it is told: those are cancelled too."""
        if self.told_in is None:
            self.told_in = list(task.child_nurseries)

    def note_if_told(self, task: Any) -> None:
        """Note a cancellation that has been sent, unless a shield of the walk's own hides ours."""
        if self.is_visible_to(task):
            self.note_told(task)

    def is_visible_to(self, task: Any) -> bool:
        """Say whether no shield of the walk's own hides the cancellation from where a task is.

        What ends a sleep, or a time limit, is a cancellation too. Nothing public tells the two
        apart when they coincide; without these names each counts as ours.
        """
        status = getattr(task, "_cancel_status", None)
        while status is not None and (scope := getattr(status, "_scope", None)) is not None:
            if scope is getattr(self._inner, "_CancelScope__original", None):
                return True
            if scope.shield:
                return False
            status = getattr(status, "_parent", None)
        return True

    def lower_shield(self) -> None:
        """Let what ends see that it was cancelled from outside."""
        self._inner.shield = False

    def _land(self) -> None:
        self.over = True

    def _is_being_told(self) -> bool:
        return False

    def _start_watcher(self, receive: Receive) -> None:
        self._group.start_soon(_watch, self, receive)

    def beside(self, companion: Coroutine[Any, Any, None]) -> None:
        self._group.start_soon(self._accompany, companion)

    def _interrupt(self) -> None:
        self._outer.cancel()

    def _say_farewell(self, farewell: Coroutine[Any, Any, None]) -> None:
        self._farewell_said = anyio.Event()
        self._group.start_soon(self._await_farewell, farewell, self._farewell_said)

    async def _await_farewell(self, farewell: Coroutine[Any, Any, None], said: anyio.Event) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await farewell
        finally:
            said.set()

    async def _keep_time(self) -> None:
        """Look at the clock whenever a limit may have passed; relay the host's cancellation."""
        try:
            while True:
                now = monotonic()
                stopped = self.expired(now)
                if stopped is not None:
                    self.cancel(stopped)
                    await anyio.sleep_forever()
                await anyio.sleep(self.next_check(now) - now)
        except anyio.get_cancelled_exc_class():
            self.cancel(HostCancelled())  # nothing happens where the walk is over
            raise


class Flights:
    """The register of one application's requests in flight, and the one sweeper of them."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._young: dict[Flight, None] = {}
        self._adopted: dict[Flight, None] = {}
        self._sweeping: asyncio.AbstractEventLoop | None = None
        self._emptied: anyio.Event | None = None
        self._cleanup_cap = math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()

    def __len__(self) -> int:
        return len(self._young) + len(self._adopted)

    def __iter__(self) -> Iterator[Flight]:
        return iter((*self._young, *self._adopted))

    def open(self, arrived: float, *, native: bool = False) -> Flight:
        """Return the flight of a new request, of the kind that the running backend needs.

        With `native`, `runs_natively` has said so before a hook of the request was begun.
        """
        if native or runs_natively():
            return Flight(self, arrived)
        kind = ScopedFlight if asyncio._get_running_loop() is None else ShieldedFlight
        return kind(self, arrived)

    def add(self, flight: Flight) -> None:
        """Register a request that has suspended, or may."""
        if flight.watched:
            self._adopted[flight] = None
            return
        loop = asyncio.get_running_loop()
        if self._sweeping is not loop:
            self._young.clear()  # of nothing, or of what a loop that has ended has left
            self._sweep_later(loop)
        self._young[flight] = None

    def remove(self, flight: Flight) -> None:
        self._young.pop(flight, None)
        self._adopted.pop(flight, None)
        if self._emptied is not None and not self:
            emptied, self._emptied = self._emptied, None
            emptied.set()

    def begin(self) -> None:
        """Begin a life: what the end of the one before has capped is so no more."""
        self._cleanup_cap = math.inf

    def cleanup_bound(self, seconds: float) -> float:
        """Return how long clean-up may take: what is asked for, less once the drain is over."""
        return min(seconds, self._cleanup_cap)

    def cancel_all(self, reason: Callable[[], Stopped], *, cleanup_cap: float) -> None:
        """End every request in flight, with at most `cleanup_cap` seconds to clean up."""
        self._cleanup_cap = cleanup_cap
        for flight in self:
            flight.hurry(cleanup_cap)
            flight.cancel(reason())

    async def emptied(self) -> None:
        """Wait until no request is in flight."""
        while self:
            if self._emptied is None:
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop
        loop.call_later(_SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Adopt those that have been running for a while; go on while there are younger ones."""
        adult = monotonic() - _SWEEP_SECONDS
        for flight in list(self._young):
            if flight.arrived > adult:
                break  # so are those after it
            del self._young[flight]
            self._adopted[flight] = None
            flight.adopt()
        self._sweeping = None
        if self._young:
            self._sweep_later(loop)


class BodyTimedOut(BodyTimeout, DeadlineExceeded):
    """The whole time that a request may take has passed before its body had arrived."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"request body not received within {seconds:g} s")


_PHASE_TEXT: Final = {
    Phase.FIRST: "first_item_timeout: nothing was produced within {:g} s",
    Phase.ITEM: "idle_timeout: no item was produced for {:g} s",
    Phase.SEND: "send_timeout: the client has read nothing for {:g} s",
}


async def _watch(flight: Flight, receive: Receive) -> None:
    """Wait for the client to leave; any exception from `receive` means that it has.

    Next to no host sends anything else after the body. One that does is asked again after a pause,
    since a `receive` that always has an answer would keep the event loop busy for ever.
    """
    try:
        while (await receive())["type"] != "http.disconnect":  # noqa: ASYNC110 - what it sleeps on is not ours
            await anyio.sleep(_SWEEP_SECONDS)
    except Exception:  # noqa: S110 - by `suppress` it would take 0.2 KiB more of each idle stream
        pass
    flight.cancel(ClientGone())


async def _relay_host_cancellation(flight: Flight) -> None:
    try:
        await anyio.sleep_forever()
    except asyncio.CancelledError:
        flight.cancel(HostCancelled())  # nothing happens where the walk is over
        raise


async def _settled(task: asyncio.Task[None]) -> None:
    """Wait for a task through cancellations of ours; it is bounded in time itself."""
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue


def runs_natively() -> bool:
    """Say whether we are on asyncio, in no cancel scope of a host's: then a walk needs none."""
    if asyncio._get_running_loop() is None:
        return False
    return not ((_states or _states is None) and _inside_host_scope())


def _inside_host_scope() -> bool:
    """Say whether a cancel scope of anyio's, in the host, surrounds us."""
    if _states is not None:
        state = _states.get(weakref.ref(asyncio.current_task()))
        return state is not None and state.cancel_scope is not None
    return (
        anyio.get_current_task().parent_id is not None
        or anyio.current_effective_deadline() != math.inf
    )


@types.coroutine
def go_on(walk: Coroutine[Any, Any, None], trap: Any) -> Generator[Any, Any, None]:
    """Go on with a walk that has suspended: await what it awaits, then the rest of it."""
    while True:
        try:
            yield trap
        except BaseException as exc:
            try:
                trap = walk.throw(exc)
            except StopIteration:
                return
        else:
            yield from walk
            return


@types.coroutine
def _drive(flight: ScopedFlight, walk: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Drive the walk by hand: trio sends a cancellation as an outcome, not as an exception.

    The shield goes up at the first await after the cancellation was sent: any earlier, and a scope
    that the walk is in at that moment would take the cancellation for its own. A nursery that the
    walk is in then is such a scope: the shield is down while one ends. One that its clean-up opens
    is not.
    """
    from outcome import Error
    from trio import Cancelled
    from trio.lowlevel import current_task

    task = current_task()
    step, value = walk.send, None
    while True:
        try:
            trap = step(value)
        except StopIteration:
            return
        if flight.told_in is not None and not _is_leaving_nursery(task, flight.told_in):
            flight.begin_clean_up()
        try:
            step, value = walk.send, (yield trap)
        except BaseException as exc:
            step, value = walk.throw, exc
        else:
            if flight.reason is None:
                continue
            if _is_leaving_nursery(task, flight.told_in):
                flight.note_told(task)
                flight.lower_shield()
            elif isinstance(value, Error) and isinstance(value.error, Cancelled):
                flight.note_if_told(task)


def _is_leaving_nursery(task: Any, among: list[Any] | None) -> bool:
    """Say whether a task is at the end of the innermost of its nurseries, if that is one of these.

    Nothing public tells it. Should these names go away, a handler whose nursery swallows the
    cancellation is cancelled again after `cleanup_timeout`, no worse.
    """
    nurseries = task.child_nurseries
    if not nurseries:
        return False
    innermost = nurseries[-1]
    if among is not None and innermost not in among:
        return False
    return bool(
        getattr(innermost, "_parent_waiting_in_aexit", False)
        or getattr(innermost, "_closed", False)
    )
