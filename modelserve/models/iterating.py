"""Which hooks take an iterator of instances, and what such a hook is given.

The annotation of the payload's parameter decides, in the hook that runs first or in the verb's own:
`AsyncIterator` or `AsyncIterable`; for a sync hook `Iterator`, for a sync generator also
`Iterable`. It may be text, and may use names that only a type checker knows.
"""

import re
from collections import abc
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final, get_origin

from modelserve.concurrency.feeding import Feed
from modelserve.concurrency.flight import Flight
from modelserve.errors import InvalidInput
from modelserve.models.annotations import bare
from modelserve.models.checks import instances
from modelserve.models.declared import Declared, Form
from modelserve.models.instances import Instances, Listed, SyncInstances
from modelserve.models.signatures import UNKNOWN, payload_annotation, payload_type
from modelserve.tensors import InferRequest

__all__ = ["Iterates", "arriving", "as_iterator", "iterates"]

_NAMED: Final = re.compile(r"(?:\w+\.)*(AsyncIterator|AsyncIterable|Iterator|Iterable)(?:\[|$)")


class Iterates(Enum):
    """How a hook takes its instances."""

    ASYNC = "an async iterator"
    SYNC = "an iterator, in a thread"


def iterates(
    function: Callable[..., Any], label: str, *, on_loop: bool, is_generator: bool
) -> Iterates | None:
    """Return how a hook takes its instances; None for one that takes a whole payload.

    Raises TypeError, in one sentence, for an iterator that it cannot read.
    """
    name = _iterator_named(function)
    if name.startswith("Async"):
        if is_generator and not on_loop:
            raise TypeError(f"{label} is a sync generator: it needs an Iterator, not an {name}")
        return Iterates.ASYNC
    if name == "Iterator" and on_loop:
        raise TypeError(f"{label} is async and takes an Iterator: it needs an AsyncIterator")
    if name == "Iterator" or (name == "Iterable" and is_generator and not on_loop):
        return Iterates.SYNC
    return None


@contextmanager
def arriving(
    instances: Instances, how: Iterates, flight: Flight
) -> Iterator[Instances | SyncInstances]:
    """Give what a hook iterates of instances that arrive while it runs."""
    if how is not Iterates.SYNC:
        yield instances
        return
    payload = SyncInstances(instances)
    stop_serving = flight.start_companion(payload.serve)
    try:
        yield payload
    finally:
        stop_serving()


def as_iterator(payload: Any, how: Iterates, declared: Declared | None) -> Any:
    """Return the instances of a payload as a hook iterates over them. Raises InvalidInput for none.

    The instances of a document are checked all at once; those of a streamed body one by one.
    """
    convert = None
    if declared is not None and declared.form is Form.ITERATOR:
        convert = declared.convert_instance
    if isinstance(payload, Instances | Feed):
        payload.convert = convert
        return payload
    if isinstance(payload, SyncInstances):
        payload.instances.convert = convert
        return payload
    if isinstance(payload, AsyncIterable | Iterator):  # a call from another model
        return payload
    if isinstance(payload, InferRequest):
        raise InvalidInput("This model takes V1's instances one by one, and no V2 request")
    values = instances(payload)
    if convert is not None:
        values = [convert(value, index) for index, value in enumerate(values)]
    return iter(values) if how is Iterates.SYNC else Listed(values)


def _iterator_named(function: Any) -> str:
    """Return the name of the iterator in the payload's annotation; empty for none."""
    _, annotation = payload_type(function)
    if annotation is UNKNOWN:
        annotation = payload_annotation(function)
    text = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(text, str):
        found = _NAMED.match(text)
        return "" if found is None else found[1]
    annotation = bare(annotation)
    kind = get_origin(annotation) or annotation
    for known in (abc.AsyncIterator, abc.AsyncIterable, abc.Iterator, abc.Iterable):
        if kind is known:
            return str(known.__name__)
    return ""
