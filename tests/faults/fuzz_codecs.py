"""Fuzz the codecs, guided by coverage. A script, run by hand; no part of the test suite.

    pip install atheris
    python tests/faults/fuzz_codecs.py v2-json -max_total_time=120
    python tests/faults/fuzz_codecs.py all -max_total_time=600 corpus/
    for target in $(python tests/faults/fuzz_codecs.py targets); do
        python tests/faults/fuzz_codecs.py $target -max_total_time=60 || break
    done

The first argument is one of the targets, or `all` of them by turns, or `targets` for their names;
the others are libFuzzer's. It ends at the first failure and writes the input that caused it to
`crash-*`; give that file as an argument to see it again. Each target says in its docstring what has
to hold.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

try:
    import atheris
except ImportError:
    sys.exit("This needs atheris: pip install atheris")

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / "faults"), str(_TESTS / "wire"), str(_TESTS.parent)]

with atheris.instrument_imports(include=["modelserve"]):
    from modelserve.errors import BodyTooLarge, InvalidInput, NestedTooDeep, NotAcceptable
    from modelserve.protocols.cloudevents import EventSettings, codec_for
    from modelserve.protocols.codec import ModelRef, encode_value
    from modelserve.protocols.generate import GENERATE
    from modelserve.protocols.v1 import V1
    from modelserve.protocols.v2 import INFER
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
    from modelserve.wire.accept import choose_encoder, framed_encoder, parse_accept
    from modelserve.wire.cost import check_cost
    from modelserve.wire.decoders import (
        ChunkReader,
        EventReader,
        Failure,
        LineReader,
        Reader,
        TextReader,
    )
    from modelserve.wire.encoders import NDJSON, SSE, Encoder, ServerSentEvent
    from modelserve.wire.head import Head, HookHeaders
    from modelserve.wire.headers import Header
    from modelserve.wire.json import to_json
    from modelserve.wire.paths import segments_below

from eventstream import interpret
from slowaccept import slow_choice, slow_framed

REF = ModelRef("m")
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
    head = Head({"headers": [(b"content-type", content_type.encode())]})
    try:
        payload = V1.decode(body, head, REF)
        V1.check(payload)
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
            document = GENERATE.decode(body, Head({"headers": []}), REF)
            assert isinstance(document["text_input"], str)


def fuzz_cost(source: Source) -> None:
    """The values of a body are those that are seen character by character."""
    text = json.dumps([source.value(), source.any_text()], ensure_ascii=source.chance(2))
    body = text.encode("utf-8", "replace")
    count = slow_count(text)
    for limit in {count - 1, count, source.count(100)}:
        try:
            check_cost(body, limit)
        except BodyTooLarge:
            assert count > limit, (body, limit, count)
        else:
            assert count <= limit, (body, limit, count)


def slow_count(text: str) -> int:
    count, is_inside, is_escaped = 0, False, False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == '"':
            is_inside = not is_inside
        elif is_inside:
            is_escaped = character == "\\"
        else:
            count += {",": 1, "[": 2, ":": 3, "{": 4}.get(character, 0)
    return count


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
            pieces, length = encode_response(response, to_json=to_json)
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
                # NaN and the infinities are null in JSON.
                if other.is_binary or None not in other.data:
                    assert as_bytes(one) == as_bytes(other), (one, other)


def as_bytes(tensor: InferOutput) -> bytes:
    response = InferResponse("1", "m", [tensor], use_binary_outputs=True)
    (_, raw), _ = encode_response(response)
    return bytes(raw)


# --- Accept -------------------------------------------------------------------------------------


def fuzz_accept(source: Source) -> None:
    """Any header leads to an encoder that it allows, or to none: that of a slow choice."""
    if source.chance(2):
        header = source.choices.ConsumeBytes(400).decode("latin-1")
        well_formed = False
    else:
        parts = [
            source.one_of(MEDIA_TYPES) + source.one_of(QUALITIES) for _ in range(source.count(6))
        ]
        header = source.one_of((",", ", ", " ,\t")).join(parts)
        well_formed = True
    ranges = parse_accept(header)
    assert list(ranges) == sorted(ranges, key=lambda r: (-r.quality, -r.specificity))
    chosen = [choose_encoder(header, first) for first in FIRSTS]
    chosen.append(choose_encoder(header, None, empty=True))
    if chosen[-1] is None:
        assert not any(chosen), (header, chosen)
    for encoder in filter(None, chosen):
        if ranges and well_formed:
            name = encoder.media_type.partition(";")[0]
            assert allowed(header, name), (header, name)
    framed = framed_encoder(header)
    assert framed is None or framed.failure is not None
    if header:
        forms = ("ndjson", "sse", "collected", "text", "octets")
        assert named(chosen[-1]) == slow_choice(header, forms), header
        assert named(framed) == slow_framed(header), header
        for first, natural in (("text", "text"), (b"bytes", "octets"), (None, "ndjson")):
            forms = tuple(dict.fromkeys((natural, "ndjson", "sse", "collected")))
            assert named(choose_encoder(header, first)) == slow_choice(header, forms), header


def named(encoder: Encoder | None) -> str | None:
    return encoder and encoder.media_type.partition(";")[0]


def allowed(header: str, name: str) -> bool:
    """Return whether `Accept` allows a media type: the most specific matching range decides."""
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
            block = SSE.encode(item)
        except (TypeError, ValueError):  # 65 bits, lone surrogates, bytes that are not UTF-8
            continue
        written += block
        if isinstance(item, ServerSentEvent):
            last_id = last_id if item.id is None else item.id
            retry = retry if item.retry is None else item.retry
        if data is not None:
            expected.append((event_type or "message", data, last_id))
        if source.chance(3):
            written += SSE.idle or b""
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
    return value, to_json(value).decode() if fits_json(value) else None


def fits_json(value: Any) -> bool:
    try:
        to_json(value)
    except (TypeError, ValueError, NestedTooDeep):
        return False
    return True


def fuzz_ndjson(source: Source) -> None:
    """One item is one line, which holds the item; a failure's line has one key."""
    item = source.one_of((source.value(), source.any_text(), source.bytes()))
    try:
        line = NDJSON.encode(item)
    except (TypeError, ValueError, NestedTooDeep):
        return
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line
    json.loads(line)
    assert NDJSON.failure is not None
    failure = NDJSON.failure(400, source.any_text())
    assert failure.count(b"\n") == 1 and list(json.loads(failure)) == ["error"]


