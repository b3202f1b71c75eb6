"""Bodies that are multipart/form-data: read part by part, whatever the cuts and the end."""

import gzip
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from formbodies import FORM, Part, file_of, form_of, seen
from starlette.datastructures import FormData, UploadFile

from modelserve import InferenceError, Limits, Model, ModelServer, Upload
from modelserve.concurrency.threads import Workers
from modelserve.errors import BodyTooLarge, InvalidInput
from modelserve.exchange.forms import FormReader, form_reader
from modelserve.protocols.v1 import V1
from modelserve.testing import Exchange, exchange, request
from modelserve.wire.head import Head

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
MEBIBYTE = 1 << 20


def serve(predict: Any, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


async def predict_seen(form: Any) -> Any:
    return repr(seen(form))


async def read_form(
    *pieces: bytes, content_type: str = "multipart/form-data; boundary=x"
) -> list[Any]:
    """Read a form from its pieces, without an application."""
    head = Head({"type": "http", "headers": [(b"content-type", content_type.encode("latin-1"))]})
    reader = form_reader(V1, head, Workers(1))
    assert reader is not None
    try:
        for piece in pieces:
            await reader.feed(piece)
        await reader.finish()
        assert len(reader) == sum(map(len, pieces))
        return seen(reader.payload)
    finally:
        reader.close()


# --- what a form holds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([], []),
        ([('name="a"', b"1")], [("a", "1")]),
        ([("name=a", b"1"), ("name=a", b"2"), ("name=b", b"")], [("a", "1"), ("a", "2"), ("b", "")]),
        ([('name=""', b"1")], [("", "1")]),
        ([('name="ä"', "€".encode())], [("ä", "€")]),
        ([('name="f"; filename="a.txt"', b"\x00\r\n--\xff")], [("f", ("a.txt", None, 6, b"\x00\r\n--\xff"))]),
        ([('name="f"; filename=""', b"")], [("f", ("", None, 0, b""))]),
        ([('name="f"; filename="ä \\"b\\".txt"', b"1")], [("f", ('ä "b".txt', None, 1, b"1"))]),
        ([("name=f; filename=x; filename*=utf-8''%C3%A4.txt", b"1")], [("f", ("ä.txt", None, 1, b"1"))]),
        ([("name=f; filename*=iso-8859-1'de'%E4", b"1")], [("f", ("ä", None, 1, b"1"))]),
        (
            [(b'content-disposition: form-data; name="f"; filename="i.png"\r\nCONTENT-TYPE:  image/png', b"1")],
            [("f", ("i.png", "image/png", 1, b"1"))],
        ),
        ([(b"X-Other: 1\r\nContent-Disposition: form-data; name=a", b"1")], [("a", "1")]),
        ([(b"content-disposition: form-data; name=a\r\ncontent-type: text/plain; charset=iso-8859-1", b"\xe4")], [("a", "ä")]),
        ([(b"content-disposition: form-data; name=a\r\ncontent-type: application/json", b"[1]")], [("a", "[1]")]),
        ([("name=a", b"\xe4"), ("name=_charset_", b"iso-8859-1")], [("a", "ä"), ("_charset_", "iso-8859-1")]),
        ([("name=_charset_", b"UTF-8"), ("name=a", "ä".encode())], [("_charset_", "UTF-8"), ("a", "ä")]),
    ],
)  # fmt: skip
async def test_what_a_form_holds(parts: list[Part], found: list[Any]) -> None:
    body = form_of(*parts)
    assert await read_form(body) == found
    assert await read_form(*(body[i : i + 1] for i in range(len(body)))) == found
    for cut in range(len(body)):
        assert await read_form(body[:cut], body[cut:]) == found


async def test_a_charset_of_the_content_type_is_that_of_the_text() -> None:
    content_type = "Multipart/Form-Data; charset=latin1; boundary=x"
    assert await read_form(form_of(("name=\xe4".encode("latin-1").decode("latin-1"), b"1"))) == [
        ("ä", "1")
    ]
    body = form_of((b"content-disposition: form-data; name=\xe4", b"\xfc"))
    assert await read_form(body, content_type=content_type) == [("ä", "ü")]


