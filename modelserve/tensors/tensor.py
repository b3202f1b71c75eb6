"""V2 tensors as models see them, with KServe's constructors and methods. Pure.

A tensor keeps its original form (a flat list from JSON, a view into the body from binary data, an
array from a model) until another one is requested; `data` converts between the forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from modelserve.errors import InferenceError, InvalidInput, InvalidOutput, NotText, ServingError
from modelserve.tensors.data import (
    Buffer,
    check_array,
    find_datatype,
    pack_array,
    plain_shape,
    to_array,
    to_bytes,
    to_json,
    to_json_as_given,
    to_text,
    to_values,
    unpack,
)
from modelserve.tensors.elements import (
    Misfit,
    NotJSON,
    WrongArray,
    find_missing,
    is_array,
    is_regular,
    list_elements,
    short,
)
from modelserve.tensors.parameters import plain_parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SIZE", "InferInput", "InferOutput", "RequestedOutput", "Role", "Tensor", "without_size"]

SIZE: Final = "binary_data_size"


@dataclass(frozen=True, slots=True)
class Role:
    """The differences between inputs and outputs.

    `key` is their key in documents, `noun` their name in errors, `error` the exception for a bad
    one (a bad input is the client's fault, a bad output the model's), and `to_json` writes their
    data.
    """

    key: str
    noun: str
    error: type[ServingError]
    to_json: Callable[..., list[Any]]

    def error_of(self, name: str, misfit: Misfit) -> ServingError:
        """Return the error to raise for a misfit of the tensor of this name."""
        if isinstance(misfit, WrongArray):
            return InferenceError(f"{self.noun} {name!r} {misfit}.")
        # Data that JSON cannot carry is the fault of the client that asked for JSON.
        error = InvalidInput if isinstance(misfit, NotJSON) else self.error
        return error(f"{self.noun} {short(name)} {misfit}.")


class Tensor:
    """The base of InferInput and InferOutput, which differ in their role.

    `documents` reads private attributes too; nothing outside of this package does.
    """

    _role: ClassVar[Role]

    def __init__(
        self,
        name: str,
        shape: list[int],
        datatype: str,
        data: Any = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.datatype = datatype.upper()
        self.parameters = parameters and plain_parameters(parameters)
        self._data = data
        self._raw_data: Buffer | None = None
        self._is_checked = False  # the data is a list whose every element has been checked

    @property
    def data(self) -> Any:
        """The data as a list (flat, row-major) or as the numpy array that was put in.

        Reading it turns binary data into a list, which is the data from then on, so that changes to
        it count. FP16 becomes floats; BYTES become `str`, or None for a null of JSON. Raises
        NotText if they are not UTF-8 (`as_numpy()` has the bytes).
        """
        self._is_checked = False
        if self._raw_data is not None:
            try:
                self._data = unpack(self._raw_data, find_datatype(self.datatype))
            except NotJSON as exc:
                raise NotText(
                    f"{self._role.noun} {short(self.name)} {exc}. Ask `as_numpy()`, not `data`."
                ) from None
            except Misfit as exc:
                raise self._role.error_of(self.name, exc) from None
            self._raw_data = None
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data, self._raw_data, self._is_checked = data, None, False

    @property
    def is_binary(self) -> bool:
        """Whether the data is bytes now, which reading `data` would turn into a list."""
        return self._raw_data is not None

    def as_numpy(self) -> NDArray[Any]:
        """Return the data as an array of the tensor's shape.

        BYTES are objects: `bytes` if they came in binary; `str`, or None for null, if they came as
        JSON. Binary data is viewed without a copy: the array is read-only if the body is, and may
        be unaligned. BF16 is `ml_dtypes.bfloat16`. Raises InvalidInput (of an output,
        InferenceError) if data, shape and datatype disagree, ImportError without numpy.
        """
        try:
            datatype = find_datatype(self.datatype)
            return to_array(self._form(), self.shape, datatype, is_checked=self._is_checked)
        except Misfit as exc:
            raise self._role.error_of(self.name, exc) from None

    def as_string(self) -> list[Any]:
        """Return the elements of BYTES as text, flat, None for a null of JSON.

        Raises InvalidInput for other datatypes and for bytes that are not UTF-8.
        """
        if self.datatype != "BYTES":
            words = f"{self._role.noun} {short(self.name)} is not BYTES and has no strings."
            raise InvalidInput(words)
        try:
            return to_text(self._form())
        except Misfit as exc:
            raise self._role.error_of(self.name, exc) from None

    def set_data_from_numpy(self, array: NDArray[Any], binary_data: bool = True) -> None:
        """Copy the data from an array of exactly this tensor's shape and datatype.

        Raises InferenceError if they differ. BYTES takes arrays of bytes, str, datetimes and
        objects. With `binary_data` the tensor is bytes from then on, else a list; it is also a list
        if elements of BOOL or BYTES are missing, which binary data cannot hold.
        """
        if not is_array(array):
            raise InferenceError(f"Expected a numpy array for {self.name!r}, not {type(array)}.")
        values: list[Any] | None = None
        try:
            check_array(array, self.shape, self.datatype)
            datatype = find_datatype(self.datatype)
            elements = [] if datatype.size and is_regular(array) else list_elements(array)
            if find_missing(elements) is not None:
                binary_data, values = False, to_values(elements, datatype)
            else:
                raw = pack_array(array, datatype)
                values = None if binary_data else unpack(raw, datatype)
        except Misfit as exc:
            raise self._role.error_of(self.name, exc) from None
        others = without_size(self.parameters)
        if binary_data:
            self._data, self._raw_data, self._is_checked = None, raw, False
            self.parameters = {**others, SIZE: len(raw)}
            return
        self.data = values
        if self.parameters:
            self.parameters = others

    def to_dict(self) -> dict[str, Any]:
        """Return the tensor as a dict, the data as a list or an array."""
        return {
            "name": self.name,
            "shape": self.shape,
            "datatype": self.datatype,
            "data": self.data,
            "parameters": self.parameters,
        }

    def __eq__(self, other: object) -> bool:
        """Compare everything, the data element by element, whatever its form."""
        return (
            isinstance(other, type(self))
            and self.name == other.name
            and self.shape == other.shape
            and self.datatype == other.datatype
            and (self.parameters or None) == (other.parameters or None)
            and self._has_data_of(other)
        )

    def __repr__(self) -> str:
        data = self._data if self._raw_data is None else f"<{len(self._raw_data)} bytes>"
        return (
            f"{type(self).__name__}(name={self.name!r}, shape={self.shape}, "
            f"datatype={self.datatype!r}, data={data}, parameters={self.parameters})"
        )

    def _form(self) -> Any:
        form = self._data if self._raw_data is None else self._raw_data
        if form is None:
            raise Misfit("has no data")
        return form

    def _has_data_of(self, other: Tensor) -> bool:
        try:
            mine, theirs = self._form(), other._form()
            if isinstance(mine, list) and isinstance(theirs, list):
                return mine == theirs
            datatype, shape = find_datatype(self.datatype), plain_shape(self.shape)
            return to_bytes(mine, shape, datatype) == to_bytes(theirs, shape, datatype)
        except Misfit:
            return self._data is self._raw_data is other._data is other._raw_data is None


class InferInput(Tensor):
    """One input tensor. `shape` is row-major; `datatype` is upper-cased."""

    _role = Role("inputs", "Input", InvalidInput, to_json_as_given)


class InferOutput(Tensor):
    """One output tensor. `shape` is row-major; `datatype` is upper-cased."""

    _role = Role("outputs", "Output", InvalidOutput, to_json)


class RequestedOutput:
    """One output that a client requests; its parameter `binary_data` chooses the form."""

    def __init__(self, name: str, parameters: dict[str, Any] | None = None) -> None:
        self.name = name
        self.parameters = parameters and plain_parameters(parameters)

    @property
    def binary_data(self) -> bool | None:
        """Whether the client wants it as binary data; None if it did not say."""
        return (self.parameters or {}).get("binary_data")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RequestedOutput)
            and self.name == other.name
            and (self.parameters or None) == (other.parameters or None)
        )

    def __repr__(self) -> str:
        return f"RequestedOutput(name={self.name!r}, parameters={self.parameters})"


def without_size(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of a tensor's parameters without the size, which belongs to one form only."""
    return {key: value for key, value in parameters.items() if key != SIZE} if parameters else {}
