"""What models return: values of other libraries, subclasses of what JSON has, unusual keys."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import types
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import msgspec
import numpy as np
import pandas as pd
import pydantic
import pydantic.v1
import pytest

from modelserve.wire.encoders import json_item, ndjson_item, sse_item
from modelserve.wire.json import to_json
from modelserve.wire.values import is_missing, to_plain

UTC = datetime.UTC


class Pair(NamedTuple):
    label: str
    score: float


class Score(float):
    pass


class Size(tuple[int, ...]):
    """torch.Size is such a class."""


class When(datetime.datetime):
    pass


class Day(datetime.date):
    pass


class Clock(datetime.time):
    pass


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Inner(pydantic.BaseModel):
    at: datetime.datetime


class Out(pydantic.BaseModel):
    label: str
    score: float
    secret: pydantic.SecretStr = pydantic.SecretStr("x")
    inner: Inner | None = None


class Old(pydantic.v1.BaseModel):
    label: str
    at: datetime.date


class Holder(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    tensor: Any


class Struct(msgspec.Struct, tag="point", rename="camel"):
    x_value: Any
    inner: Any = None


class Row(msgspec.Struct, array_like=True):
    x: Any
    y: Any


@dataclasses.dataclass
class Point:
    x: Any
    _hidden: int = 0


class Tensor:
    """A tensor of torch's."""

    shape = (2,)

    def tolist(self) -> list[float]:
        return [1.0, float("nan")]


class EagerTensor:
    """A tensor of TensorFlow's, which has no `tolist`."""

    shape = (2,)

    def numpy(self) -> Any:
        return np.array([1, 2])


class Polars:
    """A table of polars'."""

    columns: ClassVar[list[str]] = ["a"]

    def to_dicts(self) -> list[dict[str, int]]:
        return [{"a": 1}]


class Arrow:
    """A table of pyarrow's."""

    def to_pylist(self) -> list[dict[str, int]]:
        return [{"a": 1}]


class Lookup(collections.abc.Mapping[Any, Any]):
    def __init__(self, items: dict[Any, Any]) -> None:
        self.items_ = items

    def __getitem__(self, key: Any) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


DAY = "2024-01-02T00:00:00"
NANOSECOND = pd.Timestamp("2024-01-02") + pd.Timedelta(1, "ns")

VALUES: list[tuple[Any, Any]] = [
    (Struct(1), {"type": "point", "xValue": 1, "inner": None}),
    (
        [Struct(float("nan"), Row(1, np.float32(2)))],
        [{"type": "point", "xValue": None, "inner": [1, 2.0]}],
    ),
    (
        {"a": Struct(Row(1, 2), Inner(at=datetime.datetime(2024, 1, 2)))},
        {"a": {"type": "point", "xValue": [1, 2], "inner": {"at": DAY}}},
    ),
    (Point(Struct(np.array([1, 2]))), {"x": {"type": "point", "xValue": [1, 2], "inner": None}}),
    (decimal.Decimal("0.10"), "0.10"),
    (Point(decimal.Decimal(3)), {"x": "3"}),
    (pd.Timestamp("2024-01-02"), DAY),
    (NANOSECOND, DAY + ".000000001"),
    (pd.Timestamp("2024-01-02", tz="UTC"), DAY + "+00:00"),
    (pd.Timedelta(days=1, hours=2), "P1DT2H0M0S"),
    (pd.Period("2024-01"), "2024-01"),
    (pd.Series(pd.to_datetime(["2024-01-02", None])), [DAY, None]),
    (pd.Series([1, None], dtype="Int64"), [1, None]),
    (pd.Series([True, None], dtype="boolean"), [True, None]),
    (pd.Series(["a", None], dtype="string"), ["a", None]),
    (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
    (pd.Index([1, 2]), [1, 2]),
    (pd.NaT, None),
    (pd.NA, None),
    (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    (pd.DataFrame({"t": pd.to_datetime(["2024-01-02", None])}), [{"t": DAY}, {"t": None}]),
    (pd.DataFrame([[1, 2]]), [{"0": 1, "1": 2}]),
    (pd.DataFrame([[1, 2]], columns=np.array([3, 4])), [{"3": 1, "4": 2}]),
    (pd.DataFrame([[1.5]], columns=pd.to_datetime(["2024-01-02"])), [{DAY: 1.5}]),
    (np.datetime64("NaT", "s"), None),
    (np.array(["NaT", "2024-01-02"], "M8[us]"), [None, DAY]),
    (np.array(["2024-01-02", "NaT", "2024-01-03"], "M8[ns]")[::2], [DAY, "2024-01-03T00:00:00"]),
    (np.timedelta64(1, "s"), "P0DT0H0M1S"),
    (np.array([90, "NaT"], "m8[m]"), ["P0DT1H30M0S", None]),
    (np.longdouble(1.5), 1.5),
    (np.float16(1.5), 1.5),
    (np.array([1.5, np.nan], "f2"), [1.5, None]),
    (np.array([1.5], ml_dtypes.bfloat16), [1.5]),
    (np.array([1, "a", None, pd.NA, pd.NaT], object), [1, "a", None, None, None]),
    (np.ma.array([1, 2], mask=[False, True]), [1, None]),
    (np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]), [[1, 2.5]]),
    (Pair("cat", 0.5), ["cat", 0.5]),
    (Size((1, 2)), [1, 2]),
    (Score(0.5), 0.5),
    (Score("nan"), None),
    (When(2024, 1, 2), DAY),
    (When(2024, 1, 2, tzinfo=UTC), DAY + "+00:00"),
    (Day(2024, 1, 2), "2024-01-02"),
    (Clock(1, 2), "01:02:00"),
    (datetime.time(1, tzinfo=UTC), "01:00:00+00:00"),
    (datetime.timedelta(days=-1, microseconds=5), "P-1DT0H0M0.000005S"),
    (Color.PAIR, [1, 2]),
    (
        Out(label="a", score=0.5),
        {"label": "a", "score": 0.5, "secret": "**********", "inner": None},
    ),
    (Out(label="a", score=float("nan")).model_dump(), TypeError),
    (Inner(at=datetime.datetime(2024, 1, 2)), {"at": DAY}),
    (Old(label="a", at=datetime.date(2024, 1, 2)), {"label": "a", "at": "2024-01-02"}),
    (Holder(tensor=Tensor()), {"tensor": [1.0, None]}),
    (Holder(tensor=np.array([1])), {"tensor": [1]}),
    (Tensor(), [1.0, None]),
    (EagerTensor(), [1, 2]),
    (Polars(), [{"a": 1}]),
    (Arrow(), [{"a": 1}]),
    (Lookup({"a": 1}), {"a": 1}),
    (types.MappingProxyType({1: 2}), {"1": 2}),
    (collections.deque([1]), [1]),
    (collections.OrderedDict(a=1), {"a": 1}),
    (range(2), [0, 1]),
]

