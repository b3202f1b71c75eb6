"""The containers of the KServe example's manifests, run: loading, probes, streams and SIGTERM.

As processes, and as containers where `.ci/kserve-image` has built the image.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pods import FOLDER, Pod, container_of, engine, missing, running
from realserver import free_port, until

PREDICT = "/v1/models/writer:predict"
LONG = 100_000  # words, three times what the sockets of `slowly` hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(params=["process", "image"])
def kind(request: pytest.FixtureRequest) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder like the one that KServe mounts, whose text is there once somebody writes it."""
    folder = tmp_path / "models"
    folder.mkdir()
    os.mkfifo(folder / "text.txt")
    (folder / "model.py").write_text((FOLDER / "predictor.py").read_text())
    return folder


def fetched(models: Path) -> None:
    with (models / "text.txt").open("w") as text:
        text.write((FOLDER / "text.txt").read_text())


def containers(manifest: str, component: str) -> dict[str, Any]:
    """Return a container as KServe makes it of a manifest."""
    document = next(yaml.safe_load_all((FOLDER / manifest).read_text()))
    spec = document["spec"] if component == "runtime" else document["spec"][component]
    container = container_of(spec)
    args = [each.replace("{{.Name}}", "writer") for each in container["args"]]
    return {**container, "args": args}


@pytest.fixture
def predictor(kind: str, models: Path, tmp_path: Path) -> Iterator[Pod]:
    container = containers("standard.yaml", "predictor")
    with running(kind, container, models, tmp_path / "predictor", port=free_port()) as pod:
        assert pod.becomes("livenessProbe", 200)
        fetched(models)
        assert pod.becomes("readinessProbe", 200)
        yield pod


def url(pod: Pod) -> str:
    return f"http://127.0.0.1:{pod.port}{PREDICT}"


@contextmanager
def slowly(pod: Pod, words: int) -> Iterator[Iterator[str]]:
    """Open a stream whose client holds little of what it has not read, and give its text."""
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)]
    request = {"instances": ["The request"], "max_words": words}
    with (
        httpx.Client(transport=httpx.HTTPTransport(socket_options=small), timeout=60) as client,
        client.stream("POST", url(pod), json=request) as response,
    ):
        yield response.iter_text()


