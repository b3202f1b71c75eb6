"""What is told of a load: in the log, and to a client that asks for the model meanwhile."""

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from modelserve import Model, ModelRepository, ModelServer
from modelserve.testing import lifespan, request

pytestmark = pytest.mark.anyio


class Slow(Model):
    """A model whose load lasts until it is released, and ends as it is told to."""

    def __init__(self, name: str, outcome: Any = True) -> None:
        super().__init__(name)
        self.outcome = outcome
        self.began, self.release = anyio.Event(), anyio.Event()

    async def load(self) -> Any:
        self.began.set()
        await self.release.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def predict(self, payload: Any) -> Any:
        return payload


async def sentence(app: ModelServer, method: str, path: str) -> str:
    response = await request(app, method, path, body=b"[]")
    assert response.status == 503
    return str(response.json()["error"])


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [(RuntimeError("no disk"), " It failed to load."), (False, "")],
)
async def test_a_client_can_tell_loading_from_failed(outcome: Any, ending: str) -> None:
    model = Slow("m", outcome)
    app = ModelServer([model])
    places = [
        ("POST", "/v1/models/m:predict"),
        ("GET", "/v1/models/m"),
        ("GET", "/v2/models/m/ready"),
    ]
    async with lifespan(app):
        with anyio.fail_after(5):
            await model.began.wait()
            for place in places:
                text = await sentence(app, *place)
                assert text == "Model with name m is not ready. It is loading."
            model.release.set()
            await app.serving.loading.finished()
        for place in places:
            assert await sentence(app, *place) == f"Model with name m is not ready.{ending}"


async def test_a_model_that_is_loaded_again_after_a_failure_is_loading() -> None:
    model = Slow("m", RuntimeError("no disk"))
    model.release.set()
    app = ModelServer([model], control=True)
    async with lifespan(app), anyio.create_task_group() as group:
        await app.serving.loading.finished()
        model.began, model.release, model.outcome = anyio.Event(), anyio.Event(), True
        group.start_soon(request, app, "POST", "/v2/repository/models/m/load")
        with anyio.fail_after(5):
            await model.began.wait()
            text = await sentence(app, "POST", "/v1/models/m:predict")
        assert text == "Model with name m is not ready. It is loading."
        model.release.set()


@pytest.mark.parametrize(
    ("outcome", "level", "text"),
    [
        (True, "INFO", "Model m is loaded ("),
        (None, "INFO", "Model m is loaded ("),
        (False, "WARNING", "Model m is not ready: its load() returned False"),
        (RuntimeError("no disk"), "ERROR", "Loading model m failed"),
    ],
)
async def test_a_load_has_a_line_at_its_beginning_and_one_at_its_end(
    outcome: Any, level: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Slow("m", outcome)
    model.release.set()
    app = ModelServer([model])
    app.add_model(lambda payload: payload, "function")
    with caplog.at_level(logging.INFO, "modelserve"):
        await app.serving.loading.finished()
    first, last = caplog.records
    assert (first.levelname, first.getMessage()) == ("INFO", "Model m is loading")
    assert last.levelname == level
    assert last.getMessage().startswith(text)


async def test_what_a_repository_builds_is_told_of_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m").mkdir()
    text = "from modelserve import Model\n\nclass M(Model):\n    async def predict(self, payload): ...\n"
    (tmp_path / "m" / "model.py").write_text(text)
    app = ModelServer(repository=ModelRepository(tmp_path))
    with caplog.at_level(logging.INFO, "modelserve"):
        await app.serving.loading.finished()
        for _ in range(2):
            await app.serving.loading.load("m")
    lines = [record.getMessage().partition(" (")[0] for record in caplog.records]
    assert lines == ["Model m is loading", "Model m is loaded"] * 3
