"""Continuous batching: one step over all streams that are active; they join and leave in between.

Each request has a slot. Between two steps, slots that have ended or whose client has left are
removed, and waiting ones are admitted. A slot whose client does not read is left out of the steps
until it does, so that it delays no other. A reader is woken once in a step, however many items the
step has put.

Sync steps run in a thread, many in one call, until there is nothing to do or another call waits for
the thread. Async ones run on the event loop, where a step is cancelled once all its clients have
left.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from modelserve.concurrency.cancelling import ends_task
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.loops import EventLoop, Wakeup, event_loop
from modelserve.concurrency.threads import Workers
from modelserve.concurrency.unattended import Unattended
from modelserve.errors import Stopped
from modelserve.limits import Deadlines
from modelserve.metrics.cells import Gauge

__all__ = ["Slot", "Stepper", "Steps"]

logger = logging.getLogger("modelserve")


class Slot:
    """One request among those that are stepped together.

    Attributes:
        payload: The payload of the request.
        state: For the model to keep its own data from step to step; None at first.
    """

    __slots__ = (
        "_error",
        "_has_ended",
        "_is_gone",
        "_is_new",
        "_is_out",
        "_items",
        "_left",
        "_reader",
        "payload",
        "state",
    )

    def __init__(self, payload: Any) -> None:
        self.payload = payload
        self.state: Any = None
        self._items: deque[Any] = deque()
        self._error: BaseException | None = None
        self._has_ended = False
        self._is_new = False  # something has been put since the reader was woken
        self._is_gone = False  # the reader has left
        self._is_out = False  # `leave` has been called, or need not be
        self._reader: Wakeup | None = None  # set while the reader waits for an item
        self._left: Wakeup | None = None  # set while the reader waits for `leave`

    def put(self, item: Any) -> None:
        """Send an item to the client. After the end, or once the client has left, it is dropped."""
        if not (self._has_ended or self._is_gone):
            self._items.append(item)
            self._is_new = True

    def end(self) -> None:
        """End the stream; the slot is in no further step."""
        self._has_ended = self._is_new = True

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, as if `predict` had raised it."""
        if not self._has_ended:
            self._error = error
            self.end()

    async def _wait_for_items(self, loop: EventLoop) -> bool:
        """Return True once there is an item, False once there will be none."""
        while not self._items:
            if self._has_ended:
                return bool(self._items)  # the last item may have come between the two checks
            self._reader = loop.wakeup()
            await self._reader.wait()
            self._reader = None
        return True


@dataclass(frozen=True, slots=True)
class Stepper:
    """The methods of a model that step, and the limits on the steps.

    Attributes:
        step, join, leave: The model's methods; None if it has no `join` or `leave`.
        on_loop: They run on the event loop, and may be async; else in a thread of `workers`.
        max_active: Slots in one step at most.
        room: Items that may wait for a client; a slot with as many is left out of the steps.
        label: Names the calls in lists of busy threads, and in the log.
        deadlines: `cleanup_timeout` bounds the clean-up of an async step that is cancelled.
    """

    step: Callable[[list[Slot]], Any]
    join: Callable[[Slot], Any] | None
    leave: Callable[[Slot], Any] | None
    on_loop: bool
    max_active: int
    room: int
    label: str
    workers: Workers
    flights: Flights
    deadlines: Deadlines


