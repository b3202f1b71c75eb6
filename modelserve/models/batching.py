"""Batching: `predict` is called once for the items of several requests.

The hook stays as it is written for one request: V1's gets `{"instances": [...]}` and returns as
many `predictions`, V2's gets one `InferRequest` joined along the first axis and returns an
`InferResponse` with as many rows. This module decides which payloads may share a call, joins
payloads and divides results; `concurrency.batches` decides when a call is made.
"""

import logging
import math
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import isawaitable
from itertools import chain
from typing import Any, Final, Protocol

import orjson

from modelserve.concurrency.batches import Batches, Policy
from modelserve.concurrency.closing import aclose
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.lanes import Part
from modelserve.concurrency.loops import PerLoop
from modelserve.concurrency.threads import Workers
from modelserve.errors import InferenceError
from modelserve.limits import Deadlines, Limits
from modelserve.metrics.batches import BatchSeries
from modelserve.models.declared import Form
from modelserve.models.hooks import Hook, Plan
from modelserve.models.inference import PLAIN
from modelserve.models.policies import Batching
from modelserve.models.predictions import as_rows, first_error, predictions_of
from modelserve.tensors import InferInput, InferOutput, InferRequest, InferResponse
from modelserve.tensors.rows import count_rows, divide_rows, join_rows, row_type
from modelserve.tensors.tensor import without_size

__all__ = ["batched", "check_batching", "with_room"]

logger = logging.getLogger("modelserve")


def check_batching(model: Any, plan: Plan) -> None:
    """Raise TypeError, in one sentence, for a model whose `predict` cannot be batched."""
    if model.batching is None:
        return
    label, hook = f"predict of model {model.name!r}", plan.main
    if not isinstance(model.batching, Batching):
        raise TypeError(f"batching of model {model.name!r} must be a Batching")
    if hook.streams:
        raise TypeError(f"{label} is a generator, which cannot be batched")
    if plan.iterates is not None:
        raise TypeError(f"{label} takes an iterator, which cannot be batched")
    if hook.required_headers:
        names = " and ".join(hook.required_headers)
        raise TypeError(
            f"{label} is batched, and is then called for several requests at once: "
            f"{names} must have a default, which is used then"
        )


def with_room(limits: Limits, batching: Batching, label: str) -> Limits:
    """Return a model's limits with room for the next batch to gather while others run."""
    if limits.concurrency is not None and limits.concurrency < math.inf:
        if limits.concurrency < batching.max_size:
            logger.warning(
                "Batches of %s may stay small: its limit on concurrency is %d requests, and "
                "max_size is %d items",
                label,
                limits.concurrency,
                batching.max_size,
            )
        return limits
    return replace(limits, concurrency=batching.max_size * (batching.concurrency + 1))


def batched(
    plan: Plan,
    batching: Batching,
    label: str,
    *,
    workers: Workers,
    deadlines: Deadlines,
    series: BatchSeries,
    flights: Flights,
) -> Plan:
    """Return a plan whose main hook joins requests.

    Args:
        plan: The plan without batching.
        label: Names the hook's calls in lists of busy threads.
        workers: The threads for a sync hook.
        deadlines: Their `cleanup_timeout` bounds the clean-up of a call.
        series: Records the batches.
        flights: The register of work for several requests.
    """
    policy = Policy(
        batching.max_size, batching.max_wait, batching.concurrency, batching.isolate, deadlines
    )
    call = _caller(plan.main, label, workers)
    declared = plan.declared
    if declared is None or declared.form is not Form.INSTANCES or plan.preprocess is not None:
        batcher = _Batcher(call, policy, series, flights)
        hook = plan.main.replaced_by(batcher.predict, rows=batcher.predict_rows)
        return plan.with_main(hook)

    async def call_with_instances(payload: Any) -> Any:
        return declared.answer(await call(payload["instances"]))

    async def predict(instances: Any) -> Any:
        return await joined.predict({"instances": instances})

    async def predict_rows(instances: Any) -> Any:
        return await joined.predict_rows({"instances": instances})

    joined = _Batcher(call_with_instances, policy, series, flights)
    return plan.with_main(plan.main.replaced_by(predict, rows=predict_rows))


