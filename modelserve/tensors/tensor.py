"""One V2 tensor as models see it and as an entry of a JSON document. Pure.

`InferInput` and `InferOutput` have KServe's constructors and methods. A tensor stays in the form
it came in (a flat list from JSON, a view into the body from binary data, an array from a model)
until someone asks for another; `tensor_data` knows the forms.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from modelserve.errors import InferenceError, InvalidInput, InvalidOutput, ServingError
from modelserve.tensors.data import (
    Buffer,
    Misfit,
    NotJSON,
    array_bytes,
    as_text,
    check_bytes,
    check_count,
    check_json,
    find_datatype,
    flatten,
    is_array,
    name_datatype,
    pack,
    refuse_json,
    short,
    split_elements,
    to_array,
    unpack,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["InferInput", "InferOutput", "RequestedOutput"]

LENGTH_HEADER: Final = "inference-header-content-length"

_SIZE: Final = "binary_data_size"
_SHARED: Final = "shared_memory_region"
_SCALARS: Final = frozenset({str, int, float, bool})
_NOT_SHARED: Final = "is in shared memory (Triton's extension), which there is not here"
_BUFFERS: Final = bytes | bytearray | memoryview


class _Tensor:
    """What inputs and outputs share: all but the word, and whose fault it is."""

    _word: ClassVar[str]
    _fault: ClassVar[type[ServingError]]

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
        self.parameters = parameters
        self._data = data
        self._raw_data: Buffer | None = None

    @property
    def data(self) -> Any:
        """The data as a list (flat, row-major) or as the numpy array that was put in.

        Asking turns binary data into a list, which from then on is the data, so that changes to
        it count. FP16 becomes floats; BYTES become `str`, and InvalidInput is raised where they
        are not UTF-8 (`as_numpy()` has the bytes).
        """
        raw = self._raw_data
        if raw is not None:
            with self._blamed():
                self._data = unpack(raw, find_datatype(self.datatype))
            self._raw_data = None
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data, self._raw_data = data, None

    def as_numpy(self) -> NDArray[Any]:
        """Return the data as an array of the tensor's shape.

        BYTES are objects of type `str` where they came as JSON, `bytes` where they came in binary.
        Binary data is viewed where it lies, without a copy: the array is read-only if the body
        is, and may be unaligned. BF16 is `ml_dtypes.bfloat16`. Raises InvalidInput (of an output,
        InferenceError) where data, shape and datatype disagree, ImportError without numpy.
        """
        with self._blamed():
            return to_array(self._form(), self.shape, find_datatype(self.datatype))

    def as_string(self) -> list[str]:
        """Return the elements of BYTES as text, flat; raise InvalidInput for other datatypes."""
        if self.datatype != "BYTES":
            raise InvalidInput(f"{self._word} {short(self.name)} is not BYTES and has no strings.")
        with self._blamed():
            form = self._form()
            return as_text(split_elements(form) if isinstance(form, _BUFFERS) else flatten(form))

    def set_data_from_numpy(self, array: NDArray[Any], binary_data: bool = True) -> None:
        """Copy the data from an array of exactly this tensor's shape and datatype.

        Raises InferenceError where they differ. BYTES takes arrays of bytes, str, datetimes and
        objects. With `binary_data` the tensor is bytes from then on, else a list.
        """
        raw = self._take(array)
        others = {key: value for key, value in (self.parameters or {}).items() if key != _SIZE}
        if binary_data:
            self._data, self._raw_data = None, raw
            self.parameters = {**others, _SIZE: len(raw)}
            return
        with self._blamed():
            self.data = unpack(raw, find_datatype(self.datatype))
        self.parameters = others if self.parameters else self.parameters

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
        if not isinstance(other, type(self)):
            return False
        return same(self, other, "name shape datatype parameters") and self._same_data(other)

    def __repr__(self) -> str:
        data = self._data if self._raw_data is None else f"<{len(self._raw_data)} bytes>"
        return (
            f"{type(self).__name__}(name={self.name!r}, shape={self.shape}, "
            f"datatype={self.datatype!r}, data={data}, parameters={self.parameters})"
        )

    @property
    def is_binary(self) -> bool:
        """Whether the data is bytes now; `data` would turn it into a list."""
        return self._raw_data is not None

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Misfit as exc:
            fault = InvalidInput if isinstance(exc, NotJSON) else self._fault
            raise fault(f"{self._word} {short(self.name)} {exc}.") from None

    def _form(self) -> Any:
        form = self._data if self._raw_data is None else self._raw_data
        if form is None:
            raise Misfit("has no data")
        return form

    def _take(self, array: Any) -> bytes:
        if not is_array(array):
            raise InferenceError(f"Expected a numpy array for {self.name!r}, not {type(array)}.")
        if name_datatype(array.dtype) != self.datatype:
            raise InferenceError(
                f"{self._word} {self.name!r} is {self.datatype}, and the array is {array.dtype}."
            )
        if list(array.shape) != list(self.shape):
            raise InferenceError(
                f"{self._word} {self.name!r} has the shape {list(self.shape)}, "
                f"and the array {list(array.shape)}."
            )
        return array_bytes(array, find_datatype(self.datatype))

    def _dimensions(self) -> list[int]:
        try:
            return [operator.index(size) for size in self.shape]
        except TypeError:
            raise Misfit(f"has a shape that is not a list of whole numbers: {self.shape}") from None

    def _bytes(self) -> Buffer:
        """Return the data as checked little-endian bytes; what came in binary is not copied."""
        datatype, form = find_datatype(self.datatype), self._form()
        if is_array(form):
            return self._take(form)
        if not isinstance(form, _BUFFERS):
            values = flatten(form)
            check_count(len(values), self._dimensions(), datatype)
            return pack(values, datatype)
        check_bytes(memoryview(form), self._dimensions(), datatype)
        return form

    def _json(self) -> list[Any]:
        """Return the data as a checked flat list, each number as the datatype holds it."""
        datatype, form = find_datatype(self.datatype), self._form()
        refuse_json(datatype)
        if datatype.size or not isinstance(form, list | tuple):
            return unpack(self._bytes(), datatype)
        text = as_text(flatten(form))
        check_count(len(text), self._dimensions(), datatype)
        return text

    def _accept(self, data: Any) -> None:
        """Take the data of a JSON document."""
        self._data = data

    def _same_data(self, other: _Tensor) -> bool:
        try:
            mine, theirs = self._form(), other._form()
            if isinstance(mine, list) and isinstance(theirs, list):
                return mine == theirs
            return self._bytes() == other._bytes()
        except (Misfit, InferenceError):
            return self._data is other._data is self._raw_data is other._raw_data


class InferInput(_Tensor):
    """One input tensor. `shape` is row-major; `datatype` is upper-cased."""

    _word = "Input"
    _fault = InvalidInput

    def _json(self) -> list[Any]:
        """Return the data as a checked flat list; numbers of a list go as they are (KServe's)."""
        form = self._form()
        if isinstance(form, list | tuple):
            datatype, values = find_datatype(self.datatype), flatten(form)
            if datatype.size and datatype.json.issuperset(map(type, values)):
                refuse_json(datatype)
                check_count(len(values), self._dimensions(), datatype)
                pack(values, datatype)
                return values
        return super()._json()

    def _accept(self, data: Any) -> None:
        datatype = find_datatype(self.datatype)
        refuse_json(datatype)
        values = flatten(data)
        check_count(len(values), self.shape, datatype)
        check_json(values, datatype)
        self._data = values


class InferOutput(_Tensor):
    """One output tensor. `shape` is row-major; `datatype` is upper-cased."""

    _word = "Output"
    _fault = InvalidOutput


_AnyTensor = TypeVar("_AnyTensor", bound=_Tensor)


class RequestedOutput:
    """One output that a client asks for; its parameter `binary_data` says in which form."""

    def __init__(self, name: str, parameters: dict[str, Any] | None = None) -> None:
        self.name = name
        self.parameters = parameters

    @property
    def binary_data(self) -> bool | None:
        """Whether the client wants it as binary data; None where it did not say."""
        return (self.parameters or {}).get("binary_data")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestedOutput) and same(self, other, "name parameters")

    def __repr__(self) -> str:
        return f"RequestedOutput(name={self.name!r}, parameters={self.parameters})"