async def test_what_comes_before_and_after_the_parts_is_ignored() -> None:
    body = b"\r\n" + form_of(("name=a", b"1"), end=b"--x--\r\nwhatever\r\n--x\r\n")
    assert await read_form(body) == [("a", "1")]


async def test_a_hook_gets_starlettes_form() -> None:
    def predict(form: Any) -> Any:
        assert isinstance(form, FormData)
        upload = form["f"]
        assert isinstance(upload, Upload)
        assert isinstance(upload, UploadFile)
        upload.seek(1)
        return {"a": form.getlist("a"), "read": upload.read(1).decode(), "rest": upload.file.read().decode()}  # fmt: skip

    body = form_of(("name=a", b"1"), ("name=a", b"2"), file_of(b"xyz"))
    response = await request(serve(predict), *PREDICT, body=body, headers=FORM)
    assert response.json() == {"a": ["1", "2"], "read": "y", "rest": "z"}


@pytest.mark.parametrize("verb", ["predict", "explain"])
async def test_preprocess_gets_the_form(verb: str) -> None:
    class Files(Model):
        async def preprocess(self, form: Any) -> Any:
            return {"instances": [len(await form["f"].aread())]}

        def predict(self, payload: Any) -> Any:
            return payload

        explain = predict

    response = await request(
        ModelServer([Files("m")]), "POST", f"/v1/models/m:{verb}", body=form_of(file_of(b"abc")), headers=FORM
    )  # fmt: skip
    assert response.json() == {"instances": [3]}


@pytest.mark.parametrize("size", [0, 1, MEBIBYTE, MEBIBYTE + 1, 3 * MEBIBYTE])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_file_of_more_than_a_mebibyte_is_on_disk(size: int, is_async: bool) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    async def read(form: Any) -> Any:
        upload = form["f"]
        first, rest = await upload.aread(10), await upload.aread()
        await upload.aseek(0)
        again = await upload.aread()
        return [upload.file._rolled, first + rest == data == again, upload.size]

    def read_sync(form: Any) -> Any:
        upload = form["f"]
        return [upload.file._rolled, upload.read(10) + upload.read() == data, upload.size]

    app = serve(read if is_async else read_sync)
    body = form_of(("name=a", b"1"), file_of(data), file_of(b"small", "g"))
    whole = await request(app, *PREDICT, body=body, headers=FORM)
    assert whole.json() == [size > MEBIBYTE, True, size]
    async with exchange(app, *PREDICT, body=None, headers=FORM) as client:
        for start in range(0, len(body), 100_000):
            client.send_body(body[start : start + 100_000], more=True)
        client.send_body(b"")
        assert (await client.response()).json() == whole.json()


async def test_files_that_come_in_turns_keep_their_order() -> None:
    data = [bytes([65 + n]) * (MEBIBYTE + n) for n in range(3)]
    parts = [file_of(one, str(n)) for n, one in enumerate(data)]
    assert [(n, value[3]) for n, value in await read_form(form_of(*parts))] == [
        (str(n), one) for n, one in enumerate(data)
    ]


# --- fields that are missing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (form_of(("name=b", b"1")), FORM),
        (b"b=1", {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async", "stream"])
async def test_a_missing_field_is_a_400_that_names_it(
    kind: str, body: bytes, headers: dict[str, str]
) -> None:
    async def streams(form: Any) -> AsyncIterator[Any]:
        yield form["a"]

    async def answers(form: Any) -> Any:
        return form["a"]

    hook = {"sync": lambda form: form["a"], "async": answers, "stream": streams}[kind]
    response = await request(serve(hook), *PREDICT, body=body, headers=headers)
    assert (response.status, response.json()) == (400, {"error": 'The form has no field "a".'})


async def test_any_other_missing_key_stays_the_programs_fault() -> None:
    async def predict(form: Any) -> Any:
        return {**form}["a"]

    response = await request(serve(predict), *PREDICT, body=form_of(("name=b", b"1")), headers=FORM)
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})


