"""An application that serves itself: `python app.py`, and in an event loop that is running."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.command.flags import Flags, options_of, parse

ROOT = Path(__file__).parents[2]

APP = """
import os
from modelserve import ModelServer

app = ModelServer()

@app.model("pid")
async def pid(payload):
    return {"pid": os.getpid()}
"""
GUARDED = (
    APP
    + """
if __name__ == "__main__":
    app.run(port=0, drain_timeout=3)
    print("after", flush=True)
"""
)
BARE = (
    APP
    + """
app.run(port=0)
"""
)


class Program:
    """A program in a process of its own, and its log."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log_path = folder / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def urls(self, pattern: str = r"Serving on (http://[0-9.:]+)", count: int = 1) -> list[str]:
        """Wait until so many processes serve; return where."""
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            found = re.findall(pattern, self.log)
            if len(found) >= count:
                return found
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        raise AssertionError(self.log)

    def stop(self, sig: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(sig)
        stdout, _ = self.process.communicate(timeout=10)
        return self.process.returncode, stdout.decode()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(text: str, *arguments: str) -> Program:
        (tmp_path / "app.py").write_text(text)
        started.append(Program(tmp_path, *(arguments or ("app.py",))))
        return started[-1]

    yield start
    for one in started:
        try:
            os.killpg(one.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        one.process.communicate()


def pid_at(url: str) -> int:
    answer = httpx.post(f"{url}/v1/models/pid:predict", json={})
    return int(answer.json()["pid"])


# --- a program ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_program_serves_until_a_signal_and_goes_on(
    sig: int, program: Callable[..., Program]
) -> None:
    running = program(GUARDED)
    (url,) = running.urls()
    assert pid_at(url) == running.process.pid
    assert f"A page to try the models in: {url}/playground" in running.log
    page = httpx.get(url, headers={"accept": "text/html"}, follow_redirects=True)
    assert (str(page.url), page.status_code) == (f"{url}/playground", 200)
    assert running.stop(sig) == (0, "after\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        GUARDED.replace("port=0", "port=0, workers=2"),
        BARE.replace("port=0", "port=0, workers=2"),
    ],
)
def test_a_program_serves_with_several_workers(text: str, program: Callable[..., Program]) -> None:
    running = program(text)
    urls = running.urls(count=2)
    assert len(urls) == 2
    assert pid_at(urls[0]) != running.process.pid
    assert running.stop()[0] == 0


@pytest.mark.slow
def test_a_program_is_reloaded(program: Callable[..., Program], tmp_path: Path) -> None:
    running = program(GUARDED.replace("port=0", "port=0, reload=True"))
    (url,) = running.urls()
    before = pid_at(url)
    (tmp_path / "app.py").write_text(GUARDED.replace("port=0", "port=0, reload=True") + "\n")
    running.urls(count=2)
    assert pid_at(url) != before
    assert running.stop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("-m", "modelserve", "app.py", "--port", "0"), r"Serving on (http://[0-9.:]+)"),
        (("-m", "uvicorn", "app:app", "--port", "0"), r"running on (http://[0-9.:]+)"),
    ],
)
@pytest.mark.slow
def test_a_program_that_is_imported_starts_no_server_of_its_own(
    arguments: tuple[str, ...], pattern: str, program: Callable[..., Program]
) -> None:
    running = program(BARE, *arguments)
    (url,) = running.urls(pattern)
    assert pid_at(url) == running.process.pid
    assert running.log.count("run() does nothing while app is imported") == 1
    assert running.stop()[0] in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_an_address_in_use_ends_the_program(program: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = program(GUARDED.replace("port=0", f"port={port}"))
        assert running.process.wait(10) == 3
    assert f"modelserve: Cannot listen on 127.0.0.1:{port}" in running.log


def test_several_workers_need_an_application_that_they_find(
    program: Callable[..., Program],
) -> None:
    running = program("from modelserve import ModelServer\nModelServer().run(workers=2, port=0)\n")
    assert running.process.wait(10) == 1
    assert "need the application in a variable at the top level of a file" in running.log


def test_a_program_may_serve_in_a_thread_of_its_own(program: Callable[..., Program]) -> None:
    running = program(
        APP + "import threading, time\n"
        "threading.Thread(target=app.run, kwargs={'port': 0}, daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    (url,) = running.urls()
    assert pid_at(url) == running.process.pid


@pytest.mark.anyio
async def test_run_is_refused_in_a_running_event_loop() -> None:
    with pytest.raises(RuntimeError, match=r"await serve\(\) there"):
        ModelServer().run()


# --- the flags as arguments -----------------------------------------------------------------------


def test_each_flag_is_an_argument() -> None:
    options = vars(parse(["app.py"]))
    made_of_others = {"target", "limits", "token", "log_format", "variables"}
    assert set(Flags.__annotations__) - {"log_format"} == set(options) - made_of_others


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"host": "0.0.0.0"}, "host", "0.0.0.0"),
        ({"port": None, "uds": None}, "uds", None),
        ({"max_body_bytes": 1e6}, "limits", Limits(max_body_bytes=1_000_000)),
        (
            {"timeout": 0.5, "queue": float("inf")},
            "limits",
            Limits(timeout=0.5, queue=float("inf")),
        ),
        ({"debug": True}, "debug", True),
        ({"debug": False}, "debug", False),
        ({"control": False}, "control", False),
        (
            {"cors_origin": ["https://a.org", "https://b.org"]},
            "cors_origin",
            ["https://a.org", "https://b.org"],
        ),
        ({"uds": "--help"}, "uds", "--help"),
        ({"alias": ["/a=/", "/b=/v2"]}, "alias", [("/a", "/"), ("/b", "/v2")]),
        ({"sagemaker": True}, "sagemaker", True),
    ],
)
def test_arguments_are_read_as_flags_are(flags: Any, name: str, value: Any) -> None:
    assert getattr(options_of(flags), name) == value


