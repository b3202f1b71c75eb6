"""A repository, KServe's methods, and a directory behind a server, also loaded over HTTP."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.errors import ModelNotReady
from modelserve.models.repository import MODEL_MOUNT_DIRS, ModelRepository
from modelserve.testing import exchange, lifespan, request

ROOT = Path(__file__).parents[2]

ECHO = """
from modelserve import Model

class Echo(Model):
    def predict(self, payload):
        return {"name": self.name, "answer": 1}
"""


class Log:
    """What the models of a test have done, and when they may continue."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.release = threading.Event()
        self.began = threading.Event()
        self.fail = False


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A place that the files of a test's models import."""
    record = Log()
    monkeypatch.setitem(sys.modules, "log_of_test", record)  # type: ignore[arg-type]
    yield record
    record.release.set()


def put(folder: Path, name: str, text: str = ECHO, file: str = "model.py") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / name / file
    path.write_text(text)
    return path


def answer_of(model: Any) -> Any:
    return model.predict({})


# --- KServe's methods ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_models_are_put_in_and_taken_out() -> None:
    repository = ModelRepository()
    assert repository.models_dir == MODEL_MOUNT_DIRS == "/mnt/models"
    one, stopped = Model("one"), []
    vars(one)["stop"] = lambda: stopped.append("stop")
    vars(one)["stop_engine"] = lambda: stopped.append("stop_engine")
    repository.update(one)
    repository.update(one, "another")
    assert repository.get_models() == {"one": one, "another": one}
    assert repository.get_model("one") is one
    assert repository.get_model("two") is None
    assert not await repository.is_model_ready("one")
    assert not await repository.is_model_ready("two")
    one.load()
    assert await repository.is_model_ready("one")
    vars(one)["healthy"] = lambda: False
    assert not await repository.is_model_ready("one")
    repository.unload("one")
    assert (repository.get_model("one"), stopped) == (None, ["stop"])
    one.engine = True
    repository.unload("another")
    assert stopped == ["stop", "stop_engine", "stop"]
    with pytest.raises(KeyError, match="model with name one does not exist"):
        repository.unload("one")


