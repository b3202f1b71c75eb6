"""Requests that wait for a load before their body is read: their clients may leave meanwhile."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.testing import exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
JSON = {"content-type": "application/json"}


class Waiting(Model):
    """A model whose load a test lets go on."""

    def __init__(self, **options: Any) -> None:
        super().__init__("m")
        self.began, self.release = anyio.Event(), anyio.Event()
        self.heartbeat = 0.01
        self.limits = Limits(**options)
        self.payloads: list[Any] = []

    async def load(self) -> None:
        self.began.set()
        await self.release.wait()

    async def predict(self, payload: Any) -> Any:
        self.payloads.append(payload)
        return payload

    async def explain(self, payload: Any) -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(0.05)
        yield 2


async def until_over(client: Any) -> None:
    with anyio.fail_after(10):
        await client.ended()


@pytest.mark.parametrize("parts", [[b"[1]"], [b"[", b"1", b"]"], [b"[", b"1"], []])
async def test_who_leaves_while_the_model_loads_ends_its_request(parts: list[bytes]) -> None:
    model = Waiting()
    app = ModelServer([model])
    async with exchange(app, *PREDICT, body=None, headers=JSON) as client:
        for part in parts:
            client.send_body(part, more=not part.endswith(b"]"))
        await model.began.wait()
        await anyio.wait_all_tasks_blocked()
        assert not client.over
        client.hang_up()
        await until_over(client)
    assert app.serving.statistics().in_flight == 0
    assert app.serving.statistics().loading == 1
    with anyio.fail_after(10):
        await app.serving.drain()
    text = (await request(app, "GET", "/metrics")).body.decode()
    assert 'status="499"' in text
    model.release.set()
    assert model.payloads == []


@pytest.mark.parametrize("size", [0, 10, 1 << 20])
@pytest.mark.parametrize("later", [0, 1, 3])
async def test_what_was_read_ahead_is_the_body(size: int, later: int) -> None:
    model = Waiting()
    app = ModelServer([model])
    parts = [b'["', *[b"x" * size] * 4, b'"]']
    async with exchange(app, *PREDICT, body=None, headers=JSON) as client:
        for part in parts[: len(parts) - later]:
            client.send_body(part, more=part is not parts[-1])
        await model.began.wait()
        await anyio.wait_all_tasks_blocked()
        model.release.set()
        await anyio.wait_all_tasks_blocked()
        for part in parts[len(parts) - later :]:
            client.send_body(part, more=part is not parts[-1])
        assert (await client.response()).json() == ["x" * size * 4]
    assert app.serving.admission.budget.held == 0


async def test_a_body_over_the_limit_is_not_read_ahead_whole() -> None:
    model = Waiting(max_body_bytes=10)
    app = ModelServer([model])
    async with exchange(app, *PREDICT, body=None, headers=JSON) as client:
        for _ in range(100):
            client.send_body(b"12345678", more=True)
        await model.began.wait()
        await anyio.wait_all_tasks_blocked()
        assert app.serving.admission.budget.held <= 16
        model.release.set()
        assert (await client.response()).status == 413
    assert app.serving.admission.budget.held == 0


async def test_a_full_budget_does_not_keep_a_request_from_its_body() -> None:
    model = Waiting()
    app = ModelServer([model], limits=Limits(max_queued_bytes=4))
    async with (
        exchange(app, *PREDICT, json=["aaaa"]) as first,
        exchange(app, *PREDICT, json=["bbbb"]) as second,
    ):
        await model.began.wait()
        await anyio.wait_all_tasks_blocked()
        model.release.set()
        assert (await first.response()).json() == ["aaaa"]
        assert (await second.response()).json() == ["bbbb"]
    assert app.serving.admission.budget.held == 0


async def test_who_leaves_in_the_moment_the_load_ends_gives_back_what_it_held() -> None:
    held = []
    for tries in range(60):
        model = Waiting()
        app = ModelServer([model])
        async with exchange(app, *PREDICT, json=["x" * 1000]) as client:
            await model.began.wait()
            await anyio.wait_all_tasks_blocked()
            model.release.set()
            for _ in range(tries % 6):  # so that either may come first
                await anyio.lowlevel.checkpoint()
            client.hang_up()
            await until_over(client)
        held.append(app.serving.admission.budget.held)
    assert set(held) == {0}


async def test_a_stream_that_has_waited_has_its_heartbeat_and_sees_its_client_leave() -> None:
    model = Waiting()
    app = ModelServer([model])
    sse = {"accept": "text/event-stream"}
    async with exchange(app, "POST", "/v1/models/m:explain", json=[], headers=sse) as client:
        await model.began.wait()
        model.release.set()
        assert b":" in (await client.response()).body
    async with exchange(app, "POST", "/v1/models/m:explain", json=[], headers=sse) as client:
        await client.head()
        client.hang_up()
        await until_over(client)


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize("body", [b"{}", None])
async def test_who_asks_for_a_load_and_leaves_ends_its_request(
    verb: str, body: bytes | None
) -> None:
    model = Waiting()
    app = ModelServer([model], control=True)
    assert (await request(app, "GET", "/")).status == 200
    await model.began.wait()
    asked = ("POST", f"/v2/repository/models/m/{verb}")
    async with exchange(app, *asked, body=body) as client, exchange(app, *asked) as other:
        await anyio.sleep(0.05)
        client.hang_up()
        await until_over(client)
        assert app.serving.statistics().in_flight == 1
        model.release.set()
        assert (await other.response()).status in (200, 404)
    if verb == "load":
        assert model.ready