def _caller(hook: Hook, label: str, workers: Workers) -> Callable[[Any], Awaitable[Any]]:
    """Return an async function that calls a hook with a payload alone."""
    function = hook.function

    async def call(payload: Any) -> Any:
        if hook.on_loop:
            result = await function(payload)
        else:
            result = await workers.call_hook(label, function, payload)
        if type(result) in PLAIN:
            return result
        while isawaitable(result):
            result = await result
        if isinstance(result, AsyncIterable | Iterator):
            await aclose(result)
            raise TypeError(f"predict of {label} is batched, and must not return a stream")
        return result

    return call


class _Batcher:
    """The batches of one model, in each event loop that serves it."""

    def __init__(
        self,
        hook: Callable[[Any], Awaitable[Any]],
        policy: Policy,
        series: BatchSeries,
        flights: Flights,
    ) -> None:
        self._hook = hook
        make = partial(Batches, self._call_alone, self._call, policy, series, flights)
        self._batches: PerLoop[Batches] = PerLoop(make)

    def predict(self, payload: Any) -> Awaitable[Any]:
        """Return the result for one request's payload, which may share a call with others."""
        return self._batches.get().submit(_work_of(payload))

    async def predict_rows(self, payload: Any) -> Any:
        """Like `predict`, but keep an exception in the place of each prediction that failed."""
        work = _work_of(payload)
        if isinstance(work, _Instances):
            work.keeps_errors = True
        return await self._batches.get().submit(work)

    async def _call_alone(self, work: "_Work") -> Any:
        result = await self._hook(work.payload)
        return work.checked(result, work.size)

    async def _call(self, parts: Sequence[Part]) -> Sequence[Any]:
        work: _Work = parts[0].work
        if len(parts) == 1:
            is_whole = parts[0].size == work.size
            result = await self._hook(work.payload if is_whole else work.join(parts))
            return [work.checked(result, parts[0].size)]
        return work.divide(await self._hook(work.join(parts)), parts)


class _Work(Protocol):
    """The payload of one request, as items that can be joined with others'."""

    @property
    def payload(self) -> Any: ...

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    def join(self, parts: Sequence[Part]) -> Any:
        """Join parts into one payload; the first part is of this work."""

    def checked(self, result: Any, size: int) -> Any:
        """Return a result for `size` items, or the exception that it has in an item's place.

        Raises InferenceError for another number of results, TypeError if they cannot be counted.
        """

    def divide(self, result: Any, parts: Sequence[Part]) -> Sequence[Any]:
        """Return the result, or the exception, of each part. Raises as `checked`."""

    def whole(self, results: Sequence[Any]) -> Any:
        """Join the results of all parts into one."""


def _work_of(payload: Any) -> _Work:
    work: _Work | None = None
    if type(payload) is dict:
        work = _Instances.of(payload)
    elif isinstance(payload, InferRequest):
        work = _Rows.of(payload)
    return _Alone(payload) if work is None else work


class _Alone:
    """A payload that cannot be joined."""

    __slots__ = ("payload",)
    size = 1
    key = None

    def __init__(self, payload: Any) -> None:
        self.payload = payload

    def join(self, parts: Sequence[Part]) -> Any:
        raise AssertionError("It goes alone.")

    def checked(self, result: Any, size: int) -> Any:
        return result

    def divide(self, result: Any, parts: Sequence[Part]) -> Sequence[Any]:
        raise AssertionError("It goes alone.")

    def whole(self, results: Sequence[Any]) -> Any:
        raise AssertionError("It is one item.")


# --- V1 -----------------------------------------------------------------------------------------