@pytest.mark.anyio
async def test_models_of_the_directory_are_loaded(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    (tmp_path / "lost+found").mkdir()
    repository = ModelRepository()
    repository.set_models_dir(str(tmp_path))
    repository.load_models()
    assert list(repository.get_models()) == ["a", "b"]
    assert await repository.is_model_ready("a")
    assert answer_of(repository.get_model("b")) == {"name": "b", "answer": 1}


def test_a_load_that_says_no_leaves_the_model_before(tmp_path: Path) -> None:
    put(tmp_path, "m")
    repository = ModelRepository(tmp_path)
    assert repository.load_model("m") is True
    before = repository.get_model("m")
    put(tmp_path, "m", ECHO + "    def load(self): return False")
    assert repository.load_model("m") is False
    assert repository.get_model("m") is before


def test_an_async_load_is_left_to_the_server(tmp_path: Path) -> None:
    put(tmp_path, "m", ECHO + "    async def load(self): self.loaded = True")
    repository = ModelRepository(tmp_path)
    assert repository.load("m") is False
    assert repository.get_model("m").name == "m"


def test_a_repository_is_pickled_without_its_server() -> None:
    repository = ModelRepository()
    repository.update(Model("m"))
    server = ModelServer()
    server.serving.follow(repository)
    copy = pickle.loads(pickle.dumps(repository))
    assert copy.get_model("m").name == "m"
    assert copy._server is None


# --- a directory behind a server ----------------------------------------------------------------


async def load(app: ModelServer, name: str) -> tuple[int, Any]:
    response = await request(app, "POST", f"/v2/repository/models/{name}/load", json={})
    return response.status, response.json()


async def unload(app: ModelServer, name: str) -> tuple[int, Any]:
    response = await request(app, "POST", f"/v2/repository/models/{name}/unload")
    return response.status, response.json()


async def index(app: ModelServer) -> dict[str, tuple[str, str]]:
    rows = (await request(app, "POST", "/v2/repository/index")).json()
    return {row["name"]: (row["state"], row["reason"]) for row in rows}


async def ask(app: ModelServer, name: str) -> Any:
    return (await request(app, "POST", f"/v1/models/{name}:predict", json={})).json()


async def status(app: ModelServer, path: str) -> int:
    return (await request(app, "GET", path)).status


async def until(condition: Any) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110  (a thread sets it)
            await anyio.sleep(0.001)


async def until_loaded(app: ModelServer) -> None:
    await until(lambda: not app.serving.statistics().loading)


@pytest.mark.anyio
async def test_models_of_the_directory_are_served(tmp_path: Path, record: Log) -> None:
    put(tmp_path, "a")
    put(tmp_path, "slow", f"import log_of_test as t\nt.began.set()\nt.release.wait(5)\n{ECHO}")
    app = ModelServer([Model("own")], repository=ModelRepository(tmp_path))
    async with lifespan(app):
        await until(record.began.is_set)
        await until(lambda: app.serving.statistics().models["a"].state == "READY")
        assert await status(app, "/") == 200
        assert await status(app, "/v2/health/ready") == 503
        assert await status(app, "/v1/models/slow") == 503
        assert await ask(app, "a") == {"name": "a", "answer": 1}
        models = (await request(app, "GET", "/v1/models")).json()
        assert models == {"models": ["own", "a", "slow"]}
        assert await index(app) == {
            "own": ("READY", ""),
            "a": ("READY", ""),
            "slow": ("LOADING", ""),
        }
        record.release.set()
        await until_loaded(app)
        assert await status(app, "/v2/health/ready") == 200
        assert await ask(app, "slow") == {"name": "slow", "answer": 1}


@pytest.mark.anyio
async def test_a_name_that_the_application_has_already_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a")
    own = Model("a")
    own.predict = lambda payload: "own"  # type: ignore[method-assign,assignment]
    app = ModelServer([own], repository=ModelRepository(tmp_path))
    told = "The model a of the repository is not served: the application has another a"
    assert caplog.messages == [told]
    async with lifespan(app):
        answer = await request(app, "POST", "/v1/models/a:predict", body=b"{}")
        assert answer.body == b"own"


def test_what_a_repository_has_loaded_itself_needs_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a")
    repository = ModelRepository(tmp_path)
    repository.load_models()
    ModelServer(repository=repository).serving.use(repository)  # as --model-dir does
    ModelServer(repository=ModelRepository(tmp_path)).serving.use(ModelRepository(tmp_path))
    assert caplog.messages == []


@pytest.mark.anyio
async def test_without_a_lifespan_the_first_request_waits_for_the_load(tmp_path: Path) -> None:
    put(tmp_path, "a")
    app = ModelServer(repository=ModelRepository(tmp_path))
    assert await ask(app, "a") == {"name": "a", "answer": 1}


@pytest.mark.anyio
async def test_a_model_that_cannot_be_made_leaves_the_others_served(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "bad", "1 / 0")
    app = ModelServer(repository=ModelRepository(tmp_path))
    async with lifespan(app):
        await until_loaded(app)
        assert await ask(app, "a") == {"name": "a", "answer": 1}
        assert await ask(app, "bad") == {
            "error": "Model with name bad is not ready. It failed to load."
        }
        assert (await index(app))["bad"] == ("UNAVAILABLE", "loading failed")
        assert await load(app, "bad") == (503, {"error": "Model with name bad is not ready."})
        assert await status(app, "/v2/health/ready") == 503
        put(tmp_path, "bad")
        assert await load(app, "bad") == (200, {"name": "bad", "load": True})
        assert (await index(app))["bad"] == ("READY", "")
        assert await status(app, "/v2/health/ready") == 200


@pytest.mark.anyio
async def test_why_a_load_failed_is_shown_when_debugging(tmp_path: Path) -> None:
    put(tmp_path, "bad", "1 / 0")
    app = ModelServer(repository=ModelRepository(tmp_path), debug=True)
    assert await load(app, "bad") == (
        503,
        {
            "error": "Model with name bad is not ready. Error type: <class 'ZeroDivisionError'> "
            "error msg: division by zero"
        },
    )


@pytest.mark.anyio
async def test_a_model_that_appears_later_is_loaded_by_name(tmp_path: Path) -> None:
    app = ModelServer(repository=ModelRepository(tmp_path))
    async with lifespan(app):
        assert await load(app, "late") == (404, {"error": "Model with name late does not exist."})
        put(tmp_path, "late")
        assert await index(app) == {"late": ("UNAVAILABLE", "")}
        assert await ask(app, "late") == {"error": "Model with name late does not exist."}
        assert await load(app, "late") == (200, {"name": "late", "load": True})
        assert await ask(app, "late") == {"name": "late", "answer": 1}
        assert await index(app) == {"late": ("READY", "")}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2fm", "%2e%2e%2fm", "..%5cm", "%2fetc", "a%2fb", "m%00", "%00", ".hidden"],
)
@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_no_name_escapes_over_http(name: str, verb: str, tmp_path: Path, record: Log) -> None:
    text = f"import log_of_test as t\nt.log.append('escaped')\n{ECHO}"
    for place in ("m", "etc", "dir/a/b", "dir/.hidden"):
        put(tmp_path, place, text)
    (tmp_path / "model.py").write_text(text)
    app = ModelServer(repository=ModelRepository(tmp_path / "dir"))
    async with lifespan(app):
        path = f"/v2/repository/models/{name}/{verb}"
        assert (await request(app, "POST", path)).status == 404
    assert record.log == []