async def test_a_form_without_a_field_is_still_a_mapping() -> None:
    async def predict(form: Any) -> Any:
        assert "a" not in form
        assert (form.get("a"), form.get("a", 5), form.getlist("a")) == (None, 5, [])
        with pytest.raises(KeyError):
            form["a"]
        assert form == FormData([("b", "1")])
        assert FormData([("b", "1")]) == form
        assert form != FormData([("b", "2")])
        return {**form}

    response = await request(serve(predict), *PREDICT, body=form_of(("name=b", b"1")), headers=FORM)
    assert response.json() == {"b": "1"}


# --- what is no form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The form ends before its last boundary."),
        (b"a=1", "The form does not begin with the boundary of its content-type."),
        (b"--y\r\n", "The form does not begin with the boundary of its content-type."),
        (form_of(("name=a", b"1"))[:-5], "The form ends before its last boundary."),
        (form_of(("name=a", b"1"), end=b""), "The form ends before its last boundary."),
        (form_of(("name=a", b"1"), end=b"--x\r\n"), "The form ends before its last boundary."),
        (form_of((b"content-type: a/b", b"1")), "Part 1 of the form has no content-disposition with a name."),
        (form_of(("name=a", b"1"), ("x=1", b"2")), "Part 2 of the form has no content-disposition with a name."),
        (form_of((b"bad header: 1", b"1")), "Part 1 of the form is malformed."),
        (form_of(("name=a", b"1"), (b"content-disposition", b"1")), "Part 2 of the form is malformed."),
        (form_of(("name=a", b"1"), ("name=b", b"\xff")), "Part 2 of the form is not text in utf-8: send what is not text as a file, with a filename."),
        (form_of((b"content-disposition: form-data; name=\xff", b"1")), "Part 1 of the form is not text in utf-8: send what is not text as a file, with a filename."),
        (form_of(("name=_charset_", b"klingon")), "The form has an unknown charset."),
        (form_of(("name=_charset_", b"idna")), "The form has an unknown charset."),
        (form_of(("name=_charset_", b"\xff")), "The form has an unknown charset."),
        (form_of((b"content-disposition: form-data; name=a\r\ncontent-type: a/b; charset=cp99999", b"1")), "The form has an unknown charset."),
    ],
)  # fmt: skip
async def test_a_bad_form_is_400_in_one_sentence(body: bytes, sentence: str) -> None:
    response = await request(serve(predict_seen), *PREDICT, body=body, headers=FORM)
    assert (response.status, response.json()) == (400, {"error": sentence})
    with pytest.raises(InvalidInput):
        await read_form(*(body[i : i + 1] for i in range(len(body))))


@pytest.mark.parametrize(
    ("content_type", "sentence"),
    [
        ("multipart/form-data", "The content-type of the form names no boundary."),
        ("multipart/form-data; boundary=", "The content-type of the form names no boundary."),
        ('multipart/form-data; boundary=""', "The content-type of the form names no boundary."),
        (f"multipart/form-data; boundary={'x' * 300}", "The boundary of the form is too long."),
        ("multipart/form-data; boundary=x; charset=base64", "The form has an unknown charset."),
    ],
)
async def test_a_bad_content_type_is_400_before_the_body_is_asked_for(
    content_type: str, sentence: str
) -> None:
    headers = {"content-type": content_type}
    async with exchange(serve(predict_seen), *PREDICT, body=None, headers=headers) as client:
        response = await client.response()
    assert (response.status, response.json()) == (400, {"error": sentence})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (form_of(*[("name=a", b"1")] * 1001), "A form may have at most 1000 fields and files."),
        (form_of(*[file_of(b"1")] * 1001), "A form may have at most 1000 fields and files."),
        (form_of(("name=a", b"1" * (MEBIBYTE + 1))), "A field of a form may have at most 1048576 bytes; a file may have more."),
        (form_of((f"name={'a' * 20_000}", b"1")), "Part 1 of the form has too many headers, or too long ones."),
        (form_of((b"\r\n".join(b"a%d: 1" % n for n in range(5000)), b"1")), "Part 1 of the form has too many headers, or too long ones."),
        (form_of((b"a" * 20_000 + b": 1", b"1")), "Part 1 of the form has too many headers, or too long ones."),
    ],
)  # fmt: skip
async def test_a_form_with_too_much_in_it_is_413(body: bytes, sentence: str) -> None:
    response = await request(serve(predict_seen), *PREDICT, body=body, headers=FORM)
    assert (response.status, response.json()) == (413, {"error": sentence})
    with pytest.raises(BodyTooLarge):
        await read_form(*(body[i : i + 1000] for i in range(0, len(body), 1000)))