# --- the items of another server's stream -------------------------------------------------------


def fuzz_pieces(source: Source) -> None:
    """Where the bytes of a stream are cut does not matter; what cannot be read is a ValueError."""
    data = source.bytes(200) if source.chance(2) else lines(source)
    cuts = sorted(source.count(len(data)) for _ in range(source.count(6)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    singly = [data[n : n + 1] for n in range(len(data))]
    for reader in (LineReader, EventReader):
        whole = read(reader(), [data])
        assert read(reader(), pieces) == whole, (reader, data, pieces)
        assert read(reader(), singly) == whole, (reader, data)
    text = data.decode("utf-8", "replace")
    assert "".join(read(TextReader(), pieces)) == text
    assert b"".join(read(ChunkReader(), pieces)) == data


def lines(source: Source) -> bytes:
    """Something like a stream, with any of the ends that a line may have."""
    names = ("data", "data", "event", "id", "retry", "", "dat", "\ufeffdata")
    written = b""
    for _ in range(source.count(8)):
        line = source.one_of((b"", b"{", b"[1]", b'{"error":"x"}', b"data", source.bytes()))
        if source.chance(2):
            value = source.one_of((source.any_text(), "1", "error", "[1]", '{"error":"x"}'))
            field = source.one_of(names) + source.one_of((":", ": ", "")) + value
            line = field.encode("utf-8", "surrogatepass")
        written += line + source.one_of((b"\n", b"\r", b"\r\n", b"\n\n"))
    return written


def read(reader: Reader, pieces: list[bytes]) -> list[Any]:
    """Return the items, the last of them the type of the error where there is one."""
    items: list[Any] = []
    try:
        for piece in pieces:
            items += map(comparable, reader.feed(piece))
        items += map(comparable, reader.finish())
    except ValueError:
        return [*items, ValueError] if not isinstance(reader, LineReader) else []
    return items


def comparable(item: Any) -> Any:
    if isinstance(item, ServerSentEvent):
        return (item.data, item.event, item.id, item.retry)
    return item


def fuzz_read_back(source: Source) -> None:
    """What the encoders write is read back as it was."""
    values = [source.one_of((source.value(), source.text())) for _ in range(source.count(4))]
    values = [value for value in values if fits_json(value)]
    sentence = source.text()
    for encoder, reader in (
        (NDJSON, LineReader()),
        (SSE, EventReader()),
    ):
        assert encoder.failure is not None and encoder.idle is not None
        idle = encoder.idle if source.chance(2) else b""
        written = idle.join(encoder.encode(value) for value in values) + encoder.failure(
            400, sentence
        )
        items = read(reader, [written])
        assert items.pop() == Failure({"error": sentence}), written
        assert len(items) == len(values), written
        for item, value in zip(items, values, strict=True):
            if isinstance(item, Failure):  # a record of an error is what a value may look like
                assert item.document == value
            elif encoder is NDJSON:
                assert same(item, value), (item, value)
            else:
                assert same(item[0], value) or as_read(item[0]) == as_read(value), (item, value)


def same(one: Any, other: Any) -> bool:
    """Compare JSON values; a number may have come back as another type."""
    return bool(with_floats(one) == with_floats(other))


def with_floats(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_int=float)


def as_read(value: Any) -> Any:
    """Return a value as it is known once its text was data: no strings apart from their JSON."""
    if not isinstance(value, str):
        value = to_json(value).decode()
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    with suppress(ValueError):
        return json.loads(value)
    return value


# --- CloudEvents --------------------------------------------------------------------------------

CODECS = (V1, INFER, GENERATE)
NAMES = ("specversion", "id", "source", "type", "time", "datacontenttype", "subject", "x", "a\xe9")
REQUIRED = ("specversion", "id", "source", "type")


def fuzz_cloudevents(source: Source) -> None:
    """Any event is a payload or a 400, and the answer to one is an event of the same mode."""
    codec = source.one_of(CODECS)
    settings = EventSettings(uuid4, partial(datetime.now, UTC), merge=source.chance(2))
    structured = source.chance(2)
    data = source.one_of((source.value(), v2_document(source, binary=False)))
    attributes = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
    for _ in range(source.count(4)):
        attributes[source.one_of(NAMES)] = source.or_any(source.text())
    head, body = (structured_event if structured else binary_event)(source, attributes, data)
    around = codec_for(codec, head, settings)
    try:
        payload = around.decode(body, head, REF)
        around.check(payload)
    except InvalidInput:
        return
    given = source.one_of((None, HookHeaders({"content-type": "text/plain"}), HookHeaders(raw=[])))
    value = source.one_of((source.value(), source.text(), source.bytes(), b"{", payload))
    if isinstance(value, InferRequest):
        outputs = [InferOutput(t.name, t.shape, t.datatype, t.data) for t in value.inputs]
        value = InferResponse("1", "m", outputs)
    with suppress(InvalidInput, NestedTooDeep, TypeError, ValueError):  # what no answer can hold
        headers, buffers = around.encode(value, head, payload, given, REF)
        look_at_answer(headers, b"".join(bytes(piece) for piece in buffers), structured)
    with suppress(InvalidInput, NestedTooDeep, NotAcceptable, TypeError, ValueError):
        encoder = around.stream_format(head, payload, given, REF).encoder(value, empty=False)
        chunk = encoder.encode(value)
        if encoder.join is not None:
            chunk = encoder.join([chunk])
            if structured and given is None:
                look_at_answer([(b"content-type", encoder.media_type.encode())], chunk, True)


def structured_event(source: Source, attributes: Any, data: Any) -> tuple[Head, bytes]:
    member = {"data": data}
    if source.chance(3):
        member = {"data_base64": source.or_any(source.one_of(("e30=", "", "eA==", "x")))}
    document = source.or_any({**attributes, **({} if source.chance(16) else member)})
    content_type = source.one_of((b"", b"; charset=utf-8"))
    headers = [(b"content-type", b"application/cloudevents+json" + content_type)]
    headers += accepting(source)
    return Head({"headers": headers}), json.dumps(document).encode()


def binary_event(source: Source, attributes: Any, data: Any) -> tuple[Head, bytes]:
    headers = [
        (f"ce-{name}".encode("latin-1"), str(value).encode("utf-8", "surrogatepass"))
        for name, value in attributes.items()
    ]
    headers += [(b"content-type", source.one_of(TYPES).encode()), *accepting(source)]
    body = source.bytes(40) if source.chance(3) else json.dumps(data).encode()
    return Head({"headers": headers}), body


def accepting(source: Source) -> list[Header]:
    types = ("application/cloudevents+json", *MEDIA_TYPES)
    return [(b"accept", source.one_of(types).encode())] if source.chance(2) else []


def look_at_answer(headers: list[Header], body: bytes, structured: bool) -> None:
    for _, value in headers:
        assert value.isascii() and value.decode().isprintable(), headers
    if not structured:
        assert {f"ce-{name}".encode() for name in REQUIRED} <= dict(headers).keys() or (
            b"ce-specversion" not in dict(headers)  # it was no event, after all
        )
        return
    document = json.loads(body)
    assert set(REQUIRED) <= document.keys()
    assert ("data" in document) is not ("data_base64" in document)


# --- paths --------------------------------------------------------------------------------------


def fuzz_paths(source: Source) -> None:
    """No host's scope fails; below a mount the same is found, however the host describes it."""
    scope: dict[str, Any] = {"path": source.any_text()}
    if source.chance(2):
        scope["root_path"] = source.any_text()
    if source.chance(4):
        scope["app_root_path"] = source.any_text()
    if source.chance(2):
        scope["raw_path"] = source.one_of((None, source.bytes()))
    segments = segments_below(scope, source.any_text(5))
    assert all(isinstance(segment, str) for segment in segments)

    parts = [source.text(5).replace("/", "") or "x" for _ in range(source.count(4) + 1)]
    encoded = "/" + "/".join(quote(part, safe="") for part in parts)
    plain = "/" + "/".join(parts)
    for mount in ("", "/ml", "/a/b"):
        whole = {"path": mount + plain, "raw_path": (mount + encoded).encode(), "root_path": mount}
        without_raw_path = {"path": mount + plain, "root_path": mount}
        unsaid = {**whole, "root_path": ""}
        stripped = {"path": f"{plain}/", "raw_path": whole["raw_path"], "root_path": ""}
        assert segments_below(whole, "") == parts, whole
        assert segments_below(without_raw_path, "") == parts, without_raw_path
        assert segments_below(unsaid, mount) == parts, unsaid
        assert segments_below(stripped, "") == parts, stripped


TARGETS: dict[str, Callable[[Source], None]] = {
    "v1": fuzz_v1,
    "generate": fuzz_generate,
    "v2-bytes": fuzz_v2_bytes,
    "v2-json": fuzz_v2_json,
    "v2-binary": fuzz_v2_binary,
    "cost": fuzz_cost,
    "accept": fuzz_accept,
    "sse": fuzz_sse,
    "ndjson": fuzz_ndjson,
    "pieces": fuzz_pieces,
    "read-back": fuzz_read_back,
    "cloudevents": fuzz_cloudevents,
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
    if name == "targets":
        print(*TARGETS)
        return
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
        again = any(Path(option).is_file() for option in options)  # libFuzzer takes no folder then
        atheris.Setup([sys.argv[0], *options, *([] if again else [folder])], test_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
