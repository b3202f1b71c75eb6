"""Run each example as a user would, and all that the README and the guides show."""

import ast
import asyncio
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from modelserve.command.flags import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")])


@contextmanager
def served(target: str, stdout: int = subprocess.DEVNULL) -> Iterator[str]:
    """Serve a file with the command line; yield where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "modelserve", target, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        assert process.wait(20) == 0


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            if httpx.get(f"{url}/v2/health/ready").status_code in (200, 404):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of code of a document in Markdown."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shown(text: str) -> list[tuple[str, str]]:
    """Return each command of the console blocks with what it prints."""
    turns = [
        turn
        for block in blocks(text, "console")
        for turn in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]
    return [(command, output) for command, _, output in (turn.partition("\n") for turn in turns)]


def programs(text: str) -> list[tuple[str, str]]:
    """Return each program that a document shows in use, with the text up to the next program."""
    parts = re.split(r"```python\n(.*?)```", text, flags=re.DOTALL)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [(program, after) for program, after in pairs if shown(after)]


def assert_prints(command: str, output: str, url: str) -> None:
    words = shlex.split(command.replace("localhost:8080", url))
    printed = subprocess.run([*words, "-s"], capture_output=True, text=True, check=False)
    assert printed.stdout.strip() == output.strip(), command


def files_named_in(text: str) -> list[str]:
    """Return what the links of a document lead to in the checkout, without their anchors."""
    links = re.findall(r"\]\(([^)]+)\)", text)
    return [path for link in links if (path := link.partition("#")[0]) and "://" not in path]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the text is that of Python 3.11")
def test_the_readme_shows_what_one_sees() -> None:
    commands = shown(README)
    assert len(commands) >= 3
    with served("examples/01_quickstart/app.py") as url:
        for command, output in commands:
            assert_prints(command, output, url)


def test_the_quickstart_streams_word_by_word() -> None:
    with served("examples/01_quickstart/app.py") as url:
        payload = {"instances": [{"prompt": "A class", "max_tokens": 5, "seed": 1}]}
        with httpx.stream("POST", f"{url}/v1/models/writer:predict", json=payload) as response:
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            arrivals = [time.monotonic() for _ in response.iter_raw()]
        assert len(arrivals) == 5
        assert arrivals[-1] > arrivals[0]
        answer = httpx.post(f"{url}/v1/models/next-word:predict", json={"instances": ["the"]})
        assert len(answer.json()["predictions"][0]) == 5


@pytest.mark.slow
def test_openais_client_talks_to_the_quickstart_as_the_readme_shows() -> None:
    pytest.importorskip("openai")
    [snippet] = [block for block in blocks(README, "python") if "import OpenAI" in block]
    with served("examples/01_quickstart/app.py") as url:
        program = snippet.replace("http://localhost:8080", url)
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        payload = {"instances": [{"prompt": "The interpreter", "seed": 1}]}
        text = httpx.post(f"{url}/v1/models/writer:predict", json=payload).text
    assert (run.stdout, run.stderr) == (text, "")


@pytest.mark.slow
def test_events() -> None:
    with served("examples/02_events.py") as url:
        headers = {"accept": "text/event-stream"}
        steps = httpx.post(
            f"{url}/v1/models/steps:predict", json={"instances": [2]}, headers=headers
        )
        assert steps.text.startswith('event: progress\nid: 1\ndata: {"step":1,"of":2}\n\n')
        assert steps.text.endswith('event: result\ndata: {"predictions":[2]}\n\n')
        tone = httpx.post(f"{url}/v1/models/tone:predict", json={"instances": [440]})
        assert tone.headers["content-type"] == "audio/wav"
        assert (tone.content[:4], len(tone.content)) == (b"RIFF", 44 + 32_000)


def test_mounted() -> None:
    with served("examples/03_mounted.py") as url:
        assert "below /ml" in httpx.get(url).text
        answer = httpx.post(f"{url}/ml/v1/models/shout:predict", json={"instances": ["hello"]})
        assert answer.json() == {"predictions": ["HELLO"]}


def test_opentelemetry(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    printed = tmp_path / "spans"
    with printed.open("w") as file, served("examples/04_opentelemetry.py", file.fileno()) as url:
        answer = httpx.post(f"{url}/v1/models/double:predict", json={"instances": [21]})
        assert answer.json() == {"predictions": [42]}
        answer = httpx.post(f"{url}/v1/models/count:predict", json={"instances": [100]})
        assert len(answer.text.splitlines()) == 100
    text = printed.read_text().replace("}\n{", "},\n{")
    spans = [span for span in json.loads(f"[{text}]") if "health" not in span["name"]]
    assert [span["name"] for span in spans] == [
        "multiply",
        "predict",
        "POST /v1/models/double:predict",
        "predict",
        "POST /v1/models/count:predict",
    ]
    multiply, predict, post = spans[:3]
    assert multiply["parent_id"] == predict["context"]["span_id"]
    assert predict["parent_id"] == post["context"]["span_id"]
    assert spans[4]["attributes"]["modelserve.items"] == 100


@pytest.mark.slow
def test_images() -> None:
    photo = io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(photo, "JPEG")
    with served("examples/06_images.py") as url:
        path = f"{url}/v1/models/thumbnail:predict"
        form = httpx.post(path, files={"image": photo.getvalue()}, data={"width": "64"})
        alone = httpx.post(path, content=photo.getvalue(), headers={"content-type": "image/jpeg"})
        for answer, size in ((form, (64, 32)), (alone, (128, 64))):
            assert answer.headers["content-type"] == "image/png"
            image = Image.open(io.BytesIO(answer.content))
            assert (image.format, image.size, image.mode) == ("PNG", size, "L")
        expected = 'Expected a file "image" and a number "width".'
        for files, data, sentence in (
            ({"image": b"no"}, {}, "The file is no image that can be read."),
            ({"x": b"1"}, {}, expected),
            ({"image": b"1"}, {"width": "w"}, expected),
        ):
            refused = httpx.post(path, files=files, data=data)
            assert (refused.status_code, refused.json()) == (400, {"error": sentence})


@pytest.mark.slow
def test_a_writer_for_many_clients() -> None:
    pytest.importorskip("numpy")
    with served("examples/07_batching/writer.py") as url:
        path = f"{url}/v1/models/writer:predict"

        def write(letters: Any) -> httpx.Response:
            asked = {"prompt": "This module ", "letters": letters}
            return httpx.post(path, json={"instances": [asked]}, timeout=30)

        with ThreadPoolExecutor(12) as clients:
            texts = [answer.text for answer in clients.map(write, range(1, 13))]
        assert [len(text) for text in texts] == [*range(1, 13)]
        assert write("many").status_code == 400


@pytest.mark.slow
def test_a_writer_is_measured() -> None:
    assert_gains("writer", "writer, 1 at once", "writer, 8 at once")


@pytest.mark.slow
def test_a_forest_is_measured() -> None:
    pytest.importorskip("sklearn")
    assert_gains("forest", "digits-one-by-one, 16 at once", "digits, 16 at once")


def assert_gains(example: str, without: str, together: str) -> None:
    """Run an example and what measures it: the second figure must be the higher one."""
    with served(f"examples/07_batching/{example}.py") as url:
        command = [sys.executable, ROOT / "examples/07_batching/measure.py", example, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout)
    found = dict(re.findall(r"^(.+): (\d+) (?:requests|tokens)/s$", done.stdout, re.MULTILINE))
    assert int(found[together]) > int(found[without]) > 0


def test_the_readmes_test_line_is_what_ci_runs() -> None:
    line = re.search(r"^python3 -m venv .*pytest$", README, re.MULTILINE)
    assert line is not None
    ci = (ROOT / ".ci" / "run").read_text()
    assert "grep" in ci
    assert "README.md" in ci


def test_each_python_block_of_the_readme_is_python() -> None:
    assert blocks(README, "python")
    for block in blocks(README, "python"):
        compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_readmes_first_server_serves(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(blocks(README, "python")[0])
    with served(str(tmp_path / "first.py")) as url:
        words = httpx.post(f"{url}/v1/models/writer:predict", json={"instances": ["a b"]})
        assert [json.loads(line) for line in words.text.splitlines()] == [
            {"word": "a"},
            {"word": "b"},
        ]
        double = httpx.post(f"{url}/v1/models/double:predict", json={"instances": [1]})
        assert double.json() == {"predictions": [2]}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name + path.name)
def test_each_link_leads_to_a_file(document: Path) -> None:
    for path in files_named_in(document.read_text()):
        assert (document.parent / path).exists(), path


def test_the_readme_links_to_each_guide() -> None:
    assert GUIDES
    for guide in GUIDES:
        assert str(guide.relative_to(ROOT)) in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name + path.name)
def test_each_link_into_a_document_leads_to_a_heading(document: Path) -> None:
    for path, anchor in re.findall(r"\]\(([\w./]*)#([^)]+)\)", document.read_text()):
        target = document.parent / path if path else document
        assert anchor in headings_of(target.read_text(), "#+"), f"{path}#{anchor}"


def headings_of(text: str, level: str) -> set[str]:
    """Return the anchors of the headings of that level, a pattern."""
    return {
        re.sub(r"[^a-z0-9_ -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(rf"^{level} (.*)$", text, re.MULTILINE)
    }


def test_the_examples_are_listed() -> None:
    listed = set(re.findall(r"\]\((\d\d_\w+)", (ROOT / "examples" / "README.md").read_text()))
    assert listed == {path.stem for path in (ROOT / "examples").glob("[0-9]*")}


def test_each_line_of_the_contents_leads_to_a_heading() -> None:
    headings = headings_of(README, "##")
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) == headings - {"contents"}


# One has a test of its own, since it calls the server that it begins with.
@pytest.mark.parametrize(
    "guide", [g for g in GUIDES if g.name != "client.md"], ids=lambda path: path.name
)
def test_the_python_of_a_guide_runs(guide: Path) -> None:
    """Run the blocks one after the other, then the tests that they define."""
    found: dict[str, Any] = {"__name__": guide.stem}
    for block in blocks(guide.read_text(), "python"):
        exec(compile(block, guide.name, "exec"), found)  # noqa: S102 - our own documents
    for name, test in found.items():
        if name.startswith("test_"):
            anyio.run(test)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "guide", [g for g in GUIDES if shown(g.read_text())], ids=lambda path: path.name
)
@pytest.mark.slow
def test_a_guide_shows_what_one_sees(guide: Path, tmp_path: Path) -> None:
    for number, (program, text) in enumerate(programs(guide.read_text())):
        path = tmp_path / f"app{number}.py"
        path.write_text(program)
        with served(str(path)) as url:
            for command, output in shown(text):
                assert_prints(command, output, url)


@pytest.mark.slow
def test_the_tests_of_the_guide_run_as_they_are_copied(tmp_path: Path) -> None:
    text = "\n".join(blocks((ROOT / "examples/guides/testing.md").read_text(), "python"))
    (tmp_path / "test_words.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_words.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{text.count('def test_')} passed" in done.stdout


@pytest.mark.slow
def test_the_client_of_the_websocket_guide_prints_what_it_says(tmp_path: Path) -> None:
    text = (ROOT / "examples/guides/websocket.md").read_text()
    for name, program in zip(("app.py", "client.py"), blocks(text, "python"), strict=True):
        (tmp_path / name).write_text(program)
    with served(str(tmp_path / "app.py")) as url:
        command = [sys.executable, str(tmp_path / "client.py"), url.replace("http", "ws")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [done.stdout] == blocks(text, "text"), done.stderr


def test_the_cells_of_the_notebook_run() -> None:
    text = (ROOT / "examples/guides/deploying.md").read_text()
    found: dict[str, Any] = {"__name__": "__main__"}
    program = next(block for block in blocks(text, "python") if "app.run" in block)
    exec(compile(program.partition("if __name__")[0], "app.py", "exec"), found)  # noqa: S102
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    async def run_cells() -> None:
        for cell in blocks(text, "ipython"):
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(cell.replace("8080", port), "cell", "exec", flags=flags)
            awaited = eval(code, found)
            if awaited is not None:
                await awaited
        with pytest.raises(asyncio.CancelledError):
            await found["server"]

    asyncio.run(run_cells())
    assert found["answer"].json() == {"predictions": [2, 4]}


def test_the_command_of_the_container_is_one() -> None:
    (dockerfile,) = blocks((ROOT / "examples/guides/deploying.md").read_text(), "dockerfile")
    line = re.search(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    assert line is not None
    command, *arguments = json.loads(line[1])
    options = parse(arguments)
    assert (command, options.target, options.host) == ("modelserve", "app.py", "0.0.0.0")


@pytest.mark.slow
def test_a_front_forwards_to_models_in_other_processes(tmp_path: Path) -> None:
    text = (ROOT / "examples/guides/composing.md").read_text()
    front = next(block for block in blocks(text, "python") if "front.py" in block)
    model = "import sys\nfrom modelserve import ModelServer\napp = ModelServer()\n"
    for name in ("prices", "reviews"):
        (tmp_path / f"{name}.py").write_text(
            f"{model}app.model('{name}')(lambda p: ['{name}', p])\n"
        )
    with served(f"{tmp_path}/prices.py") as prices, served(f"{tmp_path}/reviews.py") as reviews:
        for port, url in (("8081", prices), ("8082", reviews)):
            front = front.replace(f"127.0.0.1:{port}", url.removeprefix("http://"))
        (tmp_path / "front.py").write_text(front)
        with served(f"{tmp_path}/front.py") as url:
            for name in ("prices", "reviews"):
                answer = httpx.post(f"{url}/v1/models/{name}:predict", json=1)
                assert answer.json() == [name, 1]


def test_each_flag_that_a_document_shows_is_one() -> None:
    usages = {
        name: subprocess.run(
            [sys.executable, "-m", "modelserve", *name, "--help"],
            capture_output=True, text=True, check=True,
        ).stdout
        for name in [(), ("call",)]
    }  # fmt: skip
    for document in [ROOT / "README.md", *GUIDES]:
        for block in blocks(document.read_text(), "sh"):
            for line in block.splitlines():
                if line.startswith("modelserve "):
                    usage = usages[("call",) if line.startswith("modelserve call ") else ()]
                    used = re.findall(r"--[a-z-]+", line.partition("#")[0])
                    assert [flag for flag in used if flag not in usage] == []