# Writing: a tensor to its entry.


def json_entry(tensor: _Tensor) -> dict[str, Any]:
    """Return a tensor's entry with its data as a flat list."""
    with tensor._blamed():
        entry = _head_entry(tensor, {})
        entry["data"] = tensor._json()
        return entry


def binary_entry(tensor: _Tensor, raws: list[Buffer]) -> dict[str, Any]:
    """Return a tensor's entry with its size, and append its bytes to `raws`."""
    with tensor._blamed():
        raw = tensor._bytes()
        raws.append(raw)
        return _head_entry(tensor, {_SIZE: len(raw)})


def _head_entry(tensor: _Tensor, size: dict[str, int]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": tensor.name,
        "shape": tensor._dimensions(),
        "datatype": tensor.datatype,
    }
    others = {key: value for key, value in (tensor.parameters or {}).items() if key != _SIZE}
    if others or size:
        entry["parameters"] = {**others, **size}
    return entry


def requested_entry(output: RequestedOutput) -> dict[str, Any]:
    """Return the entry of an output that is asked for."""
    entry: dict[str, Any] = {"name": output.name}
    if output.parameters:
        entry["parameters"] = output.parameters
    return entry


# Reading: entries to tensors. Of an input every value is checked; of an output only the form.


def _read_name(entry: Any, where: str, *, fault: type[ServingError]) -> str:
    expect_object(entry, where, fault=fault)
    name = entry.get("name")
    if not isinstance(name, str):
        raise fault(f'Expected {where} to have a "name" that is a string')
    return name