SERVING = """
import log_of_test as t
from modelserve import Model

class Serving(Model):
    def start(self):
        t.log.append("start 1")
    def load(self):
        t.log.append("load 1")
        return True
    async def predict(self, payload):
        yield "1"
        t.log.append("predict 1")
        import anyio
        while "continue 1" not in t.log:
            await anyio.sleep(0.001)
        yield "1"
    def stop(self):
        t.log.append("stop 1")
"""


@pytest.mark.anyio
async def test_a_model_loaded_again_takes_over_from_the_old_one(
    tmp_path: Path, record: Log
) -> None:
    put(tmp_path, "m", SERVING)
    app = ModelServer(repository=ModelRepository(tmp_path))
    async with lifespan(app):
        await until_loaded(app)
        put(tmp_path, "m", SERVING.replace("1", "2"))
        async with exchange(app, "POST", "/v1/models/m:predict", json={}) as old:
            await old.head()
            assert await old.chunk() == b"1"
            assert await load(app, "m") == (200, {"name": "m", "load": True})
            record.log.append("continue 2")
            new = await request(app, "POST", "/v1/models/m:predict", json={})
            assert new.body == b"22"
            assert "stop 1" not in record.log
            record.log.append("continue 1")
            assert await old.chunk() == b"1"
            assert await old.chunk() is None
        await until(lambda: "stop 1" in record.log)
        assert record.log.index("predict 1") < record.log.index("stop 1")
        assert record.log[:2] == ["start 1", "load 1"]
        assert "stop 2" not in record.log
    assert record.log.count("stop 1") == record.log.count("stop 2") == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        ECHO + "    def load(self): 1 / 0",
        ECHO + "    def load(self): return False",
        ECHO + "    def start(self): 1 / 0",
    ],
)
async def test_a_load_that_fails_leaves_what_was_serving(text: str, tmp_path: Path) -> None:
    put(tmp_path, "m")
    repository = ModelRepository(tmp_path)
    app = ModelServer(repository=repository)
    async with lifespan(app):
        await until_loaded(app)
        before = repository.get_model("m")
        put(tmp_path, "m", text)
        assert await load(app, "m") == (503, {"error": "Model with name m is not ready."})
        assert await ask(app, "m") == {"name": "m", "answer": 1}
        assert await status(app, "/v2/health/ready") == 200
        assert repository.get_model("m") is before


