"""Fuzz the codecs, guided by coverage. A script, run by hand; no part of the test suite.

    pip install atheris
    python tests/faults/fuzz_codecs.py v2-json -max_total_time=120
    python tests/faults/fuzz_codecs.py all -max_total_time=600 corpus/

The first argument is one of the targets, or `all`; the others are libFuzzer's. It ends at the first
failure and writes the input that caused it to `crash-*`; give that file as an argument to see it
again. Each target says in its docstring what has to hold.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

try:
    import atheris
except ImportError:
    sys.exit("This needs atheris: pip install atheris")

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

with atheris.instrument_imports(include=["modelserve"]):
    from modelserve import encoders, generate, paths, v1
    from modelserve.encoders import ServerSentEvent
    from modelserve.errors import InvalidInput, NestedTooDeep
    from modelserve.protocols import Named, encode_value
    from modelserve.requests import Request
    from modelserve.tensors import (
        InferOutput,
        InferRequest,
        InferResponse,
        RequestedOutput,
        decode_request,
        encode_response,
        get_predict_input,
        response_document,
    )

from eventstream import interpret

NAMED = Named("m")
TYPES = (
    "",
    "application/json",
    "application/json; charset=utf-8",
    "image/png",
    "application/x+json",
)
DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES", "bytes", "FP8", ""),
)
KEYS = (
    *("inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "text_input"),
    *("binary_data_size", "binary_data", "binary_data_output", "content_type", "instances"),
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    255,
    256,
    -129,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    1e308,
    0.5,
    65520,
)
MEDIA_TYPES = (
    *("*/*", "*", "text/*", "application/*", "text/event-stream", "application/x-ndjson"),
    *("application/jsonl", "application/json", "text/plain", "application/octet-stream"),
    *("image/png", "text/html", "*/json", "/", "a/", "/b", ""),
)
QUALITIES = ("", ";q=0", ";q=1", ";q=0.5", ";q=0.500", "; Q=0.7", ";q=nan", ";q=-1", ";q=9", ";q=")
FIRSTS = ("text", b"bytes", b"\xff", {"a": 1}, None, 1.5, ServerSentEvent("x"), ServerSentEvent(1))


class Source:
    """Choices, made by the fuzzer."""

    def __init__(self, data: bytes) -> None:
        self.raw = data
        self.choices = atheris.FuzzedDataProvider(data)

    def one_of(self, values: Any) -> Any:
        return values[self.choices.ConsumeIntInRange(0, len(values) - 1)]

    def chance(self, one_in: int) -> bool:
        return bool(self.choices.ConsumeIntInRange(0, one_in - 1) == 0)

    def count(self, most: int) -> int:
        return int(self.choices.ConsumeIntInRange(0, most))

    def text(self, most: int = 20) -> str:
        """Text without lone surrogates."""
        return str(self.choices.ConsumeUnicodeNoSurrogates(self.count(most)))

    def any_text(self, most: int = 20) -> str:
        return str(self.choices.ConsumeUnicode(self.count(most)))

    def bytes(self, most: int = 20) -> bytes:
        return bytes(self.choices.ConsumeBytes(self.count(most)))

    def value(self, depth: int = 3) -> Any:
        """Anything that JSON can hold."""
        kind = self.count(7 if depth else 4)
        if kind == 0:
            return self.one_of((None, True, False))
        if kind == 1:
            return self.one_of(NUMBERS)
        if kind == 2:
            return self.choices.ConsumeInt(4)
        if kind == 3:
            return self.choices.ConsumeRegularFloat()
        if kind == 4:
            return self.text()
        if kind == 5:
            return {self.key(): self.value(depth - 1) for _ in range(self.count(4))}
        return [self.value(depth - 1) for _ in range(self.count(4))]

    def key(self) -> str:
        return self.text(5) if self.chance(8) else str(self.one_of(KEYS))

    def or_any(self, value: Any) -> Any:
        """Return the value, or once in a while something else."""
        return self.value() if self.chance(16) else value


# --- V1 and generate ----------------------------------------------------------------------------


def fuzz_v1(source: Source) -> None:
    """A body is a payload or a 400; a payload that is sent back is a document or a 400."""
    content_type = source.one_of(TYPES)
    body = source.raw[1:]
    request = Request({"headers": [(b"content-type", content_type.encode())]})
    try:
        payload = v1.decode(body, request, NAMED)
        v1.check(payload)
        _, answer = encode_value(payload, payload, None)
    except InvalidInput:
        return
    if content_type == "image/png":
        assert answer == body
    elif not isinstance(payload, str):
        assert json.loads(answer) == payload


def fuzz_generate(source: Source) -> None:
    """A body is a document with a text, or a 400."""
    bodies = (source.raw, json.dumps(source.value()).encode())
    for body in bodies:
        with suppress(InvalidInput):
            document = generate.decode(body, Request({"headers": []}), NAMED)
            assert isinstance(document["text_input"], str)


# --- V2 -----------------------------------------------------------------------------------------


def fuzz_v2_bytes(source: Source) -> None:
    """Any body at all is a request or a 400: the first line is the length header, if it has one."""
    header, line, body = source.raw.partition(b"\n")
    if not line:
        look_at_v2(source.raw, None)
    else:
        look_at_v2(body, header.decode("latin-1"))


def fuzz_v2_json(source: Source) -> None:
    """A document of about the right shape is a request or a 400."""
    document = v2_document(source, binary=False)
    look_at_v2(json.dumps(document).encode(), None)


def fuzz_v2_binary(source: Source) -> None:
    """A document of about the right shape and tensors after it are a request or a 400."""
    document = v2_document(source, binary=True)
    head = json.dumps(document).encode()
    tail = source.bytes(64)
    length = len(head) if not source.chance(16) else source.count(200)
    look_at_v2(head + tail, str(length))


def v2_document(source: Source, *, binary: bool) -> Any:
    document: dict[str, Any] = {
        "inputs": source.or_any([v2_input(source, binary) for _ in range(source.count(3))])
    }
    if source.chance(3):
        document["id"] = source.or_any(source.text(4))
    if source.chance(3):
        document["parameters"] = source.or_any({"binary_data_output": source.or_any(True)})
    if source.chance(3):
        names = [{"name": source.or_any(f"i{n}")} for n in range(source.count(2))]
        for name in names:
            if source.chance(2):
                name["parameters"] = source.or_any({"binary_data": source.or_any(True)})
        document["outputs"] = source.or_any(names)
    return source.or_any(document)


def v2_input(source: Source, binary: bool) -> Any:
    shape = [source.or_any(source.count(4)) for _ in range(source.count(3))]
    entry: dict[str, Any] = {
        "name": source.or_any(f"i{source.count(2)}"),
        "shape": source.or_any(shape),
        "datatype": source.or_any(source.one_of(DATATYPES)),
    }
    if binary and not source.chance(4):
        entry["parameters"] = source.or_any({"binary_data_size": source.or_any(source.count(32))})
    else:
        count = math.prod(n for n in shape if isinstance(n, int)) if not source.chance(8) else 3
        kind = source.value(0)
        data = [source.or_any(kind) for _ in range(max(0, min(count, 64)))]
        entry["data"] = source.or_any(data)
    return source.or_any(entry)


def look_at_v2(body: bytes, length: str | None) -> None:
    try:
        request = decode_request(body, length, model_name="m")
    except InvalidInput:
        return
    for tensor in request.inputs:
        array = tensor.as_numpy()
        assert list(array.shape) == tensor.shape
        with suppress(InvalidInput):  # not text, or not UTF-8
            tensor.as_string()
    with suppress(InvalidInput, ImportError):  # columns of different lengths; no pandas
        get_predict_input(request)
    echo_v2(request)


def echo_v2(request: InferRequest) -> None:
    """What was read can be sent back, and is then the same."""
    for binary in (False, True):
        outputs = [
            InferOutput(t.name, t.shape, t.datatype, None if t.is_binary else t.data)
            for t in request.inputs
        ]
        for output, tensor in zip(outputs, request.inputs, strict=True):
            if tensor.is_binary:
                output._raw_data = tensor._raw_data
        requested = [RequestedOutput(t.name, {"binary_data": binary}) for t in outputs]
        response = InferResponse("1", "m", outputs, requested_outputs=requested)
        names = [t.name for t in outputs]
        try:
            pieces, length = encode_response(response, to_json=encoders.to_json)
            response_document(response, None)
        except InvalidInput:
            # FP16, BF16, bytes that are no text: nothing that JSON has
            continue
        whole = b"".join(bytes(piece) for piece in pieces)
        head = whole if length is None else whole[:length]
        again = InferResponse.from_bytes(whole, len(head))
        assert [t.name for t in again.outputs] == names
        if len(set(names)) == len(names):
            for one, other in zip(outputs, again.outputs, strict=True):
                assert one._bytes() == other._bytes(), (one, other)


# --- Accept -------------------------------------------------------------------------------------


def fuzz_accept(source: Source) -> None:
    """Any header leads to a form that it allows, or to none."""
    if source.chance(2):
        header = source.choices.ConsumeBytes(400).decode("latin-1")
        well_formed = False
    else:
        parts = [
            source.one_of(MEDIA_TYPES) + source.one_of(QUALITIES) for _ in range(source.count(6))
        ]
        header = source.one_of((",", ", ", " ,\t")).join(parts)
        well_formed = True
    ranges = encoders.parse_accept(header)
    assert list(ranges) == sorted(ranges, key=lambda r: (-r.quality, -r.specificity))
    chosen = [encoders.choose_encoder(header, first) for first in FIRSTS]
    chosen.append(encoders.choose_encoder(header, None, empty=True))
    if not encoders.accepts_any_stream(header):
        assert not any(chosen), (header, chosen)
    for encoder in filter(None, chosen):
        if ranges and well_formed:
            name = encoder.media_type.partition(";")[0]
            assert allowed(header, name), (header, name)
    named = encoders.named_encoder(header)
    assert named is None or named.failure is not None


def allowed(header: str, name: str) -> bool:
    """Say whether `Accept` allows a media type: the most specific range that matches decides."""
    aliases = {"text/plain": "application/octet-stream", "application/octet-stream": "text/plain"}
    best: dict[int, float] = {}
    for part in header.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        kind = "*/*" if kind == "*" else kind
        main = name.partition("/")[0]
        for rank, pattern in enumerate(("*/*", f"{main}/*", name)):
            if kind == pattern:
                quality = 1.0
                for parameter in parameters:
                    if parameter.startswith("q="):
                        with suppress(ValueError):
                            quality = float(parameter[2:])
                quality = 1.0 if math.isnan(quality) else quality
                best[rank] = max(quality, best.get(rank, 0.0))
    if name in aliases and aliases[name] in header.lower():
        return True  # asked for under its other name
    return bool(best) and best[max(best)] > 0


# --- items --------------------------------------------------------------------------------------


def fuzz_sse(source: Source) -> None:
    """What is written is what a browser reads."""
    written, expected = b"", []
    last_id, retry = "", None
    for _ in range(source.count(4) + 1):
        item, data = sse_data(source)
        event_type = None
        if source.chance(2):
            event_type = source.one_of((None, "", "tick", source.any_text(5)))
            new_id = source.one_of((None, "", "7", source.any_text(5)))
            new_retry = source.one_of((None, 0, 3000, source.count(10**9)))
            try:
                item = ServerSentEvent(item, event=event_type, id=new_id, retry=new_retry)
            except ValueError:
                assert any(c in f"{event_type}{new_id}" for c in "\r\n\0")
                continue
            if item.data is None:
                data = None
        try:
            block = encoders.SSE.encode(item)
        except (TypeError, ValueError):  # 65 bits, lone surrogates, bytes that are not UTF-8
            continue
        written += block
        if isinstance(item, ServerSentEvent):
            last_id = last_id if item.id is None else item.id
            retry = retry if item.retry is None else item.retry
        if data is not None:
            expected.append((event_type or "message", data, last_id))
        if source.chance(3):
            written += encoders.SSE.idle or b""
    found = interpret(written)
    assert [tuple(event) for event in found.events] == expected, (written, expected)
    assert (found.last_id, found.retry, found.rest) == (last_id, retry, "")


def sse_data(source: Source) -> tuple[Any, str | None]:
    """Return an item, and what a browser has to make of it."""
    kind = source.count(2)
    if kind == 0:
        text = source.any_text(40)
        return text, text.replace("\r\n", "\n").replace("\r", "\n")
    if kind == 1:
        raw = source.bytes(40)
        text = raw.decode("utf-8", "replace")
        return raw, text.replace("\r\n", "\n").replace("\r", "\n")
    value = source.value()
    if isinstance(value, str):
        return value, value.replace("\r\n", "\n").replace("\r", "\n")
    return value, encoders.to_json(value).decode() if fits_json(value) else None


def fits_json(value: Any) -> bool:
    try:
        encoders.to_json(value)
    except (TypeError, ValueError, NestedTooDeep):
        return False
    return True


def fuzz_ndjson(source: Source) -> None:
    """One item is one line, which holds the item; a failure's line is told by its one key."""
    item = source.one_of((source.value(), source.any_text(), source.bytes()))
    try:
        line = encoders.NDJSON.encode(item)
    except (TypeError, ValueError, NestedTooDeep):
        return
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line
    json.loads(line)
    assert encoders.NDJSON.failure is not None
    failure = encoders.NDJSON.failure(source.any_text())
    assert failure.count(b"\n") == 1 and list(json.loads(failure)) == ["error"]