async def test_a_form_may_have_a_thousand_parts_and_a_field_a_mebibyte() -> None:
    assert len(await read_form(form_of(*[("name=a", b"1")] * 999, file_of(b"1")))) == 1000
    [(_, text)] = await read_form(form_of(("name=a", b"1" * MEBIBYTE)))
    assert len(text) == MEBIBYTE


async def test_a_form_needs_python_multipart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    async with exchange(serve(predict_seen), *PREDICT, body=None, headers=FORM) as client:
        response = await client.response()
    assert (response.status, response.json()) == (
        501,
        {
            "error": "A multipart/form-data body needs python-multipart: pip install 'modelserve[forms]'."
        },
    )
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}
    without = await request(serve(predict_seen), *PREDICT, body=b"a=1", headers=urlencoded)
    assert without.body == b"[('a', '1')]"


@pytest.mark.parametrize(
    ("path", "options", "headers", "status"),
    [
        ("/v1/models/zz:predict", {}, {}, 404),
        ("/v1/models/m:predict", {"token": "secret"}, {}, 401),
        ("/v1/models/m:predict", {"limits": Limits(max_body_bytes=10)}, {"content-length": "11"}, 413),
    ],
)  # fmt: skip
async def test_what_is_refused_before_the_form_is_asked_for(
    path: str, options: Any, headers: dict[str, str], status: int
) -> None:
    app = serve(predict_seen, **options)
    async with exchange(app, "POST", path, body=None, headers=FORM | headers) as client:
        assert (await client.response()).status == status


async def test_other_protocols_get_the_bytes() -> None:
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "a", "ce-type": "b"}
    body = form_of(("name=a", b"1"))

    async def predict(payload: Any) -> Any:
        return payload

    response = await request(serve(predict), *PREDICT, body=body, headers=FORM | event)
    assert (response.status, response.body) == (200, body)
    v2 = await request(serve(predict), "POST", "/v2/models/m/infer", body=body, headers=FORM)
    assert (v2.status, v2.json()["error"][:27]) == (400, "Unrecognized request format")


# --- limits and coding --------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_a_form_may_have_a_content_coding(coding: str) -> None:
    body = form_of(("name=a", b"1"), file_of(b"z" * (2 * MEBIBYTE)))
    sent = gzip.compress(body) if coding == "gzip" else body

    def predict(form: Any) -> Any:
        return [form["a"], form["f"].size, form["f"].file._rolled]

    headers = FORM | {"content-encoding": coding}
    response = await request(serve(predict), *PREDICT, body=sent, headers=headers)
    assert response.json() == ["1", 2 * MEBIBYTE, True]
    small = serve(predict, limits=Limits(max_body_bytes=MEBIBYTE))
    assert (await request(small, *PREDICT, body=sent, headers=headers)).status == 413


async def test_a_form_over_the_limit_is_413_as_soon_as_it_is() -> None:
    app = serve(predict_seen, limits=Limits(max_body_bytes=100))
    start = form_of(file_of(b"x"), end=b"")[:-3]
    async with exchange(app, *PREDICT, body=None, headers=FORM) as client:
        client.send_body(start, more=True)
        client.send_body(b"x" * (100 - len(start)), more=True)
        await anyio.wait_all_tasks_blocked()
        assert app.serving.admission.budget.held == 100
        client.send_body(b"x", more=True)
        response = await client.response()
        assert response.json() == {"error": "The request body is larger than 100 bytes."}
        await client.ended()
    assert app.serving.admission.budget.held == 0