def running_in(pod: Pod) -> float:
    metrics = httpx.get(f"http://127.0.0.1:{pod.port}/metrics").text
    found = re.search(r"^modelserve_in_flight\{.*\} (.*)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def ask(pod: Pod, **options: Any) -> httpx.Response:
    return httpx.post(url(pod), json={"instances": ["The request"], **options}, timeout=20)


@pytest.mark.parametrize(
    ("manifest", "component"),
    [
        ("standard.yaml", "predictor"),
        ("knative.yaml", "predictor"),
        ("runtime.yaml", "runtime"),
    ],
)
def test_a_predictor_from_its_start_to_its_end(
    kind: str, manifest: str, component: str, models: Path, tmp_path: Path
) -> None:
    container, port = containers(manifest, component), free_port()
    delayed = "--shutdown-delay=5" in container["args"]
    with running(kind, container, models, tmp_path / "pod", port=port) as pod:
        assert pod.becomes("livenessProbe", 200)
        assert pod.probe("readinessProbe") == 503
        assert ask(pod).status_code == 503
        fetched(models)
        assert pod.becomes("readinessProbe", 200)
        assert len(ask(pod, max_words=7).text.split()) == 7
        with slowly(pod, LONG) as chunks:
            text = next(chunks)
            at = pod.terminate()
            assert pod.becomes("readinessProbe", 503)
            assert pod.probe("livenessProbe") == 200
            assert ask(pod).status_code == (200 if delayed else 503)
            text += "".join(chunks)
        assert len(text.split()) == LONG
        assert pod.process.wait(30) == 0, pod.log
        assert time.monotonic() - at < 30


def test_a_transformer_with_what_kserve_appends(kind: str, predictor: Pod, tmp_path: Path) -> None:
    container, port = containers("standard.yaml", "transformer"), free_port()
    container["args"] += ["--model_name", "writer", "--http_port", str(port)]
    container["args"] += ["--predictor_host", f"127.0.0.1:{predictor.port}"]
    with running(kind, container, tmp_path, tmp_path / "transformer", port=port) as pod:
        assert pod.becomes("readinessProbe", 200)
        assert len(ask(pod, instances=["  The \n request"], max_words=7).text.split()) == 7
        refused = ask(pod, instances=["a", "b"])
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("the writer takes one instance a request")
        with slowly(pod, 1_000_000) as chunks:
            next(chunks)
            assert running_in(predictor) == 1
        assert until(lambda: running_in(predictor) == 0, seconds=30)
        pod.terminate()
        assert pod.process.wait(30) == 0, pod.log


def test_a_model_that_cannot_be_loaded_ends_the_container(
    kind: str, models: Path, tmp_path: Path
) -> None:
    (models / "text.txt").unlink()
    container = containers("standard.yaml", "predictor")
    with running(kind, container, models, tmp_path / "pod", port=free_port()) as pod:
        assert pod.process.wait(30) == 4, pod.log
        assert "No such file or directory" in pod.log


def test_several_workers_need_nowhere_to_write(kind: str, models: Path, tmp_path: Path) -> None:
    (models / "text.txt").unlink()
    (models / "text.txt").write_text((FOLDER / "text.txt").read_text())
    container = containers("runtime.yaml", "runtime")
    container["args"] += ["--workers=2", "--shutdown-delay=0"]
    with running(kind, container, models, tmp_path / "pod", port=free_port()) as pod:
        assert pod.becomes("readinessProbe", 200)
        assert until(lambda: {ask(pod).status_code for _ in range(8)} == {200}, seconds=30)
        scraped = httpx.get(f"http://127.0.0.1:{pod.port}/metrics").text
        counts = re.findall(
            r'^modelserve_requests_total\{.*status="200".*\} (.*)$', scraped, re.MULTILINE
        )
        assert sum(map(float, counts)) >= 8  # of both workers, wherever the scrape arrives
        pod.terminate()
        assert pod.process.wait(30) == 0, pod.log


@pytest.mark.parametrize("command", [None, "modelserve"])
def test_a_manifest_that_was_written_for_another_image(
    command: str | None, kind: str, models: Path, tmp_path: Path
) -> None:
    """The arguments of KServe's own runtimes, which say nothing of a host."""
    if kind == "process":
        pytest.skip("a process of this machine")
    container, port = containers("runtime.yaml", "runtime"), free_port()
    container["args"] = ["--model_name=writer", "--model_dir=/mnt/models", f"--http_port={port}"]
    if command is not None:
        container["command"] = [command]
    with running(kind, container, models, tmp_path / "pod", port=free_port()) as pod:
        pod.port = port
        fetched(models)
        assert pod.becomes("readinessProbe", 200)
        socket.create_connection(("127.0.0.2", port), timeout=10).close()  # as from outside
        assert len(ask(pod, max_words=7).text.split()) == 7
        pod.terminate()
        assert pod.process.wait(30) == 0, pod.log


def test_the_container_is_as_closed_as_the_manifest_says(kind: str, predictor: Pod) -> None:
    if kind == "process":
        pytest.skip("a process of this machine")
    status = predictor.status()
    assert status["NSpid"].split()[-1] == "1"
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    if engine() == "runc":  # bubblewrap's user is that of a namespace
        assert status["Uid"].split() == ["1000"] * 4
    mounts = Path("/proc", str(predictor.pid), "mountinfo").read_text().splitlines()
    for place in ("/", "/mnt/models"):
        options = next(line.split()[5] for line in mounts if line.split()[4] == place)
        assert "ro" in options.split(",")
