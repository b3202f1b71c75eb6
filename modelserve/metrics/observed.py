"""The series of a model whose application has observers, and of its batches."""

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, time

from modelserve.metrics.batches import BatchSeries, Joined
from modelserve.metrics.ending import Ending, result_of
from modelserve.metrics.series import ModelSeries
from modelserve.metrics.store import Store
from modelserve.observers import Observers, RequestRecord, Scope
from modelserve.wire.generation import Generated

__all__ = ["ObservedSeries", "record_of"]


class ObservedSeries(ModelSeries):
    """Records a request, and then calls the observers with it."""

    __slots__ = ("_observers",)

    def __init__(self, store: Store, name: str, *, observers: Observers) -> None:
        super().__init__(store, name)
        self._observers = observers

    def record(
        self, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes = b""
    ) -> None:
        super().record(protocol, verb, ending, seconds, request_id)
        values = (self.name, protocol, verb, ending, seconds, request_id)
        self._observers.notify(partial(record_of, *values))

    def batches(self) -> BatchSeries:
        if not self._observers.follow_steps:
            return super().batches()
        return _FollowedBatches(self._store, self.name, observers=self._observers)


class _FollowedBatches(BatchSeries):
    """Records a batch; a batch for several requests is also a step."""

    __slots__ = ("_observers",)

    def __init__(self, store: Store, model: str, *, observers: Observers) -> None:
        super().__init__(store, model)
        self._observers = observers

    def start(
        self, size: int, waits: Sequence[float], callers: Sequence[Joined] = ()
    ) -> Callable[[str], None]:
        end = super().start(size, waits, callers)
        if not callers:
            return end
        contexts = [caller.context for caller in callers]
        scope = self._observers.start_step(self._model, "batch", contexts)
        scope.enter()
        return partial(_end_batch, end, scope, callers)


def _end_batch(
    end: Callable[[str], None], scope: Scope, callers: Sequence[Joined], outcome: str
) -> None:
    end(outcome)
    scope.leave()
    errors = (caller.error for caller in callers if caller.error is not None)
    scope.end(next(errors, None))


def record_of(
    model: str, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes
) -> RequestRecord:
    """Return the record of a request that has ended or is about to end."""
    status, outcome = result_of(ending)
    stream = ending.stream
    # Unset for most requests, since applications without observers do not need them.
    waited: tuple[float, float] | None = getattr(ending, "waited", None)
    generated: Generated | None = getattr(ending, "generated", None)
    since_1970 = time() - monotonic()
    return RequestRecord(
        protocol=protocol,
        model=model,
        verb=verb,
        status=status,
        outcome=outcome,
        request_id=request_id.decode("latin-1"),
        started=time() - seconds,
        seconds=seconds,
        hooks=dict(ending.seconds),
        queued=None if waited is None else since_1970 + waited[0],
        queue_seconds=0.0 if waited is None else waited[1] - waited[0],
        items=0 if stream is None else stream.items,
        first_item_seconds=None if stream is None else stream.first_item,
        error=ending.error,
        generation=None if generated is None else generated.generation(),
    )