async def test_a_form_counts_while_it_is_uploaded_and_while_it_waits() -> None:
    started, may_end = anyio.Event(), anyio.Event()

    async def predict(form: Any) -> Any:
        started.set()
        await may_end.wait()
        return form["f"].size

    app = serve(predict, limits=Limits(concurrency=1, max_queued_bytes=3 * MEBIBYTE))
    budget, body = app.serving.admission.budget, form_of(file_of(bytes(2 * MEBIBYTE)))
    async with (
        exchange(app, *PREDICT, body=body, headers=FORM) as first,
        exchange(app, *PREDICT, body=None, headers=FORM) as second,
    ):
        await started.wait()
        second.send_body(body)
        while budget.held != len(body):  # the first runs and holds nothing
            await anyio.lowlevel.checkpoint()
        refused = await request(app, *PREDICT, body=body, headers=FORM)
        assert refused.status == 503
        may_end.set()
        assert (await first.response()).json() == (await second.response()).json() == 2 * MEBIBYTE
    assert budget.held == 0


# --- files are closed, whatever ends the request ------------------------------------------------


class Seen:
    """Keeps the uploads that a hook was given."""

    def __init__(self) -> None:
        self.files: list[Any] = []
        self.open_at_the_end: list[bool] = []

    def take(self, form: Any) -> None:
        self.files += [upload.file for upload in form.getlist("f")]

    def note(self) -> None:
        self.open_at_the_end += [not file.closed for file in self.files]

    @property
    def closed(self) -> list[bool]:
        return [file.closed for file in self.files]


BOTH = form_of(file_of(b"small"), file_of(bytes(MEBIBYTE + 1)))


@pytest.mark.parametrize(
    "ends", ["result", "exception", "refusal", "stream", "sync stream", "empty", "response"]
)
async def test_files_are_closed_at_the_end(ends: str) -> None:
    files = Seen()

    async def answers(form: Any) -> Any:
        files.take(form)
        files.note()
        if ends == "exception":
            raise KeyError("x")
        if ends == "refusal":
            raise InferenceError("no", 422)
        if ends == "response":
            from starlette.responses import StreamingResponse

            return StreamingResponse(iter([form["f"].read(2)]))
        return None if ends == "empty" else {"size": form["f"].size}

    async def streams(form: Any) -> AsyncIterator[Any]:
        files.take(form)
        try:
            while data := await form["f"].aread(400_000):
                yield {"size": len(data)}
        finally:
            files.note()

    def streams_sync(form: Any) -> Iterator[Any]:
        files.take(form)
        try:
            while data := form["f"].read(400_000):
                yield {"size": len(data)}
        finally:
            files.note()

    hook = {"stream": streams, "sync stream": streams_sync}.get(ends, answers)
    response = await request(serve(hook), *PREDICT, body=BOTH, headers=FORM)
    assert response.status == {"exception": 500, "refusal": 422}.get(ends, 200)
    if "stream" in ends:
        assert len(response.chunks) >= 3
    assert (files.closed, files.open_at_the_end) == ([True, True], [True, True])


@pytest.mark.parametrize("ends", ["hang_up", "timeout", "drain"])
@pytest.mark.parametrize("kind", ["value", "stream"])
async def test_files_are_closed_where_a_request_ends_early(ends: str, kind: str) -> None:
    files = Seen()

    async def waits(form: Any) -> Any:
        files.take(form)
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            files.note()

    async def streams(form: Any) -> AsyncIterator[Any]:
        yield {"size": form["f"].size}
        await waits(form)

    limits = Limits(first_item_timeout=0.3, idle_timeout=0.3) if ends == "timeout" else None
    app = serve(waits if kind == "value" else streams, limits=limits)
    async with exchange(app, *PREDICT, body=BOTH, headers=FORM) as client:
        with anyio.fail_after(20):
            while not files.files:
                await anyio.lowlevel.checkpoint()
        if ends == "hang_up":
            client.hang_up()
        elif ends == "drain":
            from modelserve.errors import ServerShuttingDown

            app.serving.flights.cancel_all(ServerShuttingDown, cleanup_cap=1)
        await client.ended()
    assert (files.closed, files.open_at_the_end) == ([True, True], [True, True])