class _Rounds:
    """The slots of one model in one event loop, and the steps that are made with them.

    Attributes:
        waiting: Slots that have not joined.
        active: Those that have; written only by the code that runs the steps, in the thread or on
            the event loop.
        attended: The slots of the call that runs just now.
        work: What runs the steps, while they run on the event loop.
    """

    def __init__(self, stepper: Stepper, gauge: Gauge, loop: EventLoop) -> None:
        self._stepper = stepper
        self._gauge = gauge
        self._loop = loop
        self.waiting: deque[Slot] = deque()
        self.active: list[Slot] = []
        self._shown = 0  # how many the gauge shows
        self.attended: Sequence[Slot] = ()
        self.work: Unattended | None = None

    def __bool__(self) -> bool:
        """Return whether there are slots."""
        return bool(self.waiting or self.active)

    @property
    def is_deserted(self) -> bool:
        """Whether a `join` or `step` is running although all its clients have left."""
        return bool(self.attended) and all(slot._is_gone for slot in self.attended)

    def clear(self, error: BaseException) -> None:
        """Fail all slots, without `leave`."""
        slots = [*self.waiting, *self.active]
        self.waiting.clear()
        self.active = []
        for slot in slots:
            slot.fail(error)
            slot._is_out = True
        self.notify(slots)

    def show_none(self) -> None:
        """Show that no slot is active."""
        self._shown = 0
        self._gauge.cells[0] = 0.0

    def has_something_to_do(self) -> bool:
        if self.waiting and len(self.active) < self._stepper.max_active:
            return True
        return any(slot._is_gone or self._is_ready(slot) for slot in self.active)

    def _is_ready(self, slot: Slot) -> bool:
        return len(slot._items) < self._stepper.room

    async def run(self, pause: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        """Step while a slot is ready; without `pause`, until another call needs the thread."""
        while True:
            ready = await self._change_slots()
            if not ready:
                return
            await self._attempt(self._stepper.step, ready, ready)
            await self._settle(ready)
            if pause is not None:
                await pause()
            elif self._stepper.workers.has_waiting:
                return

    async def _change_slots(self) -> list[Slot]:
        """Remove slots whose client left, admit waiting ones; return the slots to step."""
        await self._settle([slot for slot in self.active if slot._is_gone])
        while self.waiting and len(self.active) < self._stepper.max_active:
            try:
                slot = self.waiting.popleft()
            except IndexError:  # its client has just left
                break
            self.active.append(slot)
            await self._attempt(self._stepper.join, slot, [slot])
            await self._settle([slot])
        return [slot for slot in self.active if self._is_ready(slot) and not slot._is_gone]

    async def _attempt(
        self, function: Callable[[Any], Any] | None, argument: Any, slots: list[Slot]
    ) -> None:
        """Call `join` or `step`; an exception ends the streams of these slots."""
        self.attended = slots
        try:
            await self._call(function, argument)
        except BaseException as exc:
            work = self.work
            is_interrupted = work is not None and work.is_interrupted_by(exc)
            for slot in slots:
                slot.fail(exc if work is None or work.reason is None else work.reason)
            if is_interrupted:
                await self._settle(slots)
                raise
        finally:
            self.attended = ()

    async def _settle(self, slots: list[Slot]) -> None:
        """Take those of some slots out that have ended or are gone; wake the readers of all."""
        try:
            await self._take_out([slot for slot in slots if slot._has_ended or slot._is_gone])
        finally:
            self._tell(slots)

    async def _take_out(self, slots: list[Slot]) -> None:
        """Call `leave` for each; what interrupts one is raised once the others are out as well."""
        interruption: BaseException | None = None
        for slot in slots:
            self.active.remove(slot)
            try:
                await self._call(self._stepper.leave, slot)
            except BaseException as exc:  # libraries in Rust raise what is no `Exception`
                if self.work is None or not ends_task(exc):
                    logger.exception("leave of %s failed", self._stepper.label)
                elif isinstance(exc, GeneratorExit):  # nothing can be awaited any more
                    raise
                else:
                    interruption = exc
            finally:
                slot._is_out = True
        if interruption is not None:
            raise interruption

    async def _call(self, function: Callable[[Any], Any] | None, argument: Any) -> None:
        if function is not None:
            result = function(argument)
            if self._stepper.on_loop and result is not None:
                await result

    def _tell(self, slots: list[Slot]) -> None:
        """Wake the readers of slots that have something new, or that have been removed."""
        new = [slot for slot in slots if slot._is_new or slot._is_out]
        if not new and len(self.active) == self._shown:
            return
        self._shown = len(self.active)
        for slot in new:
            slot._is_new = False
        if self._stepper.on_loop:
            self.notify(new)
        else:
            self._loop.call_from_thread(self.notify, new)

    def notify(self, slots: list[Slot]) -> None:
        self._gauge.cells[0] = float(len(self.active))
        for slot in slots:
            if slot._reader is not None:
                slot._reader.set()
            if slot._left is not None and slot._is_out:
                slot._left.set()


class Steps:
    """The slots of one model in one event loop.

    Args:
        stepper: What steps.
        gauge: Shows how many slots are active.
    """

    def __init__(self, stepper: Stepper, gauge: Gauge) -> None:
        self._stepper = stepper
        self._loop = event_loop()
        self._rounds = _Rounds(stepper, gauge, self._loop)
        self._is_running = False
        self._changed: Wakeup | None = None  # set while there is nothing to do

    @property
    def is_idle(self) -> bool:
        """Whether there are no slots."""
        return not self._is_running

    async def stream(self, payload: Any) -> AsyncIterator[Any]:
        """Yield the items of one request, in a slot of its own.

        Closing it takes the slot out before the next step and waits until `leave` has returned.
        """
        slot = Slot(payload)
        self._rounds.waiting.append(slot)
        self._wake()
        try:
            while await slot._wait_for_items(self._loop):
                item = slot._items.popleft()
                if len(slot._items) == self._stepper.room - 1:
                    self._wake()  # it was left out
                yield item
            if slot._error is not None:
                raise slot._error
        finally:
            await self._leave(slot)

    async def _leave(self, slot: Slot) -> None:
        slot._is_gone = True
        with suppress(ValueError):
            self._rounds.waiting.remove(slot)
            return  # it has not joined
        rounds = self._rounds
        if rounds.work is not None and rounds.is_deserted:
            rounds.work.cancel()
        if not slot._is_out:
            slot._left = self._loop.wakeup()
            self._wake()
            await slot._left.wait()

    def _wake(self) -> None:
        """Wake the loop of steps, as something has changed."""
        if not self._is_running:
            self._is_running = True
            self._loop.start_soon(self._run, Context())
        elif self._changed is not None:
            self._changed.set()

    async def _run(self) -> None:
        """Step until there are no slots."""
        try:
            while self._rounds:
                if self._stepper.on_loop:
                    await self._run_in_flight()
                else:
                    await self._run_until_idle()
        except BaseException as exc:  # no thread can be started, or the event loop is being closed
            self._rounds.clear(exc)
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                raise
        finally:
            self._is_running = False
            self._rounds.show_none()

    async def _run_in_flight(self) -> None:
        """Step until there are no slots, or a step has been cancelled."""
        self._rounds.work = Unattended(self._stepper.deadlines)
        try:
            await self._rounds.work.run(self._stepper.flights, self._run_until_idle())
        except Stopped:
            pass  # the slots of the step have been removed
        finally:
            self._rounds.work = None

    async def _run_until_idle(self) -> None:
        while self._rounds:
            if self._rounds.has_something_to_do():
                await self._run_rounds()
            else:
                self._changed = self._loop.wakeup()
                try:
                    await self._changed.wait()
                finally:
                    self._changed = None

    async def _run_rounds(self) -> None:
        if self._stepper.on_loop:
            await self._rounds.run(anyio.lowlevel.checkpoint)
        else:
            workers = self._stepper.workers
            await workers.call(self._stepper.label, _run_to_end, self._rounds.run(None))


def _run_to_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("A sync step has suspended.")