@pytest.mark.anyio
async def test_while_a_model_loads_it_and_the_others_are_served(
    tmp_path: Path, record: Log
) -> None:
    put(tmp_path, "m")
    put(tmp_path, "other")
    app = ModelServer(repository=ModelRepository(tmp_path))
    async with lifespan(app):
        await until_loaded(app)
        put(tmp_path, "m", ECHO.replace("1", "2")
            + "    def load(self):\n        import log_of_test as t\n"
            "        t.log.append('load')\n        t.began.set()\n        t.release.wait(5)\n")  # fmt: skip
        async with anyio.create_task_group() as group:
            group.start_soon(load, app, "m")
            await until(record.began.is_set)
            group.start_soon(load, app, "m")
            assert await ask(app, "m") == {"name": "m", "answer": 1}
            assert await ask(app, "other") == {"name": "other", "answer": 1}
            assert await load(app, "other") == (200, {"name": "other", "load": True})
            record.release.set()
        assert record.log == ["load"]  # one for all that asked while it ran
        assert await load(app, "m") == (200, {"name": "m", "load": True})
        assert record.log == ["load", "load"]
        assert await ask(app, "m") == {"name": "m", "answer": 2}


@pytest.mark.anyio
async def test_a_client_that_leaves_does_not_stop_a_load(tmp_path: Path, record: Log) -> None:
    app = ModelServer(repository=ModelRepository(tmp_path))
    put(tmp_path, "m", f"import log_of_test as t\nt.began.set()\nt.release.wait(5)\n{ECHO}")
    async with lifespan(app):
        async with exchange(app, "POST", "/v2/repository/models/m/load") as client:
            await until(record.began.is_set)
            client.hang_up()
            record.release.set()
        await until(lambda: "m" in app.serving.statistics().models)
        assert await ask(app, "m") == {"name": "m", "answer": 1}


@pytest.mark.anyio
async def test_unload_waits_for_the_models_requests(tmp_path: Path, record: Log) -> None:
    put(tmp_path, "m", SERVING)
    repository = ModelRepository(tmp_path)
    app = ModelServer(repository=repository)
    results: list[Any] = []

    async def take_out() -> None:
        results.append(await unload(app, "m"))

    async with lifespan(app), anyio.create_task_group() as group:
        await until_loaded(app)
        async with exchange(app, "POST", "/v1/models/m:predict", json={}) as running:
            await running.head()
            assert await running.chunk() == b"1"
            group.start_soon(take_out)
            await until(lambda: "m" not in app.serving.statistics().models)
            assert await ask(app, "m") == {"error": "Model with name m does not exist."}
            assert await unload(app, "m") == (404, {"error": "Model with name m does not exist."})
            assert (await index(app))["m"] == ("UNLOADING", "")
            assert results == [] and "stop 1" not in record.log
            record.log.append("continue 1")
            assert await running.chunk() == b"1"
        await until(lambda: results)
        assert results == [(200, {"name": "m", "unload": True})]
        assert record.log[-1] == "stop 1"
        assert (await index(app))["m"] == ("UNAVAILABLE", "")
        assert repository.get_models() == {}
        assert await load(app, "m") == (200, {"name": "m", "load": True})
        assert await status(app, "/v1/models/m") == 200


@pytest.mark.anyio
async def test_unload_waits_no_longer_than_the_drain(tmp_path: Path, record: Log) -> None:
    put(
        tmp_path,
        "m",
        SERVING + "    from modelserve import Limits\n    limits = Limits(concurrency=1)",
    )
    limits = Limits(drain_timeout=0.1)
    app = ModelServer(repository=ModelRepository(tmp_path), limits=limits)
    async with lifespan(app):
        await until_loaded(app)
        async with exchange(app, "POST", "/v1/models/m:predict", json={}) as running:
            await running.head()
            async with exchange(app, "POST", "/v1/models/m:predict", json={}) as waiting:
                assert (await unload(app, "m"))[0] == 200
                assert "stop 1" in record.log
                assert (await waiting.response()).status == 404
            record.log.append("continue 1")
            assert await running.chunk() == b"1"