# --- paths --------------------------------------------------------------------------------------


def fuzz_paths(source: Source) -> None:
    """No scope of any host fails; below a mount the same is found, however the host tells of it."""
    scope: dict[str, Any] = {"path": source.any_text()}
    if source.chance(2):
        scope["root_path"] = source.any_text()
    if source.chance(4):
        scope["app_root_path"] = source.any_text()
    if source.chance(2):
        scope["raw_path"] = source.one_of((None, source.bytes()))
    segments = paths.segments_below(scope, source.any_text(5))
    assert all(isinstance(segment, str) for segment in segments)

    parts = [source.text(5).replace("/", "") or "x" for _ in range(source.count(4) + 1)]
    encoded = "/" + "/".join(quote(part, safe="") for part in parts)
    plain = "/" + "/".join(parts)
    for mount in ("", "/ml", "/a/b"):
        whole = {"path": mount + plain, "raw_path": (mount + encoded).encode(), "root_path": mount}
        without_raw_path = {"path": mount + plain, "root_path": mount}
        untold = {**whole, "root_path": ""}
        stripped = {"path": f"{plain}/", "raw_path": whole["raw_path"], "root_path": ""}
        assert paths.segments_below(whole, "") == parts, whole
        assert paths.segments_below(without_raw_path, "") == parts, without_raw_path
        assert paths.segments_below(untold, mount) == parts, untold
        assert paths.segments_below(stripped, "") == parts, stripped