def read_parameters(
    entry: dict[str, Any], owner: str, *, fault: type[ServingError]
) -> dict[str, Any] | None:
    """Return a copy of an entry's parameters, whose values are scalars; None where it has none."""
    value = entry.get("parameters")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fault(f'{owner} has "parameters" that are not an object: {short(value)}.')
    for key, item in value.items():
        if type(item) not in _SCALARS:
            raise fault(
                f"{owner} has the parameter {short(key)} that is not a string, "
                f"number or boolean: {short(item)}."
            )
    return dict(value)


def expect_flag(parameters: dict[str, Any] | None, key: str, owner: str) -> None:
    """Raise InvalidInput for a parameter that is there and is not true or false."""
    if not isinstance((parameters or {}).get(key, False), bool):
        raise InvalidInput(f'{owner} has the parameter "{key}" that is not true or false.')


def _expect_distinct(names: list[str], noun: str, *, fault: type[ServingError]) -> None:
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise fault(f"{noun} {short(twice)} is there more than once.")


def read_requested(document: dict[str, Any]) -> list[RequestedOutput] | None:
    """Return the outputs that a request names; None, which means all, where it names none."""
    if document.get("outputs") is None:
        return None
    outputs = [
        _read_output(entry, f"outputs[{index}]")
        for index, entry in enumerate(_read_list(document, "outputs", fault=InvalidInput))
    ]
    _expect_distinct([output.name for output in outputs], "Output", fault=InvalidInput)
    return outputs or None


def _read_output(entry: Any, where: str) -> RequestedOutput:
    name = _read_name(entry, where, fault=InvalidInput)
    owner = f"Output {short(name)}"
    parameters = read_parameters(entry, owner, fault=InvalidInput) or {}
    expect_flag(parameters, "binary_data", owner)
    if _SHARED in parameters:
        raise InvalidInput(f"{owner} {_NOT_SHARED}.")
    return RequestedOutput(name, parameters)


