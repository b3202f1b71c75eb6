"""Responses of starlette's that hooks return: status, headers and body as they are."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.responses import (
    FileResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.testing import Cut, exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
INFER = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}


def serve(predict: Any, limits: Limits | None = None, **hooks: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return ModelServer([model], limits=limits)


def returning(response: Response, *, is_async: bool = True) -> ModelServer:
    async def asynchronous(payload: Any) -> Any:
        return response

    return serve(asynchronous if is_async else lambda payload: response)


def with_cookie() -> Response:
    response = Response(b"x", media_type="image/png")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    ("response", "status", "headers", "body"),
    [
        (
            Response(b"\x89PNG", media_type="image/png"),
            200,
            [("content-length", "4"), ("content-type", "image/png")],
            b"\x89PNG",
        ),
        (
            JSONResponse({"why": "age"}, status_code=422, headers={"x-a": "1"}),
            422,
            [("x-a", "1"), ("content-length", "13"), ("content-type", "application/json")],
            b'{"why":"age"}',
        ),
        (RedirectResponse("/x"), 307, [("content-length", "0"), ("location", "/x")], b""),
        (Response(status_code=204), 204, [], b""),
        (
            with_cookie(),
            200,
            [
                ("content-length", "1"),
                ("content-type", "image/png"),
                ("set-cookie", "a=1; Path=/; SameSite=lax"),
                ("set-cookie", "b=2; Path=/; SameSite=lax"),
            ],
            b"x",
        ),
    ],
)
async def test_a_response_is_sent_as_it_is(
    response: Response, status: int, headers: Any, body: bytes, is_async: bool
) -> None:
    answer = await request(returning(response, is_async=is_async), *PREDICT, json=[])
    assert (answer.status, answer.body) == (status, body)
    sent = [pair for pair in answer.headers.items() if pair[0] != "x-request-id"]
    assert sorted(sent) == sorted(headers)
    assert len(answer.headers.getlist("x-request-id")) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/m:explain",
        "/v2/models/m/infer",
        "/v2/models/m/infer_stream",
        "/v2/models/m/generate_stream",
    ],
)
async def test_every_route_sends_it(path: str) -> None:
    async def hook(payload: Any) -> Any:
        return Response(b"a,b", status_code=201, media_type="text/csv")

    app = serve(hook, explain=hook)
    answer = await request(app, "POST", path, json=INFER | {"text_input": "x"})
    assert (answer.status, answer.body) == (201, b"a,b")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"


async def test_headers_of_the_model_are_added() -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        response_headers["x-model"] = "7"
        response_headers["content-type"] = "text/plain"
        return Response(b"x", media_type="image/png", headers={"connection": "x"})

    answer = await request(serve(predict), *PREDICT, json=[])
    assert (answer.headers["x-model"], answer.headers["content-type"]) == ("7", "image/png")
    assert "connection" not in answer.headers


async def chunks() -> AsyncIterator[str | bytes]:
    yield "ä"
    yield b"b"


def sync_chunks() -> Iterator[bytes]:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize(
    ("content", "body"), [(chunks, ["ä".encode(), b"b"]), (sync_chunks, [b"a", b"b"])]
)
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/event-stream"])
async def test_a_stream_is_raw_and_of_its_type(content: Any, body: Any, accept: str) -> None:
    async def predict(payload: Any) -> Any:
        return StreamingResponse(content(), status_code=206, media_type="audio/wav")

    answer = await request(serve(predict), *PREDICT, json=[], headers={"accept": accept})
    assert (answer.status, answer.chunks) == (206, body)
    assert answer.headers["content-type"] == "audio/wav"
    assert "content-length" not in answer.headers


async def test_a_failure_before_the_first_part_is_a_status() -> None:
    async def content() -> AsyncIterator[bytes]:
        raise InvalidInput("no")
        yield b""

    async def predict(payload: Any) -> Any:
        return StreamingResponse(content())

    answer = await request(serve(predict), *PREDICT, json=[])
    assert (answer.status, answer.json()) == (400, {"error": "no"})


async def test_a_failure_later_cuts_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("broken")

    async def predict(payload: Any) -> Any:
        return StreamingResponse(content())

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        with pytest.raises(Cut):
            await client.chunk()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_the_stream_of_a_client_that_leaves_is_closed() -> None:
    closed: list[str] = []

    async def content() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(0.01)
            closed.append("closed")

    async def predict(payload: Any) -> Any:
        return StreamingResponse(content())

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        client.hang_up()
        await client.ended()
    assert closed == ["closed"]


async def test_a_stream_that_pauses_too_long_is_ended() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"a"
        await anyio.sleep_forever()

    async def predict(payload: Any) -> Any:
        return StreamingResponse(content())

    app = serve(predict, Limits(idle_timeout=0.3))
    with pytest.raises(Cut):
        await request(app, *PREDICT, json=[])


async def test_background_tasks_run_after_the_answer() -> None:
    done: list[str] = []
    seen = anyio.Event()

    async def task() -> None:
        await seen.wait()
        done.append("done")

    response = Response(b"x", background=BackgroundTask(task))
    async with exchange(returning(response), *PREDICT, json=[]) as client:
        assert (await client.response()).body == b"x"
        assert done == []
        seen.set()
        await client.ended()
    assert done == ["done"]


async def test_background_tasks_of_a_client_that_has_left_run_to_their_end() -> None:
    done: list[str] = []

    async def task() -> None:
        await anyio.sleep(0.05)
        done.append("done")

    response = Response(b"x", background=BackgroundTask(task))
    async with exchange(returning(response), *PREDICT, json=[]) as client:
        assert (await client.response()).body == b"x"
        client.hang_up()
        await client.ended()
    assert done == ["done"]


async def test_a_file_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 200_000)
    extensions: dict[str, Any] = {"http.response.pathsend": {}}
    app = returning(FileResponse(path, filename="a.txt"))
    answer = await request(app, *PREDICT, json=[], extensions=extensions)
    assert answer.body == b"x" * 200_000
    assert answer.headers["content-length"] == "200000"
    assert answer.headers["content-disposition"] == 'attachment; filename="a.txt"'


async def test_a_header_that_cannot_be_sent_is_an_error() -> None:
    response = Response(b"x")
    response.raw_headers.append((b"x-a", b"1\r\n2"))
    assert (await request(returning(response), *PREDICT, json=[])).status == 500


async def test_a_response_without_an_end_is_an_error() -> None:
    class Silent(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

    assert (await request(returning(Silent()), *PREDICT, json=[])).status == 500


async def test_a_hook_after_it_gets_the_response() -> None:
    async def predict(payload: Any) -> Any:
        return Response(b"x")

    async def postprocess(result: Any) -> Any:
        return {"body": result.body.decode()}

    answer = await request(serve(predict, postprocess=postprocess), *PREDICT, json=[])
    assert answer.json() == {"body": "x"}