TARGETS: dict[str, Callable[[Source], None]] = {
    "v1": fuzz_v1,
    "generate": fuzz_generate,
    "v2-bytes": fuzz_v2_bytes,
    "v2-json": fuzz_v2_json,
    "v2-binary": fuzz_v2_binary,
    "accept": fuzz_accept,
    "sse": fuzz_sse,
    "ndjson": fuzz_ndjson,
    "paths": fuzz_paths,
}
_HEAD = (
    b'{"inputs":[{"name":"a","shape":[2],"datatype":"INT8",'
    b'"parameters":{"binary_data_size":2}}],"parameters":{"binary_data_output":true}}'
)
SEEDS = (
    b'\0{"instances": [[1.0, 2], "x", {"b64": "AA=="}, null]}',
    b'{"text_input": "a", "parameters": {"n": 1}}',
    b'{"inputs":[{"name":"i","shape":[2,1],"datatype":"FP32","data":[[1],[null]]}],"id":"1"}',
    b'{"inputs":[{"name":"i","shape":[1],"datatype":"BYTES","data":["a"]}],"outputs":[{"name":"i"}]}',
    b"%d\n" % len(_HEAD) + _HEAD + b"\1\2",
    b"text/event-stream;q=0.9, application/json, */*;q=0.1",
    b"/ml/v1/models/a%2Fb:predict",
)


def main() -> None:
    """Run the target that the command line names, until libFuzzer ends the process."""
    name, *options = sys.argv[1:] or [""]
    if name not in (*TARGETS, "all"):
        sys.exit(f"{__doc__}\nTargets: {', '.join(TARGETS)}, all")
    targets = list(TARGETS.values())

    def test_one(data: bytes) -> None:
        if name == "all":
            if data:
                targets[data[0] % len(targets)](Source(data[1:]))
        else:
            TARGETS[name](Source(data))

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS):
            prefixes = [bytes([n]) for n in range(len(targets))] if name == "all" else [b""]
            for n, prefix in enumerate(prefixes):
                Path(folder, f"seed-{number}-{n}").write_bytes(prefix + seed)
        atheris.Setup([sys.argv[0], *options, folder], test_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