def read_tensors(
    kind: type[_AnyTensor], document: dict[str, Any], tail: memoryview | None
) -> list[_AnyTensor]:
    """Return the tensors of a document; `tail` is the binary data that follows it, if any can."""
    key, tensors = f"{kind._word.lower()}s", []
    for index, entry in enumerate(_read_list(document, key, fault=kind._fault)):
        tensor = _read_head(kind, entry, f"{key}[{index}]")
        with tensor._blamed():
            tail = _read_data(tensor, entry.get("data"), tail)
        tensors.append(tensor)
    if tail:
        raise kind._fault(f"{len(tail)} bytes are left over after {_last_binary(kind, tensors)}.")
    _expect_distinct([tensor.name for tensor in tensors], kind._word, fault=kind._fault)
    return tensors


def _last_binary(kind: type[_AnyTensor], tensors: list[_AnyTensor]) -> str:
    names = [short(tensor.name) for tensor in tensors if tensor.is_binary]
    word = kind._word.lower()
    return (
        f"the last binary {word} {names[-1]}" if names else f"the JSON, where no {word} is binary"
    )


def _read_head(kind: type[_AnyTensor], entry: Any, where: str) -> _AnyTensor:
    name = _read_name(entry, where, fault=kind._fault)
    owner = f"{kind._word} {short(name)}"
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if not isinstance(shape, list | tuple):
        raise kind._fault(f'{owner} has no "shape" that is a list.')
    if not isinstance(datatype, str):
        raise kind._fault(f'{owner} has no "datatype" that is a string.')
    parameters = read_parameters(entry, owner, fault=kind._fault) or {}
    return kind(name, list(shape), datatype, parameters=parameters)


def _read_data(tensor: _Tensor, data: Any, tail: memoryview | None) -> memoryview | None:
    """Give a tensor its data, and return what of `tail` is left for the next."""
    if _SHARED in (tensor.parameters or {}):
        raise Misfit(_NOT_SHARED)
    size = (tensor.parameters or {}).pop(_SIZE, None)
    if data is None and size is None:
        raise Misfit('has no "data"')
    if size is None:
        tensor._accept(data)
        return tail
    if data is not None:
        raise Misfit(f'has both "data" and "{_SIZE}"')
    if tail is None:
        raise Misfit(f"is binary data, and the header {LENGTH_HEADER} is missing")
    raw = _cut(tail, size)
    check_bytes(raw, tensor.shape, find_datatype(tensor.datatype))
    tensor._raw_data = raw
    return tail[size:]


def _cut(tail: memoryview, size: Any) -> memoryview:
    if type(size) is not int or size < 0:
        raise Misfit(f'has a "{_SIZE}" that is not a number of bytes: {short(size)}')
    if size > len(tail):
        raise Misfit(f"has {size} bytes of binary data, and {len(tail)} are left in the body")
    return tail[:size]


def expect_object(value: Any, noun: str, *, fault: type[ServingError]) -> None:
    """Raise `fault` for a value that is not a JSON object."""
    if not isinstance(value, dict):
        raise fault(f"Expected {noun} to be a JSON object")


def _read_list(document: dict[str, Any], key: str, *, fault: type[ServingError]) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise fault(f'Expected "{key}" to be a list')
    return value


def attach(tensors: Iterable[_Tensor], raws: Sequence[Buffer] | None) -> None:
    """Give tensors their binary data, in order."""
    for tensor, raw in zip(tensors, raws or (), strict=False):
        tensor._data, tensor._raw_data = None, raw


def same(one: object, other: object, names: str) -> bool:
    """Say whether two objects agree in attributes, whose names are separated by blanks.

    No parameters are the same as none at all: KServe reads them as the one or the other.
    """
    return all(_told(one, name) == _told(other, name) for name in names.split())


def _told(thing: object, name: str) -> Any:
    value = getattr(thing, name)
    return None if name == "parameters" and not value else value
