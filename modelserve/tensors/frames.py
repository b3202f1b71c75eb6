"""Convert a payload to the array or table that a model takes, and its result to a response.

These are KServe's helpers (`kserve.utils.utils`) for a V1 payload or a V2 request. numpy and pandas
are imported only where a value needs them.
"""

import math
import sys
from itertools import chain
from numbers import Integral, Real
from typing import Any

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors.data import name_datatype, need
from modelserve.tensors.elements import flatten, is_array
from modelserve.tensors.messages import InferRequest, InferResponse, generate_uuid
from modelserve.tensors.tensor import InferOutput
from modelserve.wire.values import is_missing

__all__ = ["get_predict_input", "get_predict_response"]


def get_predict_input(
    payload: dict[str, Any] | InferRequest, columns: list[str] | None = None
) -> Any:
    """Return a payload as the table, text or array that a model takes.

    Rows of objects and a request whose parameter `content_type` is "pd" become a DataFrame.
    Otherwise text becomes a list of str and anything else a numpy array; of a V2 request only the
    first input counts. Raises InvalidInput for a payload that is none of these.
    """
    if not isinstance(payload, InferRequest):
        return _read_rows(payload, columns)
    if (payload.parameters or {}).get("content_type") == "pd":
        return payload.as_dataframe()
    if not payload.inputs:
        raise InvalidInput("The request has no inputs.")
    first = payload.inputs[0]
    return first.as_string() if first.datatype == "BYTES" else first.as_numpy()


def _read_rows(payload: Any, columns: list[str] | None) -> Any:
    key = "inputs" if isinstance(payload, dict) and "inputs" in payload else "instances"
    rows = payload.get(key) if isinstance(payload, dict) else None
    if not isinstance(rows, list):
        raise InvalidInput(f'Expected "{key}" to be a list')
    if rows and isinstance(rows[0], str):
        return rows
    try:
        table = _make_frame(rows, columns) if _are_objects(rows) else need("numpy").array(rows)
    except (ValueError, TypeError):
        raise InvalidInput(f'Expected "{key}" to be rows of one kind and one length') from None
    # numpy turns numbers into text if there is text beside them.
    if is_array(table) and table.dtype.kind in "US" and not _are_text(rows):
        raise InvalidInput(f'Expected "{key}" not to mix numeric and string values')
    return table


def _are_text(rows: list[Any]) -> bool:
    return all(isinstance(value, str | bytes) for value in flatten(rows))


def _are_objects(rows: list[Any]) -> bool:
    first = rows[0] if rows else None
    return isinstance(first[0] if isinstance(first, list) and first else first, dict)


def _make_frame(rows: list[Any], columns: list[str] | None) -> Any:
    """Return rows as one DataFrame; a row is an object of values or lists, or a list of those."""
    records = list(chain.from_iterable(row if isinstance(row, list) else [row] for row in rows))
    if set(map(type, records)) != {dict}:
        raise ValueError("values beside objects")
    pandas = need("pandas")
    if not any(map(_is_columnar, records)):
        return pandas.DataFrame(records, columns=columns)
    tables = [record if _is_columnar(record) else [record] for record in records]
    frames = [pandas.DataFrame(table, columns=columns) for table in tables]
    return pandas.concat(frames, ignore_index=True)


def _is_columnar(record: dict[str, Any]) -> bool:
    return any(isinstance(value, list) for value in record.values())


def get_predict_response(
    payload: dict[str, Any] | InferRequest, result: Any, model_name: str
) -> dict[str, Any] | InferResponse:
    """Return a model's result (an array, list or DataFrame) in the protocol of its payload.

    V1: `{"predictions": rows}`. V2: one output for each column, or one called "output-0", in the
    form that the request wants. Raises InferenceError for a dtype that V2 does not have.
    """
    if not isinstance(payload, InferRequest):
        return {"predictions": _rows(result)}
    return InferResponse(
        payload.id or generate_uuid(),
        model_name,
        [
            _output(name, array, binary=payload.use_binary_outputs)
            for name, array in _arrays(result).items()
        ],
        use_binary_outputs=payload.use_binary_outputs,
        requested_outputs=payload.request_outputs,
    )


def _rows(result: Any) -> Any:
    if _is_frame(result):
        return result.to_dict("records")
    return result.tolist() if is_array(result) else result


def _arrays(result: Any) -> dict[str, Any]:
    if _is_frame(result):
        return {str(column): _array_of_column(result[column]) for column in result.columns}
    if is_array(result):
        return {"output-0": result}
    array = need("numpy").array(result)
    if array.dtype.kind in "SU":  # numpy turns all values beside text into text
        array = need("numpy").array(result, dtype=object)
    return {"output-0": array}


def _array_of_column(column: Any) -> Any:
    """Return a column as an array; of objects if its dtype marks missing values."""
    numpy_dtype = getattr(column.dtype, "numpy_dtype", None)  # pandas' nullable dtypes have it
    if numpy_dtype is None or numpy_dtype.kind not in "biuf":
        return column.to_numpy()
    return column.to_numpy(dtype=object if column.isna().any() else numpy_dtype)


def _settle_objects(name: str, array: Any) -> tuple[str, Any]:
    """Find the datatype of an array of objects by its elements; return it and the array for it."""
    elements = array.reshape(-1).tolist()
    present = [value for value in elements if not is_missing(value)]
    types = set(map(type, present))
    is_boolean = {issubclass(kind, bool) or kind.__name__ in ("bool", "bool_") for kind in types}
    if is_boolean == {True}:
        return "BOOL", array
    if not types or any(is_boolean) or not all(issubclass(kind, Real) for kind in types):
        return "BYTES", array
    if len(present) == len(elements) and all(issubclass(kind, Integral) for kind in types):
        return "INT64", array
    if any(float(value) != value for value in present):
        raise InferenceError(f"Output {name!r} has integers that FP64 cannot hold.")
    floats = [math.nan if is_missing(value) else float(value) for value in elements]
    return "FP64", need("numpy").array(floats).reshape(array.shape)


def _output(name: str, array: Any, *, binary: bool) -> InferOutput:
    datatype = name_datatype(array.dtype)
    if array.dtype.kind == "O":
        datatype, array = _settle_objects(name, array)
    if datatype is None:
        raise InferenceError(
            f"Output {name!r} has the dtype {array.dtype}, which V2 does not have."
        )
    tensor = InferOutput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary)
    return tensor


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)
