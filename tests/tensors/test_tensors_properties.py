"""V2 tensors: whatever fits survives any way there and back; whatever a client sends is a 400."""

import contextlib

import ml_dtypes
import numpy as np
import orjson
from bodies import encode_binary
from hypothesis import given, settings
from hypothesis import strategies as st

from modelserve.errors import InvalidInput
from modelserve.tensors import (
    InferOutput,
    InferResponse,
    RequestedOutput,
    decode_request,
    encode_response,
    get_predict_input,
    response_document,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)

WHOLE = {f"{sign}INT{bits}": (sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)}
DTYPES = {
    "BOOL": "?",
    "FP16": "f2",
    "BF16": ml_dtypes.bfloat16,
    "FP32": "f4",
    "FP64": "f8",
    "BYTES": "O",
    **{name: f"{'u' if sign else 'i'}{bits // 8}" for name, (sign, bits) in WHOLE.items()},
}
ELEMENTS = {
    "BOOL": st.booleans(),
    "FP16": st.floats(width=16),
    "BF16": st.floats(width=16).map(lambda value: float(ml_dtypes.bfloat16(value))),
    "FP32": st.floats(width=32),
    "FP64": st.floats(),
    "BYTES": st.binary(max_size=5),
    **{
        name: st.integers(0, 2**bits - 1)
        if sign
        else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for name, (sign, bits) in WHOLE.items()
    },
}
SHAPES = st.lists(st.integers(0, 3), max_size=3)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
# What JSON carries: no 16-bit floats, and BYTES only as text.
TEXTUAL = {name: elements for name, elements in ELEMENTS.items() if name not in ("FP16", "BF16")}
TEXTUAL["BYTES"] = TEXT.map(str.encode)


@st.composite
def arrays(draw, elements_of=ELEMENTS):
    datatype = draw(st.sampled_from(sorted(elements_of)))
    shape, elements = draw(SHAPES), elements_of[datatype]
    count = int(np.prod(shape))
    values = draw(st.lists(elements, min_size=count, max_size=count))
    return datatype, np.array(values, DTYPES[datatype]).reshape(shape)


def same(one, other):
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def echo(tensor, *, binary):
    """Send a tensor and read the answer as the next request."""
    response = InferResponse("1", "m", [tensor], use_binary_outputs=binary)
    pieces, length = encode_response(response)
    head = orjson.loads(pieces[0])
    head["inputs"] = head.pop("outputs")
    head = orjson.dumps(head)
    header = None if length is None else str(len(head))
    return decode_request(b"".join([head, *pieces[1:]]), header, model_name="m").inputs[0]


@quick
@given(arrays(), st.booleans())
def test_binary_data_survives_there_and_back(drawn, as_array):
    datatype, array = drawn
    output = InferOutput("o", list(array.shape), datatype, array)
    if not as_array:
        output.set_data_from_numpy(array)
    read = echo(output, binary=True).as_numpy()
    if datatype == "BYTES":
        assert (read.shape, read.tolist()) == (array.shape, array.tolist())
    else:
        assert same(read, array)


@quick
@given(arrays(TEXTUAL), st.booleans())
def test_json_survives_there_and_back(drawn, nested):
    datatype, array = drawn
    output = InferOutput("o", list(array.shape), datatype, array)
    if nested and array.ndim and array.size:
        output.data = array.tolist()
    read = echo(output, binary=False).as_numpy()
    if array.dtype.kind == "f":
        array = np.where(np.isinf(array), array.dtype.type("nan"), array)
        np.testing.assert_array_equal(read, array)
    else:
        sent = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
        assert (read.shape, read.ravel().tolist()) == (array.shape, sent)


@quick
@given(arrays())
def test_a_list_made_of_binary_data_packs_to_the_same_bytes(drawn):
    datatype, array = drawn
    output = InferOutput("o", list(array.shape), datatype)
    output.set_data_from_numpy(array)
    (raw,) = encode_binary(output)[1]
    with contextlib.suppress(InvalidInput):  # BYTES that are not UTF-8 stay bytes
        output.data  # noqa: B018
        assert not output.is_binary
    if array.dtype.kind in "fV":
        np.testing.assert_array_equal(output.as_numpy().astype("f8"), array.astype("f8"))
    else:
        assert encode_binary(output)[1] == [raw]


def use(request):
    """Do with a request what servers and models do with one."""
    for tensor in request.inputs:
        tensor.as_numpy()
        assert repr(tensor)
        with contextlib.suppress(InvalidInput):
            tensor.as_string()
        request.to_rest()
        outputs = [InferOutput("o", tensor.shape, tensor.datatype)]
        outputs[0].set_data_from_numpy(tensor.as_numpy())
        request.request_outputs = [RequestedOutput("o", {"binary_data": True})]
        encode_response(InferResponse("1", "m", outputs), request)
        with contextlib.suppress(InvalidInput):
            response_document(InferResponse("1", "m", outputs))
    with contextlib.suppress(InvalidInput):
        get_predict_input(request)
    with contextlib.suppress(InvalidInput):
        request.as_dataframe()
    with contextlib.suppress(InvalidInput):
        request.to_dict()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)
