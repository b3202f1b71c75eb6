"""Parameters of requests, responses and tensors, whose values may be messages of gRPC. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["plain_parameters"]

_CHOICE: Final = "parameter_choice"
_PLAIN: Final = frozenset((bool, int, str, float))


def plain_parameters(parameters: Any) -> Any:
    """Return parameters with what each InferParameter in them holds; one that is empty is left out.

    The messages may be of any class. Where there are none, the parameters are returned themselves.
    """
    for value in parameters.values():
        if type(value) not in _PLAIN and _is_message(value):
            return dict(_plain_items(parameters))
    return parameters


def _is_message(value: Any) -> bool:
    return hasattr(value, "WhichOneof")


def _plain_items(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in parameters.items():
        if not _is_message(value):
            yield key, value
        elif choice := value.WhichOneof(_CHOICE):
            yield key, getattr(value, choice)
