"""Run a hook of whole payloads for a request that is still being received.

The hook is called with `{"instances": [...]}` of what has arrived, and never waits for more. Each
result belongs to one record. Results and errors of records are sent in the order of the records. A
call that raises is made again record by record, so that one bad record fails alone.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, Protocol

from modelserve.concurrency.flight import Watched
from modelserve.errors import InvalidInput, describe
from modelserve.models.hooks import Plan
from modelserve.models.inference import Call, infer
from modelserve.models.instances import Incoming
from modelserve.models.predictions import Miscounted, first_error, predictions_of
from modelserve.tensors.elements import is_array
from modelserve.wire.lines import BLANK, BadLine

__all__ = ["Chunks", "Sink"]

_RESULTS: Final = {"explain": "explanations"}


class Sink(Protocol):
    """Where results go.

    Attributes:
        is_empty: No result has been added yet.
    """

    @property
    def is_empty(self) -> bool: ...

    def put(self, items: Sequence[Any]) -> None:
        """Add results."""

    def put_one(self, item: Any) -> Awaitable[None]:
        """Add a result; return `wait_for_room`, to be awaited."""

    def fail_record(self, number: int, failure: BaseException) -> None:
        """Add an error in the place of a record's result. Raises what ends the request."""

    async def wait_for_room(self) -> None:
        """Wait until more may be added. Raises what ends the request early."""


class Chunks:
    """The calls of one request's hooks.

    Args:
        plan: The hooks.
        incoming: Where the records come from.
        sink: Where the results go.
        request: The request, which bounds the clean-up.
        make_call: Makes the object that runs the hooks once.
        check: As for `infer`.
        seconds: How long each hook has taken, over all calls.
    """

    def __init__(
        self,
        plan: Plan,
        incoming: Incoming,
        sink: Sink,
        request: Watched,
        *,
        make_call: Callable[[], Call],
        check: Callable[[Any], None],
        seconds: dict[str, float],
    ) -> None:
        if plan.main.rows is not None and plan.postprocess is None:
            plan = plan.with_main(plan.main.replaced_by(plan.main.rows))
        self._plan = plan
        self._incoming = incoming
        self._sink = sink
        self._request = request
        self._make_call = make_call
        self._check = check
        self._seconds = seconds
        self._call = self._new_call()
        self._untold: list[tuple[int, Any]] = []  # results before those of a call made alone
        self._who = f"With a streamed body, {plan.main.name}"
        self._key = _RESULTS.get(plan.main.name, "predictions")

    def _new_call(self) -> Call:
        call = self._make_call()
        call.seconds = self._seconds
        return call

    async def run(self) -> None:
        """Answer all records. Raises what ends the request."""
        incoming = self._incoming
        one_by_one = incoming.cutter.at_a_time == 1
        while True:
            first, records = await incoming.take()
            if not records:
                return
            values, is_regular = incoming.cutter.parse(records)
            if one_by_one:
                await self._answer_each(first, values)
            else:
                await self._answer_all(first, values, is_regular)

    async def _answer_each(self, first: int, values: list[Any]) -> None:
        """Answer each record by itself, before the next is looked at."""
        for number, value in enumerate(values, first):
            if type(value) is BadLine:
                self._sink.fail_record(number, InvalidInput(value.error))
                await self._sink.wait_for_room()
                continue
            results, error = await self._attempt([value])
            if type(results) is list and not isinstance(results[0], BaseException):
                await self._sink.put_one(results[0])
            else:
                self._put((number,), results if error is None else [error], error)
                await self._sink.wait_for_room()

    async def _answer_all(self, first: int, values: list[Any], is_regular: bool) -> None:
        """Answer records together, except those that are no instances."""
        if is_regular:
            await self._answer(range(first, first + len(values)), values)
        else:
            await self._answer_between(first, values)
        await self._sink.wait_for_room()

    async def _answer_between(self, first: int, values: list[Any]) -> None:
        """Answer each run of records between two that are no instances."""
        numbers: list[int] = []
        good: list[Any] = []
        for number, value in zip(count(first), values, strict=False):
            if type(value) is not BadLine:
                numbers.append(number)
                good.append(value)
            elif value is not BLANK:
                await self._answer(numbers, good)
                numbers, good = [], []
                self._sink.fail_record(number, InvalidInput(value.error))
        await self._answer(numbers, good)

    async def _answer(self, numbers: Sequence[int], values: list[Any]) -> None:
        """Answer instances that follow one another."""
        if not values:
            return
        results, error = await self._attempt(values)
        if error is not None and len(values) > 1:
            numbers, results = await self._one_by_one(numbers, values)
        elif error is not None:
            results = [error]
        self._put(numbers, results, error)

    async def _one_by_one(
        self, numbers: Sequence[int], values: list[Any]
    ) -> tuple[Sequence[int], list[Any]]:
        """Return the results that are not sent yet, or the exceptions, and their numbers."""
        for number, value in zip(numbers, values, strict=True):
            found, error = await self._attempt([value])
            if is_array(found):
                found = found.tolist()  # `list += array` would be an addition
            self._untold += [(number, each) for each in (found if error is None else [error])]
        untold, self._untold = self._untold, []
        return [number for number, _ in untold], [result for _, result in untold]

    def _put(self, numbers: Sequence[int], results: Any, error: Exception | None) -> None:
        """Add results in order; an exception is the error of its record.

        Args:
            error: What the call for all of them raised.
        """
        if error is not None and self._sink.is_empty and all(map(_is_fault, results)):
            raise error  # no record is to blame
        if is_array(results):
            results = results.tolist()
        if first_error(results) is None:
            self._sink.put(results)
            return
        _put_each(self._sink, zip(numbers, results, strict=True))

    def _put_untold(self) -> None:
        """Add what comes before a stream, whose items are sent at once."""
        untold, self._untold = self._untold, []
        try:
            _put_each(self._sink, untold)
        except Exception as exc:  # it ends the request, and not the record of the stream
            raise _Partial(exc) from exc

    async def _attempt(self, values: list[Any]) -> tuple[Any, Exception | None]:
        """Return the results of one call, or its exception if a record may be at fault.

        No results are returned for a stream: its items have been sent already.
        """
        call, plan = self._call, self._plan
        try:
            result = await infer(plan, {"instances": values}, call, self._check)
            if call.is_stream(result):
                await self._hand_on(result)
                return (), None
            return predictions_of(result, len(values), self._who, key=self._key), None
        except _Partial as exc:
            raise exc.error from None
        except Miscounted:
            raise
        except Exception as exc:
            if self._request.reason is not None:
                raise self._request.reason from exc
            return (), exc
        finally:
            if not call.is_finished:
                self._call = self._new_call()
                await call.closing()

    async def _hand_on(self, items: Any) -> None:
        has_begun = False
        try:
            async for item in items:
                if self._untold:
                    self._put_untold()
                room = self._sink.put_one(item)
                has_begun = True
                await room
        except Exception as exc:
            if has_begun:
                raise _Partial(exc) from exc
            raise


class _Partial(Exception):
    """A stream failed after a part of it, or an error before it, had been sent."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _put_each(sink: Sink, numbered: Iterable[tuple[int, Any]]) -> None:
    """Add results one by one; an exception is the error of its record."""
    for number, result in numbered:
        if isinstance(result, BaseException):
            sink.fail_record(number, result)
        else:
            sink.put((result,))


def _is_fault(result: Any) -> bool:
    """Return whether a record failed through no fault of the client."""
    return isinstance(result, BaseException) and describe(result)[0] >= 500