ODD_SIZES = st.lists(st.integers(-2, 2**63), max_size=3)


@st.composite
def entries(draw):
    """Draw a tensor's entry and its binary data, right or with one thing wrong."""
    binary = draw(st.booleans())
    datatype, array = draw(arrays(ELEMENTS if binary else TEXTUAL))
    output = InferOutput("o", list(array.shape), datatype, array)
    pieces, _ = encode_response(InferResponse("1", "m", [output], use_binary_outputs=binary))
    (entry,) = orjson.loads(pieces[0])["outputs"]
    entry["name"] = draw(st.sampled_from("xyz"))
    return draw(st.sampled_from(CHANGES))(draw, entry, pieces[1] if binary else b"")


def change_nothing(draw, entry, raw):
    return entry, raw


def change_field(draw, entry, raw):
    key = draw(st.sampled_from(sorted(entry)))
    return entry | {key: draw(JSON)}, raw


def drop_field(draw, entry, raw):
    key = draw(st.sampled_from(sorted(entry)))
    return {other: value for other, value in entry.items() if other != key}, raw


def change_datatype(draw, entry, raw):
    return entry | {"datatype": draw(st.sampled_from([*DTYPES, "fp32", "FP8"]))}, raw


def change_shape(draw, entry, raw):
    return entry | {"shape": draw(SHAPES | ODD_SIZES)}, raw


def change_element(draw, entry, raw):
    if entry.get("data"):
        at = draw(st.integers(0, len(entry["data"]) - 1))
        entry["data"][at] = draw(JSON | st.floats(-1e300, 1e300) | st.integers(-300, 300))
    return entry, raw


def change_size(draw, entry, raw):
    return entry | {"parameters": {"binary_data_size": draw(st.integers(-1, 40) | JSON)}}, raw


def change_bytes(draw, entry, raw):
    at = draw(st.integers(0, len(raw)))
    return entry, raw[:at] + draw(st.binary(max_size=2)) + raw[draw(st.integers(at, len(raw))) :]


CHANGES = [
    change_nothing,
    change_nothing,
    change_nothing,
    change_field,
    drop_field,
    change_datatype,
    change_shape,
    change_element,
    change_size,
    change_bytes,
]
REQUESTED = st.fixed_dictionaries(
    {"name": st.sampled_from("ab") | JSON},
    optional={"parameters": st.dictionaries(st.just("binary_data"), st.booleans() | JSON) | JSON},
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.just("pd") | JSON,
        "binary_data_output": st.booleans() | JSON,
    },
)
TOP = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text("ab") | JSON,
        "outputs": st.lists(REQUESTED, max_size=2) | JSON,
        "parameters": PARAMETERS | JSON,
    },
)


def decoded_or_refused(body, header):
    try:
        request = decode_request(body, header, model_name="m")
    except InvalidInput as exc:
        assert str(exc)
        assert len(str(exc)) < 500
    else:
        use(request)


@settings(quick, max_examples=100)
@given(JSON | TOP | TOP.flatmap(lambda top: JSON.map(lambda inputs: top | {"inputs": inputs})))
def test_any_document_is_read_or_refused(document):
    body = orjson.dumps(document)
    decoded_or_refused(body, None)
    decoded_or_refused(body, str(len(body)))


@settings(quick, max_examples=400)
@given(st.lists(entries(), max_size=3), st.just({}) | TOP, st.sampled_from(["0", "0", "1", "-1"]))
def test_any_tensors_are_read_or_refused(drawn, top, off):
    head = orjson.dumps(top | {"inputs": [entry for entry, _ in drawn]})
    body = b"".join([head, *[raw for _, raw in drawn]])
    decoded_or_refused(body, str(len(head) + int(off)))
    decoded_or_refused(head, None)


@quick
@given(st.binary(max_size=60), st.none() | st.text(max_size=4) | st.integers(-5, 70).map(str))
def test_any_bytes_are_read_or_refused(body, header):
    decoded_or_refused(body, header)


@quick
@given(arrays(), st.data())
def test_a_changed_byte_is_read_or_refused(drawn, data):
    datatype, array = drawn
    output = InferOutput("o", list(array.shape), datatype, array)
    pieces, _ = encode_response(InferResponse("1", "m", [output], use_binary_outputs=True))
    pieces[0] = pieces[0].replace(b"outputs", b"inputs")
    body = bytearray(b"".join(pieces))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    decoded_or_refused(bytes(body), str(len(pieces[0])))


@quick
@given(JSON | st.fixed_dictionaries({"instances": st.lists(JSON, max_size=3)}))
def test_any_v1_payload_is_input_or_refused(payload):
    with contextlib.suppress(InvalidInput):
        get_predict_input(payload)
