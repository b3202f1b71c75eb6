"""Instances one by one, for a hook that is given an iterator of them.

They come from a list, or from the intake of a request that is still being received. A record that
is no instance is skipped if the results can hold its error; else the error is raised.
"""

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol, Self, TypeAlias

import anyio

from modelserve.concurrency.bridge import (
    ThreadCall,
    call_of_this_thread,
    stopping,
    wait_until_taken,
)
from modelserve.concurrency.loops import event_loop
from modelserve.errors import ClientGone, InvalidInput
from modelserve.wire.lines import BLANK, BadLine, Parser

__all__ = ["FailRecord", "Incoming", "Instances", "Listed", "SyncInstances"]

# Makes an instance of the record at an index. Raises InvalidInput.
Convert: TypeAlias = Callable[[Any, int], Any]
# Called with the number of a record that is no instance, and why. The hook sees what it raises.
FailRecord: TypeAlias = Callable[[int, Exception], Awaitable[None]]


class Incoming(Protocol):
    """Where records come from; `Intake` is one."""

    @property
    def cutter(self) -> Parser: ...

    async def take(self) -> tuple[int, list[Any]]:
        """Return the number of the next record, and records; an empty list only at the end."""


class Listed:
    """The instances of a document, as an async iterator."""

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = iter(values)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for value in self._values:
            return value
        raise StopAsyncIteration


class Instances:
    """The instances of a request as they arrive, as an async iterator.

    Attributes:
        convert: Converts a record for the hook; None if the hook takes records as they come.
        fail_record: By default it raises the error, with the number of the record.
        error: The error that was raised so: the request has failed, even if the hook caught it.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._values: Iterator[Any] = iter(())
        self._number = 0
        self._is_plain = True  # all values are instances that need no conversion
        self.convert: Convert | None = None
        self.fail_record: FailRecord = self._refuse
        self.error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            for value in self._values:
                if self._is_plain:
                    return value
                self._number += 1
                if value is BLANK:
                    continue
                try:
                    return self.checked(value, self._number)
                except InvalidInput as exc:
                    await self.fail(self._number, exc)
            number, values, self._is_plain = await self.take()
            if not values:
                raise StopAsyncIteration
            self._number, self._values = number - 1, iter(values)

    async def take(self) -> tuple[int, list[Any], bool]:
        """Return the number of the next record, the records, and whether all are plain instances.

        There are no records only at the end.
        """
        if self.error is not None:
            raise self.error
        number, records = await self._incoming.take()
        values, is_regular = self._incoming.cutter.parse(records)
        return number, values, is_regular and self.convert is None

    def checked(self, value: Any, number: int) -> Any:
        """Return what the hook takes of a record. Raises InvalidInput."""
        if type(value) is BadLine:
            raise InvalidInput(value.error)
        return value if self.convert is None else self.convert(value, number - 1)

    async def fail(self, number: int, failure: Exception) -> None:
        """Report the error of a record; raise it if it cannot be reported, or ends the request."""
        try:
            await self.fail_record(number, failure)
        except Exception as exc:
            self.error = exc
            raise

    async def _refuse(self, number: int, failure: Exception) -> None:
        raise InvalidInput(f"{self._incoming.cutter.noun} {number}: {failure}") from failure


class SyncInstances:
    """The same as an iterator that blocks, for the thread of a sync hook.

    Whatever has to wait is done on the event loop, by `serve`.
    """

    def __init__(self, instances: Instances) -> None:
        self.instances = instances
        self._loop = event_loop()
        self._values: Iterator[Any] = iter(())
        self._number = 0
        self._is_plain = True
        # what the thread asks the event loop to do, and the result
        self._question: Callable[[], Awaitable[Any]] | None = None
        self._asked, self._answered = anyio.Event(), threading.Event()
        self._answer: Any = None
        self._error: Exception | None = None
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        source = self.instances
        while True:
            for value in self._values:
                if self._is_plain:
                    return value
                self._number += 1
                if value is BLANK:
                    continue
                try:
                    return source.checked(value, self._number)
                except InvalidInput as exc:
                    number, failure = self._number, exc
                self._ask(partial(self._fail_in_turn, call_of_this_thread(), number, failure))
            number, values, self._is_plain = self._ask(source.take)
            if not values:
                raise StopIteration
            self._number, self._values = number - 1, iter(values)

    async def serve(self) -> None:
        """Do what the thread asks for, until cancelled; runs as a companion of the flight."""
        try:
            while True:
                await self._asked.wait()
                self._asked = anyio.Event()
                assert self._question is not None
                try:
                    self._answer = await self._question()
                except Exception as exc:
                    self._error = exc
                self._question = None
                self._answered.set()
        finally:
            self._is_over = True
            self._answered.set()

    async def _fail_in_turn(
        self, call: ThreadCall | None, number: int, failure: InvalidInput
    ) -> None:
        """Report the error of a record, after the items that the hook yielded before it."""
        if call is not None:
            await wait_until_taken(call)
        await self.instances.fail(number, failure)

    def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """Run something on the event loop and wait. Raises ClientGone once the call is over."""
        call = call_of_this_thread()
        self._answered.clear()
        self._question = question
        with nullcontext() if call is None else stopping(call, self._answered.set):
            if not (self._is_over or (call is not None and call.stop_requested)):
                self._loop.call_from_thread(self._notify)
                self._answered.wait()
        if self._question is not None:  # it was not run
            raise ClientGone
        error, self._error = self._error, None
        if error is not None:
            raise error
        answer, self._answer = self._answer, None
        return answer

    def _notify(self) -> None:
        self._asked.set()
