"""The series of a model whose application has observers."""

from functools import partial
from time import monotonic, time

from modelserve.metrics.ending import Ending, result_of
from modelserve.metrics.series import ModelSeries
from modelserve.metrics.store import Store
from modelserve.observers import Observers, RequestRecord

__all__ = ["ObservedSeries"]


class ObservedSeries(ModelSeries):
    """Records a request, and then tells observers of it."""

    __slots__ = ("_observers",)

    def __init__(self, store: Store, name: str, *, observers: Observers) -> None:
        super().__init__(store, name)
        self._observers = observers

    def record(
        self, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes = b""
    ) -> None:
        super().record(protocol, verb, ending, seconds, request_id)
        values = (self.name, protocol, verb, ending, seconds, request_id)
        self._observers.notify(partial(_record, *values))


def _record(
    model: str, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes
) -> RequestRecord:
    status, outcome = result_of(ending)
    stream, waited, generated = ending.stream, ending.waited, ending.generated
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
