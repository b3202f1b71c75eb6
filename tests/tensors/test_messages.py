"""V2's requests and responses: byte for byte as KServe, and with Triton's client."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import orjson
import pytest
from bodies import (
    DATATYPES,
    IN_JSON,
    binary_body,
    decode,
    decode_binary,
    encode_binary,
    encode_json,
    sized,
    tensor,
    two_outputs,
)

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    encode_response,
    generate_uuid,
    response_document,
    rest_document,
)


def test_json_response_has_kserves_order_and_nulls():
    assert encode_json(InferOutput("o", [1, 2], "INT32", [1, 2])) == (
        b'{"model_name":"m","model_version":null,"id":"1","parameters":null,"outputs":['
        b'{"name":"o","shape":[1,2],"datatype":"INT32","parameters":null,"data":[1,2]}]}'
    )


def test_json_response_with_everything():
    output = InferOutput("o", [0], "FP32", [], {"k": 1, "binary_data_size": 9})
    assert encode_json(output, model_version="2", parameters={"p": True}) == (
        b'{"model_name":"m","model_version":"2","id":"1","parameters":{"p":true},"outputs":['
        b'{"name":"o","shape":[0],"datatype":"FP32","parameters":{"k":1},"data":[]}]}'
    )


def test_binary_response_has_kserves_order_without_nulls():
    binary = RequestedOutput("o", {"binary_data": True})
    outputs = [InferOutput("o", [1], "INT8", [1], {"k": "v"}), InferOutput("j", [1], "INT8", [2])]
    response = InferResponse("1", "m", outputs, requested_outputs=[binary, RequestedOutput("j")])
    (head, raw), length = encode_response(response)
    assert head == (
        b'{"id":"1","model_name":"m","model_version":null,"outputs":['
        b'{"name":"o","shape":[1],"datatype":"INT8",'
        b'"parameters":{"k":"v","binary_data_size":1}},'
        b'{"name":"j","shape":[1],"datatype":"INT8","data":[2]}]}'
    )
    assert (raw, length) == (b"\1", len(head))
    assert response.to_rest() == (head + raw, length)


def test_to_rest_has_the_order_of_a_binary_response():
    response = InferResponse("1", "m", two_outputs(), parameters={"p": 1})
    document, _ = response.to_rest()
    assert document == rest_document(response)
    assert orjson.dumps(document) == (
        b'{"id":"1","model_name":"m","model_version":null,"outputs":['
        b'{"name":"a","shape":[1],"datatype":"INT8","data":[1]},'
        b'{"name":"b","shape":[1],"datatype":"INT8","data":[2]}],"parameters":{"p":1}}'
    )


def test_inputs_that_a_model_returns_are_not_rounded():
    request = decode(tensor([0.1]))
    (body,), _ = encode_response(InferResponse("1", "m", request.inputs))
    assert b'"data":[0.1]' in body


def test_response_without_an_id_takes_the_requests_or_a_new_one():
    response = InferResponse(None, "m", [])
    request = InferRequest("m", [], request_id="r")
    assert response_document(response, request)["id"] == "r"
    assert len(response_document(response)["id"]) == 36
    assert json.loads(encode_response(response, request)[0][0])["id"] == "r"


def test_documents_are_written_by_the_given_writer():
    pieces, _ = encode_response(InferResponse("1", "m", []), to_json=lambda _: b"{}")
    assert pieces == [b"{}"]


FORMS = [
    # outputs of the request, its parameters, the names answered, the names answered in binary
    (None, None, "ab", ""),
    (None, {"binary_data_output": True}, "ab", "ab"),
    (None, {"binary_data_output": False}, "ab", ""),
    ([], {"binary_data_output": True}, "ab", "ab"),
    ([{"name": "b"}], None, "b", ""),
    ([{"name": "b"}, {"name": "a"}], None, "ba", ""),
    ([{"name": "b"}], {"binary_data_output": True}, "b", ""),
    ([{"name": "b", "parameters": {"binary_data": True}}], None, "b", "b"),
    ([{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}], None, "ba", "b"),
    (
        [{"name": "a", "parameters": {"binary_data": False}}],
        {"binary_data_output": True},
        "a",
        "",
    ),
]


@pytest.mark.parametrize("said_by", ["request", "response"])
@pytest.mark.parametrize(("outputs", "parameters", "names", "binary"), FORMS)
def test_outputs_are_sent_as_asked(outputs, parameters, names, binary, said_by):
    request = decode(outputs=outputs, parameters=parameters)
    response = InferResponse("1", "m", two_outputs())
    if said_by == "response":
        response.requested_outputs = request.request_outputs
        response.use_binary_outputs = request.use_binary_outputs
    pieces, length = encode_response(response, request if said_by == "request" else None)
    document = orjson.loads(pieces[0])
    entries = document["outputs"]
    assert [entry["name"] for entry in entries] == list(names)
    assert [entry["name"] for entry in entries if "data" not in entry] == list(binary)
    assert len(pieces) == 1 + len(binary)
    assert length == (len(pieces[0]) if binary else None)
    assert response_document(response, request)["outputs"] == [
        {
            "name": name,
            "shape": [1],
            "datatype": "INT8",
            "parameters": None,
            "data": [" ab".index(name)],
        }
        for name in names
    ]


def test_unknown_requested_output_is_the_clients_fault():
    request = decode(outputs=[{"name": "x"}])
    with pytest.raises(InvalidInput, match=r"^Unexpected inference output 'x' for model 'm'$"):
        encode_response(InferResponse("1", "m", two_outputs()), request)


def test_an_echoed_binary_tensor_is_not_copied():
    request = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2]))
    echo = InferResponse("1", "m", request.inputs)
    (_, raw), _ = encode_response(echo, decode(parameters={"binary_data_output": True}))
    assert np.shares_memory(np.frombuffer(raw, "i1"), request.inputs[0].as_numpy())


def test_memory_of_a_binary_echo_is_one_copy():
    size = 8_000_000
    body, length = binary_body(
        bytes(size), sized(size, shape=[size // 4]), parameters={"binary_data_output": True}
    )
    body = bytearray(body)  # as it is gathered from the pieces in which it comes
    tracemalloc.start()
    request = decode_request(body, length, model_name="m")
    array = request.inputs[0].as_numpy()
    assert tracemalloc.get_traced_memory()[1] < 100_000
    output = InferOutput("o", list(array.shape), "FP32")
    output.set_data_from_numpy(array)
    encode_response(InferResponse("1", "m", [output]), request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.05 * size


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "1e3", "²", "٣", "9" * 5000, "1 2"])
def test_bad_length_headers(header):
    with pytest.raises(InvalidInput, match=r"^inference-header-content-length is not a number of"):
        decode_request(b"{}", header, model_name="m")


def test_length_headers_past_the_body():
    body = orjson.dumps({"inputs": [tensor([1])]})
    for length in (len(body) + 1, 10**18):
        assert decode_request(body, str(length), model_name="m").inputs[0].data == [1]
    with pytest.raises(InvalidInput, match=r"is binary data, and the header .+ or too large"):
        decode_request(orjson.dumps({"inputs": [sized(4)]}), "999", model_name="m")
    with pytest.raises(InvalidInput, match=r"is 3, and the body has 2 bytes"):
        InferRequest.from_bytes(b"{}", 3, "m")
    with pytest.raises(InvalidInput, match=r"is -1, and the body has 2 bytes"):
        InferRequest.from_bytes(b"{}", -1, "m")
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format"):
        decode_request(b"{}", "0", model_name="m")


def test_get_by_name():
    request = decode(tensor([1]), tensor([2]) | {"name": "y"})
    assert request.get_input_by_name("y").data == [2]
    assert request.get_input_by_name("z") is None
    response = InferResponse("1", "m", two_outputs())
    assert response.get_output_by_name("b").data == [2]
    assert response.get_output_by_name("z") is None


def test_raw_inputs_and_from_grpc():
    inputs = [InferInput("x", [1], "INT8")]
    request = InferRequest("m", inputs, raw_inputs=[b"\5"], from_grpc=True)
    assert request.inputs[0].as_numpy().tolist() == [5]
    assert request.use_binary_outputs
    assert not InferRequest("m", [], from_grpc=True).use_binary_outputs


def test_equality():
    assert decode(tensor([1])) == decode(tensor([1])) != decode(tensor([2]))
    assert decode(parameters={}) == decode() != decode(parameters={"k": 1})
    assert InferResponse("1", "m", two_outputs()) == InferResponse("1", "m", two_outputs())
    assert InferResponse("1", "m", two_outputs()) != InferResponse("2", "m", two_outputs())
    assert InferResponse("1", "m", []) != InferRequest("m", [])


def test_repr_shows_the_tensors():
    assert "inputs=[InferInput(" in repr(decode(tensor([1])))
    assert "outputs=[InferOutput(" in repr(InferResponse("1", "m", two_outputs()))


def test_attributes_are_settable():
    request = InferRequest("m", [])
    request.parameters, request.id, request.inputs = {"binary_data_output": True}, "i", []
    assert request.use_binary_outputs
    assert (request.id, request.inputs) == ("i", [])


def test_to_dict():
    request = decode(tensor([1]), id="i", parameters={"k": 1})
    assert request.to_dict() == {
        "id": "i",
        "model_name": "m",
        "inputs": [request.inputs[0].to_dict()],
        "parameters": {"k": 1},
        "from_grpc": False,
    }
    response = InferResponse("1", "m", two_outputs())
    assert response.to_dict()["outputs"] == [output.to_dict() for output in response.outputs]


def test_request_to_rest():
    document = {
        "id": "i",
        "inputs": [tensor([1.0], parameters={"k": 1})],
        "outputs": [{"name": "o", "parameters": {"binary_data": True}}, {"name": "p"}],
        "parameters": {"p": 1},
    }
    written, length = InferRequest.from_rest("m", document).to_rest()
    assert length is None
    assert written == document | {"model_name": "m"}
    assert InferRequest.from_rest("m", written) == InferRequest.from_rest("m", document)


def test_request_to_rest_sends_the_numbers_of_a_list_as_they_are():
    def data(datatype, data):
        document, _ = InferRequest("m", [InferInput("x", [2], datatype, data)]).to_rest()
        return document["inputs"][0]["data"]

    assert data("FP32", [1.1, 2]) == [1.1, 2]
    assert data("FP32", [[0.1], [None]]) == [0.1, None]
    assert data("INT8", (1.0, np.int64(2))) == [1, 2]
    assert data("FP32", np.array([1.5, 0.1], np.float32)) == [1.5, float(np.float32(0.1))]
    for datatype, wrong in [
        ("INT8", [300, 1]),
        ("FP32", [1e39, 1]),
        ("FP32", [1]),
        ("FP16", [1, 2]),
    ]:
        with pytest.raises(InvalidInput, match=r"^Input 'x' "):
            data(datatype, wrong)


def test_request_to_rest_makes_an_id_and_keeps_binary_inputs_binary():
    request = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2]))
    body, length = request.to_rest()
    assert len(orjson.loads(body[:length])["id"]) == 36
    again = InferRequest.from_bytes(body, length, "m")
    assert again.inputs == request.inputs
    with pytest.raises(InvalidInput, match=r"^Input 'x' has no data"):
        InferRequest("m", [InferInput("x", [1], "FP32")]).to_rest()


def test_response_to_rest_has_kserves_keys():
    response = InferResponse("1", "m", [InferOutput("o", [1], "INT8", [1])], parameters={"p": 1})
    assert response.to_rest() == (
        {
            "id": "1",
            "model_name": "m",
            "model_version": None,
            "outputs": [{"name": "o", "shape": [1], "datatype": "INT8", "data": [1]}],
            "parameters": {"p": 1},
        },
        None,
    )


def test_responses_are_read_back():
    outputs = [InferOutput("o", [2], "FP32", [1.0, 2.0], {}), InferOutput("b", [1], "BYTES", ["é"])]
    response = InferResponse("1", "m", outputs, model_version="2", parameters={"p": 1})
    again = InferResponse.from_rest(orjson.loads(orjson.dumps(response_document(response))))
    assert (again.id, again.model_name, again.model_version) == ("1", "m", "2")
    assert [output.data for output in again.outputs] == [[1.0, 2.0], ["é"]]
    response.use_binary_outputs = True
    body, length = response.to_rest()
    again = InferResponse.from_bytes(body, length)
    assert [output.as_numpy().tolist() for output in again.outputs] == [
        [1.0, 2.0],
        ["é".encode()],
    ]
    assert [output.parameters for output in again.outputs] == [{}, {}]


def test_bad_response_bodies():
    with pytest.raises(InferenceError, match=r"is 9, and the response has 2 bytes"):
        InferResponse.from_bytes(b"{}", 9)
    with pytest.raises(InferenceError, match=r"^Unrecognized response format"):
        InferResponse.from_bytes(b"{", 1)
    with pytest.raises(
        InferenceError, match=r"^2 bytes are left over after the JSON, where no output is binary"
    ):
        InferResponse.from_bytes(b'{"outputs":[]}ab', 14)


def test_as_dataframe():
    request = decode(
        tensor([1, 2], datatype="INT64", shape=[2, 1]),
        tensor(["a", "é"], datatype="BYTES", shape=[2]) | {"name": "t"},
    )
    assert request.as_dataframe().to_dict("list") == {"x": [1, 2], "t": ["a", "é"]}
    assert decode().as_dataframe().empty
    with pytest.raises(InvalidInput, match=r"^The inputs differ in length"):
        decode(tensor([1]), tensor([1, 2], shape=[2]) | {"name": "y"}).as_dataframe()


def test_generate_uuid():
    assert len({generate_uuid(), generate_uuid()}) == 2


def test_importing_imports_none_of_them():
    code = (
        "import sys, modelserve.tensors; "
        "print({'numpy', 'pandas', 'ml_dtypes'} & set(sys.modules) or 'none')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "none"


BOTH_FORMS = [(*row, True) for row in DATATYPES] + [(*row, False) for row in IN_JSON]


def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype", "binary"), BOTH_FORMS)
def test_reads_what_tritonclient_sends(datatype, data, raw, dtype, binary):
    http = triton()
    sent = http.InferInput("x", [2], datatype)
    sent.set_data_from_numpy(np.array(data, dtype), binary_data=binary)
    body, length = http.InferenceServerClient.generate_request_body([sent])
    header = None if length is None else str(length)
    read = decode_request(bytes(body), header, model_name="m").inputs[0]
    assert read.is_binary == binary
    assert encode_binary(read)[1] == [raw]
    assert decode_request(bytes(body), header, model_name="m").use_binary_outputs


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype", "binary"), BOTH_FORMS)
def test_tritonclient_reads_what_is_sent(datatype, data, raw, dtype, binary):
    http = triton()
    array = np.array(data, dtype)
    output = InferOutput("o", [2], datatype)
    output.set_data_from_numpy(array)
    response = InferResponse("1", "m", [output, output], use_binary_outputs=binary)
    pieces, length = encode_response(response)
    result = http.InferResult.from_response_body(b"".join(pieces), header_length=length)
    got = result.as_numpy("o").tolist()
    assert [v.decode() if isinstance(v, bytes) else v for v in got] == data
