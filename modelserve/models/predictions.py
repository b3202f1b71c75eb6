"""The predictions of a result, where each belongs to one instance of the payload."""

from typing import Any, Final

from modelserve.errors import InferenceError
from modelserve.tensors.elements import is_array
from modelserve.wire.values import to_builtin

__all__ = ["Miscounted", "as_rows", "first_error", "predictions_of"]


_KEY: Final = "predictions"


class Miscounted(InferenceError):
    """A hook returned a number of predictions that differs from the number of its instances."""


def predictions_of(result: Any, size: int, who: str, *, key: str = _KEY) -> Any:
    """Return the `size` predictions of a result, as a sequence or an array.

    Args:
        who: The hook in the text of an error, such as `A batched predict`.
        key: Their key in a result that is a dict; it may be `predictions` in any.

    Raises Miscounted for another number of predictions, TypeError for anything else.
    """
    predictions = result.get(key, result.get(_KEY)) if isinstance(result, dict) else None
    if type(predictions) is not list:
        predictions = as_rows(result, predictions, who, key)
    if len(predictions) != size:
        hook = who.split()[-1]
        raise Miscounted(f"{hook} returned {len(predictions)} {key} for {size} instances")
    return predictions


def as_rows(result: Any, predictions: Any, who: str, key: str = _KEY) -> Any:
    """Return predictions as a list, a tuple or an array. Raises TypeError for anything else."""
    if isinstance(predictions, list | tuple) or is_array(predictions):
        return predictions
    try:
        rows = None if isinstance(predictions, dict | str) else to_builtin(predictions)
    except TypeError:
        rows = None
    if not isinstance(rows, list):
        one = f"{'an' if key.startswith('e') else 'a'} {key.removesuffix('s')}"
        raise TypeError(
            f'{who} must return {{"{key}": [...]}} with {one} for each '
            f"instance, not {type(result if predictions is None else predictions).__name__}"
        )
    return rows


def first_error(predictions: Any) -> BaseException | None:
    """Return the first of the predictions that is an exception, if there is one."""
    if is_array(predictions):
        return None
    if not any(issubclass(kind, BaseException) for kind in {*map(type, predictions)}):
        return None
    return next(each for each in predictions if isinstance(each, BaseException))