@pytest.mark.parametrize(
    ("flags", "error", "sentence"),
    [
        ({"prot": 1}, TypeError, "There is no option 'prot'; there are host, port"),
        ({"target": "app.py"}, TypeError, "There is no option 'target'"),
        ({"port": 70_000}, ValueError, "port: 70000 is not a port"),
        ({"debug": "yes"}, ValueError, "debug: 'yes' is neither True nor False"),
        ({"concurrency": 0}, ValueError, "The limit concurrency cannot be 0"),
        ({"reload": True, "workers": 2}, ValueError, "leave out --workers"),
    ],
)
def test_an_argument_that_is_no_flags_is_refused(
    flags: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as raised:
        options_of(flags)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


# --- in a running event loop ----------------------------------------------------------------------


class Words(Model):
    """A stream whose second item waits to be released."""

    def __init__(self) -> None:
        super().__init__("words")
        self.go, self.stopped = asyncio.Event(), False

    def load(self) -> bool:
        return True

    async def predict(self, payload: Any) -> Any:
        yield "first"
        await self.go.wait()
        yield "last"

    def stop(self) -> None:
        self.stopped = True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(10):
        while not await condition():  # noqa: ASYNC110 - nothing tells that a port answers
            await asyncio.sleep(0.01)


async def served(app: ModelServer, port: int, **flags: Any) -> "asyncio.Task[None]":
    task = asyncio.create_task(app.serve(port=port, **flags))

    async def answers() -> bool:
        assert not task.done(), task
        try:
            async with httpx.AsyncClient() as client:
                return (
                    await client.get(f"http://127.0.0.1:{port}/v2/health/ready")
                ).status_code == 200
        except httpx.TransportError:
            return False

    await until(answers)
    return task


@pytest.mark.slow
def test_serving_in_a_loop_ends_with_a_drain_and_can_begin_again() -> None:
    async def check() -> None:
        model, port = Words(), free_port()
        app = ModelServer([model])
        before = signal.getsignal(signal.SIGINT)
        for _ in range(2):
            model.go, model.stopped = asyncio.Event(), False
            task = await served(app, port)
            assert signal.getsignal(signal.SIGINT) is before
            url = f"http://127.0.0.1:{port}/v1/models/words:predict"
            async with httpx.AsyncClient() as client, client.stream("POST", url, json={}) as answer:
                chunks = answer.aiter_text()
                assert await anext(chunks) == "first"
                task.cancel()
                await asyncio.sleep(0.05)
                assert not task.done()
                model.go.set()
                assert [chunk async for chunk in chunks] == ["last"]
            with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
                await task
            assert model.stopped

    asyncio.run(check())


def test_serving_in_a_loop_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        port = free_port()
        for name, value in {"AIP_HTTP_PORT": f"{port}", "AIP_HEALTH_ROUTE": "/up"}.items():
            monkeypatch.setenv(name, value)
        app = ModelServer([Words()])
        task = asyncio.create_task(app.serve(predict_path="/words", alias=["/is=/v1/models/words"]))
        statuses: dict[str, int] = {}

        async def answers() -> bool:
            assert not task.done(), task
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                    for path in ("/up", "/is", "/words"):
                        statuses[path] = (await client.get(path)).status_code
            return statuses.get("/up") == 200

        await until(answers)
        assert statuses == {"/up": 200, "/is": 200, "/words": 405}
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(check())


def test_a_second_cancellation_ends_what_is_left() -> None:
    async def check() -> None:
        model, port = Words(), free_port()
        app = ModelServer([model], limits=Limits(drain_timeout=60))
        task = await served(app, port)
        url = f"http://127.0.0.1:{port}/v1/models/words:predict"
        async with httpx.AsyncClient() as client, client.stream("POST", url, json={}) as answer:
            chunks = answer.aiter_text()
            assert await anext(chunks) == "first"
            task.cancel()
            await until_draining(app)
            task.cancel()
            with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
                await task
        assert model.stopped
        assert app.serving.statistics().in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(check())


async def until_draining(app: ModelServer) -> None:
    async def is_draining() -> bool:
        return app.serving.draining

    await until(is_draining)


def test_a_second_cancellation_ends_the_delay_of_the_stop() -> None:
    async def check() -> None:
        model, port = Words(), free_port()
        app = ModelServer([model])
        task = await served(app, port, shutdown_delay=60)
        task.cancel()

        async def is_stopping() -> bool:
            return app.serving.stopping

        await until(is_stopping)
        assert not app.serving.draining
        task.cancel()
        with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
            await task
        assert model.stopped

    asyncio.run(check())


def test_what_cannot_be_served_in_a_loop_is_raised() -> None:
    async def check() -> None:
        app = ModelServer()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{port}"):
                await app.serve(port=port)
        with pytest.raises(ValueError, match=r"workers and reload are for run\(\)"):
            await app.serve(workers=2)
        with pytest.raises(TypeError, match="There is no option 'prot'"):
            await app.serve(prot=1)  # type: ignore[call-arg]

    asyncio.run(check())


def test_a_load_that_fails_ends_serving_if_it_is_to() -> None:
    class Failing(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def load(self) -> bool:
            raise RuntimeError("no disk")

    async def check() -> None:
        app = ModelServer([Failing("m")])
        with pytest.raises(RuntimeError, match="stopped by itself"):
            await app.serve(port=0, exit_on_load_failure=True)

    asyncio.run(check())


def test_serving_needs_asyncio() -> None:
    async def check() -> None:
        with pytest.raises(RuntimeError, match=r"serve\(\) needs asyncio"):
            await ModelServer().serve()

    anyio.run(check, backend="trio")