_INSTANCES: Final = ("v1",)
_WHO: Final = "A batched predict"
_SORTED: Final = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class _Instances:
    """V1's instances; payloads may share a call if all their other keys have equal values."""

    __slots__ = ("instances", "keeps_errors", "key", "payload", "size")

    def __init__(self, payload: dict[str, Any], instances: list[Any], key: Hashable) -> None:
        self.payload = payload
        self.keeps_errors = False  # an exception stays in the place of its prediction
        self.instances = instances
        self.size = len(instances)
        self.key = key

    @classmethod
    def of(cls, payload: dict[str, Any]) -> "_Instances | None":
        instances = payload.get("instances")
        if type(instances) is not list or not instances:
            return None
        if len(payload) == 1:
            return cls(payload, instances, _INSTANCES)
        others = {key: value for key, value in payload.items() if key != "instances"}
        try:
            return cls(payload, instances, (*_INSTANCES, orjson.dumps(others, None, _SORTED)))
        except TypeError:  # made by preprocess, and not comparable
            return None

    def join(self, parts: Sequence[Part]) -> dict[str, Any]:
        instances: list[Any] = []
        for work, start, stop in parts:
            instances += work.instances[start:stop]
        return {**self.payload, "instances": instances}

    def checked(self, result: Any, size: int) -> Any:
        predictions = predictions_of(result, size, _WHO)
        error = None if self.keeps_errors else first_error(predictions)
        return result if error is None else error

    def divide(self, result: Any, parts: Sequence[Part]) -> Sequence[Any]:
        predictions = predictions_of(result, sum(part.size for part in parts), _WHO)
        results, end = [], 0
        for part in parts:
            own = predictions[end : (end := end + part.size)]
            error = None if part.work.keeps_errors else first_error(own)
            results.append({**result, "predictions": own} if error is None else error)
        return results

    def whole(self, results: Sequence[Any]) -> Any:
        rows = (as_rows(result, result["predictions"], _WHO) for result in results)
        return {**results[0], "predictions": list(chain.from_iterable(rows))}


# --- V2 -----------------------------------------------------------------------------------------


class _Rows:
    """A V2 request whose inputs have as many rows; it may share a call if all else is equal."""

    __slots__ = ("key", "payload", "size")

    def __init__(self, payload: InferRequest, size: int, key: Hashable) -> None:
        self.payload = payload
        self.size = size
        self.key = key

    @classmethod
    def of(cls, payload: InferRequest) -> "_Rows | None":
        rows = {count_rows(tensor) for tensor in payload.inputs}
        size = rows.pop() if len(rows) == 1 else None
        if not size or size < 0:
            return None
        settings = [
            payload.model_version,
            payload.parameters,
            [(without_size(t.parameters), row_type(t)) for t in payload.inputs],
            [(output.name, output.parameters) for output in payload.request_outputs or ()],
        ]
        try:
            key = ("v2", orjson.dumps(settings, None, _SORTED))
        except TypeError:
            return None
        return cls(payload, size, key)

    def join(self, parts: Sequence[Part]) -> InferRequest:
        first = self.payload
        inputs: list[InferInput] = []
        for index in range(len(first.inputs)):
            tensors = [_take(p.work.payload.inputs[index], p, p.work.size) for p in parts]
            inputs.append(join_rows(tensors))
        return InferRequest(
            first.model_name,
            inputs,
            parameters=first.parameters,
            request_outputs=first.request_outputs,
            model_version=first.model_version,
        )

    def checked(self, result: Any, size: int) -> Any:
        if not isinstance(result, InferResponse):
            kind = type(result).__name__
            raise TypeError(f"A batched predict must return an InferResponse for V2, not {kind}")
        for output in result.outputs:
            if count_rows(output) != size:
                shape = list(output.shape)
                raise InferenceError(
                    f"predict returned output {output.name!r} of shape {shape} for {size} rows"
                )
        return result

    def divide(self, result: Any, parts: Sequence[Part]) -> Sequence[Any]:
        sizes = [part.size for part in parts]
        self.checked(result, sum(sizes))
        columns = [divide_rows(output, sizes) for output in result.outputs]
        return [
            _response(result, part.work.payload.id, [column[index] for column in columns])
            for index, part in enumerate(parts)
        ]

    def whole(self, results: Sequence[Any]) -> Any:
        columns = [list(column) for column in zip(*(r.outputs for r in results), strict=True)]
        if any(len(set(map(row_type, column))) > 1 for column in columns):
            raise InferenceError("predict returned outputs that differ from batch to batch")
        return _response(results[0], self.payload.id, [join_rows(column) for column in columns])


def _take(tensor: InferInput, part: Part, size: int) -> InferInput:
    if part.start == 0 and part.stop == size:
        return tensor
    return divide_rows(tensor, [part.start, part.size, size - part.stop])[1]


def _response(
    like: InferResponse, request_id: str | None, outputs: list[InferOutput]
) -> InferResponse:
    return InferResponse(
        request_id,
        like.model_name,
        outputs,
        like.model_version,
        from_grpc=bool(like.from_grpc),
        parameters=like.parameters,
        use_binary_outputs=like.use_binary_outputs,
        requested_outputs=like.requested_outputs,
    )