@pytest.mark.anyio
async def test_a_request_whose_body_comes_late_finds_the_model_of_that_time(
    tmp_path: Path,
) -> None:
    put(tmp_path, "m")
    put(tmp_path, "gone")
    app = ModelServer(repository=ModelRepository(tmp_path))
    async with lifespan(app):
        await until_loaded(app)
        async with (
            exchange(app, "POST", "/v1/models/m:predict", body=None) as first,
            exchange(app, "POST", "/v1/models/gone:predict", body=None) as second,
        ):
            first.send_body(b"{", more=True)
            second.send_body(b"{", more=True)
            await anyio.wait_all_tasks_blocked()
            put(tmp_path, "m", ECHO.replace("1", "2"))
            assert (await load(app, "m"))[0] == 200
            assert (await unload(app, "gone"))[0] == 200
            first.send_body(b"}")
            second.send_body(b"}")
            assert (await first.response()).json() == {"name": "m", "answer": 2}
            assert (await second.response()).status == 404


@pytest.mark.anyio
async def test_a_model_that_waits_to_be_loaded_can_be_unloaded(tmp_path: Path) -> None:
    put(tmp_path, "bad", "1 / 0")
    app = ModelServer(repository=ModelRepository(tmp_path))
    assert await unload(app, "bad") == (200, {"name": "bad", "unload": True})
    assert await status(app, "/v2/health/ready") == 200


@pytest.mark.anyio
async def test_an_index_of_a_directory_that_has_gone(tmp_path: Path) -> None:
    put(tmp_path, "dir/m")
    app = ModelServer(repository=ModelRepository(tmp_path / "dir"))
    async with lifespan(app):
        await until_loaded(app)
        (tmp_path / "dir").rename(tmp_path / "elsewhere")
        assert await index(app) == {"m": ("READY", "")}
        assert (await load(app, "m"))[0] == 200  # of the model that is there


# --- models that no directory has ---------------------------------------------------------------


@pytest.mark.anyio
async def test_a_model_of_the_application_is_loaded_where_it_is() -> None:
    loads: list[Any] = []

    class Counting(Model):
        def load(self) -> bool:
            loads.append(threading.current_thread())
            if len(loads) == 2:
                raise RuntimeError("no disk")
            return True

        def predict(self, payload: Any) -> Any:
            return {"loads": len(loads)}

    app = ModelServer([Counting("m")], control=True)
    async with lifespan(app):
        await until_loaded(app)
        assert await load(app, "m") == (503, {"error": "Model with name m is not ready."})
        assert await ask(app, "m") == {"loads": 2}
        assert await load(app, "m") == (200, {"name": "m", "load": True})
        assert await unload(app, "m") == (200, {"name": "m", "unload": True})
        assert await index(app) == {"m": ("UNAVAILABLE", "")}
        assert await load(app, "m") == (200, {"name": "m", "load": True})
        assert await ask(app, "m") == {"loads": 4}
    assert threading.main_thread() not in loads


@pytest.mark.anyio
async def test_a_load_that_sets_ready_to_false_is_believed() -> None:
    class Unsure(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def load(self) -> None:
            self.ready = False

    class Silent(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def load(self) -> None:
            pass

    app = ModelServer([Unsure("unsure"), Silent("silent")], control=True)
    async with lifespan(app):
        await until_loaded(app)
        assert await status(app, "/v1/models/unsure") == 503
        assert await status(app, "/v1/models/silent") == 200


class Shelf(ModelRepository):
    """Loads in a way of its own, as programs for KServe do."""

    def __init__(self, models_dir: Any, record: Any) -> None:
        super().__init__(models_dir)
        self.record = record

    def load_model(self, name: str) -> bool:
        self.record.log.append(f"load {name}")
        if self.record.fail:
            raise RuntimeError("no disk")
        model = Model(name)
        vars(model)["predict"] = lambda payload: {"number": len(self.record.log)}
        model.ready = name != "unready"
        if model.ready:
            self.update(model)
        return model.ready


class AsyncShelf(Shelf):
    async def load(self, name: str) -> bool:
        await anyio.lowlevel.checkpoint()
        return self.load_model(name)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Shelf, AsyncShelf])