KEYS: list[tuple[Any, str]] = [
    (np.int64(1), "1"),
    (np.uint8(1), "1"),
    (np.float64(0.5), "0.5"),
    (np.float32(0.5), "0.5"),
    (np.bool_(True), "true"),
    (np.str_("a"), "a"),
    (np.datetime64("2024-01-02", "ns"), DAY),
    (np.datetime64("NaT", "s"), "null"),
    (pd.Timestamp("2024-01-02"), DAY),
    (pd.NaT, "null"),
    (pd.NA, "null"),
    (When(2024, 1, 2), DAY),
    (Day(2024, 1, 2), "2024-01-02"),
    (Score(0.5), "0.5"),
    (Color.RED, "red"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (1 << 70, str(1 << 70)),
    (None, "null"),
    (float("nan"), "null"),
]


@pytest.mark.parametrize(("value", "written"), VALUES, ids=lambda value: type(value).__name__)
def test_what_models_return_is_json(value: Any, written: Any) -> None:
    if written is TypeError:  # a part that JSON does not have
        with pytest.raises(TypeError, match="SecretStr"):
            to_json(value)
        return
    assert json.loads(to_json(value)) == written
    assert json.loads(to_json({"predictions": [value]})) == {"predictions": [written]}
    assert to_plain(value) == written


@pytest.mark.parametrize(("value", "written"), VALUES[::5], ids=lambda value: type(value).__name__)
def test_what_streams_yield_is_json(value: Any, written: Any) -> None:
    assert json.loads(json_item(value)) == written
    assert json.loads(ndjson_item({"a": value})) == {"a": written}
    assert json.loads(sse_item(value).removeprefix(b"data: ")) == written


@pytest.mark.parametrize(("key", "written"), KEYS, ids=lambda key: type(key).__name__)
@pytest.mark.parametrize("inside", [lambda value: value, Point, Lookup])
def test_keys_are_text(key: Any, written: str, inside: Any) -> None:
    document = json.loads(to_json({"a": [inside({key: Pair("b", 1.5)})]}))["a"][0]
    document = document.get("x", document)
    assert document == {written: ["b", 1.5]}


def test_a_second_pass_writes_the_rest_as_the_first() -> None:
    rest = [1, True, None, 1.5, float("inf"), "ä", Color.RED, Point(1), uuid.UUID(int=1)]
    rest += [{1: 2}, np.array([1.0, np.nan]), datetime.date(2024, 1, 2), 1 << 70]
    written = json.loads(to_json([rest, {np.int64(1): 0}]))
    assert written == [json.loads(to_json(rest)), {"1": 0}]


@pytest.mark.parametrize("key", [(1, 2), Pair("a", 1.0), b"a", object(), frozenset()])
def test_a_key_that_is_no_scalar_is_refused(key: Any) -> None:
    with pytest.raises(TypeError):
        to_json({np.int64(1): 1, key: 1})


@pytest.mark.parametrize("value", [b"a", bytearray(b"a"), {1}, 1j, object(), type, np.bytes_(b"a")])
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        to_json({np.int64(1): value})
    with pytest.raises(TypeError):
        to_json([value])


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        (None, True),
        (float("nan"), True),
        (np.float32("nan"), True),
        (np.datetime64("NaT", "s"), True),
        (pd.NA, True),
        (pd.NaT, True),
        (0.0, False),
        ("", False),
        ("nan", False),
        (np.float32(1), False),
        (np.array([np.nan]), False),
        (b"", False),
    ],
)
def test_missing(value: Any, missing: bool) -> None:
    assert is_missing(value) is missing