async def test_files_are_closed_where_a_request_is_refused_after_its_upload() -> None:
    may_end = anyio.Event()

    async def predict(form: Any) -> Any:
        await may_end.wait()

    app = serve(predict, limits=Limits(concurrency=1, queue=0))
    async with exchange(app, *PREDICT, json=[]):
        await anyio.wait_all_tasks_blocked()
        assert (await request(app, *PREDICT, body=BOTH, headers=FORM)).status == 503
        may_end.set()
    assert app.serving.admission.budget.held == 0


@pytest.mark.parametrize("ends", ["hang_up", "too late", "too large", "malformed", "host"])
async def test_an_upload_that_ends_early_leaves_nothing(ends: str) -> None:
    """A file that nobody has closed would be a ResourceWarning, and fail the test."""
    app = serve(predict_seen, limits=Limits(max_body_bytes=4 * MEBIBYTE))
    headers = FORM | ({"x-request-timeout-seconds": "0.2"} if ends == "too late" else {})
    body = form_of(("name=a", b"1"), file_of(bytes(3 * MEBIBYTE)), end=b"")
    threads = threading.active_count()
    async with anyio.create_task_group() as group:
        client = Exchange(app, scope_of(headers), timeout=10)
        for start in range(0, len(body), MEBIBYTE):
            client.send_body(body[start : start + MEBIBYTE], more=True)
        group.start_soon(client.run)
        with anyio.fail_after(10):
            while app.serving.admission.budget.held < len(body) and ends != "too late":
                await anyio.lowlevel.checkpoint()
        if ends == "hang_up":
            client.hang_up()
        elif ends == "too large":
            client.send_body(bytes(MEBIBYTE), more=True)
            assert (await client.response()).status == 413
        elif ends == "malformed":
            client.send_body(b"--x\r\n:\r\n", more=True)
            assert (await client.response()).status == 400
        elif ends == "too late":
            assert (await client.response()).status == 408
        else:
            group.cancel_scope.cancel()
        await client.ended()
    assert app.serving.admission.budget.held == 0
    assert app.serving.decoders.running == []
    assert threading.active_count() <= threads + 1  # the one that writes


def scope_of(headers: dict[str, str]) -> dict[str, Any]:
    """Return the scope of a request, for a client that runs in a task of the test's own."""
    method, path = PREDICT
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


async def test_a_reader_closes_files_in_memory_and_on_disk() -> None:
    reader = FormReader(b"x", "utf-8", Workers(1))
    await reader.feed(BOTH)
    await reader.finish()
    assert reader.payload is not None
    uploads = reader.payload.getlist("f")
    assert [upload.file._rolled for upload in uploads] == [False, True]  # type: ignore[union-attr]
    reader.close()
    reader.close()
    assert [upload.file.closed for upload in uploads] == [True, True]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="closed file"):
        await uploads[1].aread()  # type: ignore[union-attr]


async def test_a_large_form_in_one_message_does_not_hold_up_others() -> None:
    body = form_of(file_of(b"\r\n--y" * (3 * MEBIBYTE)))
    app = serve(lambda form: form["f"].size)
    turns = 0
    async with exchange(app, *PREDICT, body=body, headers=FORM) as client:
        while not client.over:
            await anyio.lowlevel.checkpoint()
            turns += 1
        assert (await client.response()).json() == 15 * MEBIBYTE
    assert turns > 30


async def test_fields_that_take_long_to_decode_do_not_hold_up_others() -> None:
    text = "€ä".encode("gb18030") * 150_000
    body = form_of(("name=_charset_", b"gb18030"), *[("name=a", text)] * 20)
    app = serve(lambda form: len(form.getlist("a")[-1]))
    turns = 0
    async with exchange(app, *PREDICT, body=None, headers=FORM) as client:
        client.send_body(body)
        while not client.over:
            await anyio.lowlevel.checkpoint()
            turns += 1
        assert (await client.response()).json() == 300_000
    assert turns > 30