async def test_a_repository_that_loads_in_a_way_of_its_own(
    kind: type[Shelf], tmp_path: Path, record: Log
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "..b").mkdir()
    shelf = kind(tmp_path, record)
    shelf.load_models()
    assert record.log == ["load a"]
    app = ModelServer(repository=shelf)
    async with lifespan(app):
        await until_loaded(app)
        assert await ask(app, "a") == {"number": 1}
        assert await load(app, "a") == (200, {"name": "a", "load": True})
        assert await ask(app, "a") == {"number": 2}
        assert await load(app, "elsewhere") == (200, {"name": "elsewhere", "load": True})
        assert shelf.get_model("elsewhere").ready
        assert (await load(app, "unready"))[0] == 503
        assert (await load(app, "..%2fa"))[0] == 404
        record.fail = True
        assert (await load(app, "a"))[0] == 503
        assert await ask(app, "a") == {"number": len(record.log)}
        assert await unload(app, "a") == (200, {"name": "a", "unload": True})
    assert record.log == ["load a", "load a", "load elsewhere", "load unready", "load a"]
    assert list(shelf.get_models()) == ["elsewhere"]


@pytest.mark.anyio
async def test_what_a_repository_is_given_while_it_is_served(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    app = ModelServer(repository=repository)
    stopped: list[str] = []

    def made(name: str, answer: int) -> Model:
        model = Model(name)
        hooks = {"predict": lambda payload: answer, "stop": lambda: stopped.append(name)}
        vars(model).update(hooks, start=lambda: None)
        return model

    async with lifespan(app):
        one = made("one", 1)
        repository.update(one)
        repository.update(one, "other")
        await status(app, "/")
        await until_loaded(app)
        assert [await ask(app, "one"), await ask(app, "other")] == [1, 1]
        assert await unload(app, "other") == (200, {"name": "other", "unload": True})
        assert await ask(app, "one") == 1 and stopped == []
        repository.update(made("one", 2))
        await status(app, "/")
        await until_loaded(app)
        assert await ask(app, "one") == 2
        await until(lambda: stopped == ["one"])
        repository.unload("one")
        assert await status(app, "/v1/models/one") == 404
    assert stopped == ["one", "one"]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb"])
def test_a_name_that_cannot_be_served(name: str) -> None:
    repository = ModelRepository()
    ModelServer().serving.follow(repository)
    with pytest.raises(ValueError, match="name"):
        repository.update(Model(name))


def test_a_repositorys_own_load_that_brings_nothing() -> None:
    class Nothing(ModelRepository):
        def load(self, name: str) -> None:
            return None

    with pytest.raises(ModelNotReady):
        Nothing().provide("m")


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [[], ["served.py"]])
@pytest.mark.slow
def test_the_command_serves_a_directory(tmp_path: Path, target: list[str]) -> None:
    put(tmp_path, "models/m")
    (tmp_path / "served.py").write_text(
        "from modelserve import Model, ModelServer\napp = ModelServer([Model('own')])\n"
    )
    arguments = ["--model-dir", "models", "--port", "0", "--log-format", "json", *target]
    process = subprocess.Popen(
        [sys.executable, "-m", "modelserve", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        base = next(url for line in process.stderr or () if (url := _url(line)))
        wait_until_ready(base)
        expected = ["own", "m"] if target else ["m"]
        assert get(f"{base}/v1/models") == {"models": expected}
        assert get(f"{base}/v1/models/m:predict", b"{}") == {"name": "m", "answer": 1}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def _url(line: str) -> str | None:
    words = str(json.loads(line)["message"]).split()
    return words[2] if words[:2] == ["Serving", "on"] else None


def get(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(url, body, timeout=5) as response:
        return json.load(response)


def wait_until_ready(base: str) -> None:
    for _ in range(500):
        try:
            get(f"{base}/v2/health/ready")
        except urllib.error.HTTPError as exc:
            exc.close()
            time.sleep(0.01)
        else:
            return
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model-dir", "none"], "Cannot read the models in none: No such file or directory."),
        (["plain.py", "--model-dir", "."], "--model-dir cannot be set from here"),
        ([], "the following arguments are required: TARGET or --model-dir"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("async def app(scope, receive, send): pass\n")
    result = subprocess.run(
        [sys.executable, "-m", "modelserve", *arguments, "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, problem in result.stderr) == (2, True)
