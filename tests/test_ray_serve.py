"""The example on Ray Serve, on a real Ray on this machine. Takes some three minutes.

pip install -e '.[test]' 'ray[serve]' && pytest -m ray tests/test_ray_serve.py
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import httpx
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed")

from ray_workers import LOAD_SECONDS, STREAM_SECONDS, UNTIL_TOLD

from modelserve.client import AnswerError, Client

TESTS = Path(__file__).parent
FOLDER = next((TESTS.parent / "examples").glob("*_ray_serve"))
SECONDS = 90  # for what should take a few at most
QUICK = {  # to react within seconds
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "look_back_period_s": 1,
    "metrics_interval_s": 0.5,
}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # Ray's
]
seeds = itertools.count(1000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(holds: Callable[[], Any], what: str) -> None:
    latest = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < latest, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The example, deployed: its `url`, its module and the file of notes."""
    notes = tmp_path_factory.mktemp("ray") / "notes"
    notes.touch()
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (FOLDER, TESTS, TESTS.parent))),
        "TEST_RAY_NOTES": str(notes),
    }
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    runtime = {"env_vars": variables, "worker_process_setup_hook": "ray_workers.set_up"}
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        ray.init(
            num_cpus=4,  # of those that Ray counts; the replicas take 0.3 each
            include_dashboard=False,
            object_store_memory=100 << 20,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env=runtime,
            _node_ip_address="127.0.0.1",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            import serve_app

            deployed = SimpleNamespace(
                url=f"http://127.0.0.1:{port}", example=serve_app, notes=notes
            )
            serve.run(serve_app.front, name="words")
            deployed.first = ask(deployed.url, "lengths", ["abc"]).status_code
            deployed.first_stream = ask(deployed.url, "writer", [{"words": 2}]).status_code
            yield deployed
        finally:
            serve.shutdown()
            ray.shutdown()
            for name in ("app", "serve_app"):
                sys.modules.pop(name, None)


def deploy(on_ray: Any, **options: Any) -> None:
    """Update the deployment, and wait until that is done."""
    example, options["graceful_shutdown_timeout_s"] = on_ray.example, STREAM_SECONDS + 10
    serve.run(example.Front.options(**options).bind(example.Writing.bind()), name="words")


def replicas(name: str = "Front") -> Counter[str]:
    """Count the replicas of a deployment by their state."""
    found = serve.status().applications["words"].deployments[name]
    return Counter({str(getattr(s, "value", s)): n for s, n in found.replica_states.items() if n})


def ask(url: str, model: str, instances: Any, **headers: str) -> httpx.Response:
    path = f"{url}/v1/models/{model}:predict"
    return httpx.post(path, json={"instances": instances}, headers=headers, timeout=SECONDS)


@contextmanager
def streaming(
    url: str, model: str, **wish: Any
) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
    """Begin a stream; leaving the block closes its connection."""
    path, body = f"{url}/v1/models/{model}:predict", {"instances": [wish]}
    headers = {"accept": "application/x-ndjson"}
    with httpx.stream("POST", path, json=body, headers=headers, timeout=SECONDS) as answer:
        yield answer, answer.iter_raw()


def read_all(
    url: str, model: str, begun: Callable[[], object] = int, **wish: Any
) -> tuple[str, int, str]:
    """Read a stream; return the process, the number of words, and how it ended.

    Args:
        begun: Called when the first words have come.
    """
    text, process, end = b"", "", "complete"
    try:
        with streaming(url, model, **wish) as (answer, chunks):
            process = answer.headers.get("x-process", "")
            if answer.status_code != 200:
                end = str(answer.status_code)
            for chunk in chunks:
                if not text:
                    begun()
                text += chunk
    except httpx.TransportError as exc:
        end = type(exc).__name__
    *_, last = text.splitlines() or [b""]
    return process, text.count(b"\n"), last.decode() if b"error" in last else end


# -- as under any other server


@pytest.fixture(scope="module")
def on_uvicorn() -> Iterator[str]:
    """The same application under uvicorn."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    process = subprocess.Popen(command, cwd=FOLDER, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: is_ready(url), "uvicorn serves the example")
        yield url
    finally:
        process.terminate()
        process.wait(SECONDS)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_requests_come_once_the_models_are_loaded(on_ray: Any) -> None:
    assert LOAD_SECONDS > 1
    assert (on_ray.first, on_ray.first_stream) == (200, 200)
    assert replicas() == {"RUNNING": 2}


@pytest.mark.parametrize(
    ("model", "instances"),
    [
        ("writer", [{"words": 3, "pause": 0}]),
        ("writer", [{"words": 0, "pause": 0}]),
        ("writer", [{"words": -1}]),
        ("writer", [{"words": "three"}]),
        ("lengths", ["a", "bc"]),
        ("lengths", "abc"),
        ("nobody", []),
    ],
)
@pytest.mark.parametrize(
    "accept", ["*/*", "application/x-ndjson", "text/event-stream", "application/json"]
)
def test_answers_are_those_of_uvicorn(
    on_ray: Any, on_uvicorn: str, model: str, instances: Any, accept: str
) -> None:
    here, there = (ask(url, model, instances, accept=accept) for url in (on_uvicorn, on_ray.url))
    assert (there.status_code, there.content) == (here.status_code, here.content)
    assert there.headers["content-type"] == here.headers["content-type"]
    if model == "writer":  # and those of the model that runs elsewhere
        far = ask(on_ray.url, "far-writer", instances, accept=accept)
        assert (far.status_code, far.content) == (here.status_code, here.content)


@pytest.mark.parametrize("model", ["writer", "far-writer"])
def test_words_come_one_by_one(on_ray: Any, model: str) -> None:
    begun = time.monotonic()
    with streaming(on_ray.url, model, words=6, pause=0.5) as (answer, chunks):
        assert answer.status_code == 200
        arrivals = [(time.monotonic() - begun, len(chunk.splitlines())) for chunk in chunks]
    assert sum(count for _, count in arrivals) == 6
    assert len(arrivals) >= 4  # two may come together on a busy machine
    assert arrivals[-1][0] - arrivals[0][0] > 1


def test_each_replica_answers(on_ray: Any) -> None:
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(read_all, on_ray.url, "writer", words=3) for _ in range(32)]
        seen = Counter(call.result(SECONDS) for call in calls)
    assert len({process for process, _, _ in seen}) == 2
    assert {(count, end) for _, count, end in seen} == {(3, "complete")}


def test_the_client_library_sees_an_error_of_a_model_elsewhere(on_ray: Any) -> None:
    with Client(on_ray.url) as client:
        assert len([*client.stream("far-writer", [{"words": 3}])]) == 3
        with pytest.raises(AnswerError, match="words must be 0 to 10000, not 10001"):
            client.predict("far-writer", [{"words": 10_001}])


def test_too_many_calls_of_another_deployment_are_a_503(on_ray: Any) -> None:
    with ThreadPoolExecutor(60) as pool:
        wish = [{"words": 2, "pause": 0.5}]
        calls = [pool.submit(ask, on_ray.url, "far-writer", wish) for _ in range(60)]
        answers = [call.result(SECONDS) for call in calls]
    found = {answer.status_code: answer for answer in answers}
    assert found.keys() == {200, 503}
    assert found[503].headers["retry-after"] == "2"
    assert found[503].json() == {"error": "What this model calls is busy and its queue is full."}


# -- clients that leave


@pytest.mark.parametrize("model", ["writer", "far-writer"])
@pytest.mark.parametrize("after", [0, 3])
def test_the_work_ends_when_the_client_leaves(on_ray: Any, model: str, after: int) -> None:
    seed = next(seeds)
    if after:
        with streaming(on_ray.url, model, words=5000, pause=0.2, seed=seed) as (_, chunks):
            assert len([*itertools.islice(chunks, after)]) == after
    else:  # before the first word
        body = {"instances": [{"words": 2, "pause": 300, "seed": seed}]}
        with httpx.Client(base_url=on_ray.url) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"/v1/models/{model}:predict", json=body, timeout=2)
    wait_for(lambda: f"{seed} cleaned up" in on_ray.notes.read_text(), "it has cleaned up")


def test_the_work_elsewhere_ends_at_a_limit_of_ours(on_ray: Any) -> None:
    seed = next(seeds)
    wishes = [{"words": 3, "pause": 0, "seed": seed}, {"words": 1, "pause": 300}]
    answer = ask(on_ray.url, "far-writer", wishes, accept="application/x-ndjson")
    assert len(answer.text.splitlines()) == 4
    assert "idle_timeout" in answer.text.splitlines()[-1]
    wait_for(lambda: f"{seed} cleaned up" in on_ray.notes.read_text(), "it has cleaned up")


# -- replicas that come and go


class Streams:
    """Streams of the writer that go on until they are told to end."""

    def __init__(self, on_ray: Any, pool: ThreadPoolExecutor, count: int) -> None:
        self._notes, self._seed = on_ray.notes, next(seeds)
        begun = threading.Semaphore(0)
        wish = {"begun": begun.release, "words": UNTIL_TOLD, "seed": self._seed}
        self.calls = [pool.submit(read_all, on_ray.url, "writer", **wish) for _ in range(count)]
        for _ in range(count):
            assert begun.acquire(timeout=SECONDS)

    @property
    def are_open(self) -> bool:
        return not any(call.done() for call in self.calls)

    def end(self) -> list[tuple[str, int, str]]:
        """Tell them to end; return what `read_all` has of each."""
        with self._notes.open("a") as notes:
            notes.write(f"{self._seed} may end\n")
        return [call.result(2 * SECONDS) for call in self.calls]


def test_open_streams_survive_replicas_that_come_and_go(on_ray: Any) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4, **QUICK}
    deploy(on_ray, autoscaling_config=scaling)
    wait_for(lambda: replicas() == {"RUNNING": 1}, "one replica is enough")
    with ThreadPoolExecutor(20) as pool:
        many = Streams(on_ray, pool, 15)
        wait_for(lambda: replicas()["RUNNING"] == 3, "more replicas have come")
        few = Streams(on_ray, pool, 3)
        assert {end for _, _, end in many.end()} == {"complete"}
        wait_for(lambda: replicas()["RUNNING"] < 3, "a replica is to go")
        assert few.are_open
        assert {end for _, _, end in few.end()} == {"complete"}
    wait_for(lambda: replicas() == {"RUNNING": 1}, "one replica is enough again")
    assert "stopped" in on_ray.notes.read_text()


class Load:
    """Clients that ask without a pause until they are told to stop, and count what they see."""

    def __init__(self, url: str, clients: int) -> None:
        self.seen: Counter[Any] = Counter()
        self.processes: set[str] = set()
        self._url, self._over = url, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=SECONDS) as client:
            while not self._over.is_set():
                try:
                    body = {"instances": ["abc"]}
                    answer = client.post("/v1/models/lengths:predict", json=body)
                    self.seen[answer.status_code] += 1
                    self.processes.add(answer.headers.get("x-process", ""))
                except httpx.TransportError as exc:
                    self.seen[type(exc).__name__] += 1


def test_a_rolling_update_fails_no_request(on_ray: Any) -> None:
    fixed = {"num_replicas": 2, "autoscaling_config": None}
    deploy(on_ray, **fixed)
    wait_for(lambda: replicas() == {"RUNNING": 2}, "there are two replicas")
    with ThreadPoolExecutor(9) as pool, Load(on_ray.url, 4) as load:
        wait_for(lambda: len(load.processes) == 2, "both answer")
        before, streams = set(load.processes), Streams(on_ray, pool, 8)
        cpus = {"num_cpus": on_ray.example.CPUS + 0.01}  # what cannot be changed in place
        update = pool.submit(deploy, on_ray, **fixed, ray_actor_options=cpus)
        wait_for(lambda: load.processes - before, "a new one answers")
        assert streams.are_open
        read = streams.end()
        update.result(2 * SECONDS)
        wait_for(lambda: len(load.processes - before) == 2, "both are new")
    assert {(process in before, end) for process, _, end in read} == {(True, "complete")}
    assert load.seen.keys() == {200}
    assert load.seen[200] > 20


def test_what_a_killed_replica_ran_fails_and_nothing_else(on_ray: Any) -> None:
    with ThreadPoolExecutor(12) as pool, Load(on_ray.url, 2) as load:
        streams = Streams(on_ray, pool, 12)
        wait_for(lambda: len(load.processes) == 2, "both answer")
        victim, other = running = sorted(load.processes)
        os.kill(int(victim), signal.SIGKILL)
        wait_for(
            lambda: len(load.processes.difference(running)) == 1, "another has taken its place"
        )
        read = streams.end()
    complete = {process for process, _, end in read if end == "complete"}
    cut = {process for process, _, end in read if end != "complete"}
    assert (complete, cut) == ({other}, {victim})
    assert load.seen[200] > 20
    assert load.seen.total() - load.seen[200] <= 2  # those that it was answering
