"""`modelserve call`, in this process where it can be, and as a script and a person run it."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import chunked, scripted, serving, whole

from modelserve import InferenceError, Model, ModelServer, ServerSentEvent, cli
from modelserve.client.terminal import Progress

ROOT = Path(__file__).parents[2]

server = ModelServer()


@server.model("square")
async def square(payload: Any) -> Any:
    if payload["instances"][0] == "refuse":
        raise InferenceError("not this", 422)
    return {"predictions": [n if isinstance(n, str) else n * n for n in payload["instances"]]}


@server.model("words")
async def words(payload: Any) -> AsyncIterator[str]:
    for word in payload["instances"][0].split():
        yield f"{word} "


@server.model("items")
async def items(payload: Any) -> AsyncIterator[Any]:
    for item in payload["instances"]:
        yield ServerSentEvent(item, event="named") if item == "named" else {"item": item}


@server.model("kind")
async def kind(payload: Any, headers: Any) -> Any:
    return [headers.get("content-type"), headers.get("x-one"), headers.get("authorization"), len(payload)]  # fmt: skip


class Bot(Model):
    async def chat(self, request: Any) -> AsyncIterator[str]:
        for word in request["messages"][-1]["content"].split():
            if word == "raise":
                raise InferenceError("lost for words", 500)
            yield f"{word.upper()} "
            if word == "wait":
                await anyio.sleep_forever()
        yield str(len(request["messages"]))


server.add_model(Bot("bot"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(server) as address:
        yield address


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["call", *arguments])
        captured = capfdbinary.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return run


# --- one payload --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["square", "3"], '{"predictions":[9]}\n'),
        (["square", "3", "x", "4"], '{"predictions":[9,"x",16]}\n'),
        (["square", '{"instances":[2]}'], '{"predictions":[4]}\n'),
        (["words", "to be"], "to be "),
        (["words", '"to be"', "--raw"], "to be "),
        (["items", "1", "[2]"], '{"item":1}\n{"item":[2]}\n'),
        (["items", "1", "named", "--sse"], '{"item":1}\n{"event":"named","data":"named"}\n'),
        (["items", "1", "--raw", "--sse"], 'data: {"item":1}\n\n'),
        (["items", "1", "--header", "Accept: application/json"], '{"predictions":[{"item":1}]}\n'),
        (["kind", "1", "--header", "X-One: two"], '["application/json","two",null,1]\n'),
    ],
)
def test_what_is_printed(url: str, call: Any, arguments: list[str], printed: str) -> None:
    assert call(url, *arguments) == (0, printed, "")


@pytest.mark.parametrize("instance", ["{instances: [2]}", " {'a': 1}", "{"])
def test_an_object_without_its_quotes_is_not_sent_as_text(
    url: str, call: Any, instance: str
) -> None:
    code, printed, complaint = call(url, "square", instance)
    assert (code, printed) == (2, "")
    assert complaint.startswith("modelserve: INSTANCE begins like a JSON object and is none: ")
    assert call(url, "words", f'"{instance}"', "--raw")[:2] == (0, f"{instance.strip()} ")


@pytest.mark.parametrize(
    ("name", "content", "printed"),
    [
        ("a.json", b'{"instances":[2]}', '{"predictions":[4]}\n'),
        ("a.json", b"[2, 3]", '{"predictions":[4,9]}\n'),
        ("a.json", b"2", '{"predictions":[4]}\n'),
    ],
)
def test_a_file_of_json(
    url: str, call: Any, tmp_path: Path, name: str, content: bytes, printed: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert call(url, "square", "--file", str(path)) == (0, printed, "")


def test_another_file_and_a_token(url: str, call: Any, tmp_path: Path) -> None:
    picture, token = tmp_path / "a.png", tmp_path / "token"
    picture.write_bytes(b"\x89PNG")
    token.write_text("secret\n")
    code, printed, _ = call(url, "kind", "--file", str(picture), "--token-file", str(token))
    assert (code, printed) == (0, '["image/png",null,"Bearer secret",4]\n')


def test_items_are_printed_as_they_come(call: Any) -> None:
    answer = chunked("application/x-ndjson", b"1\n", b'{"error":"broke"}\n')
    with scripted(answer) as (url, _):
        assert call(url, "m", "1") == (1, "1\n", "modelserve: broke\n")


def test_a_servers_sentence_does_not_steer_the_terminal(call: Any) -> None:
    with scripted(whole(b'{"error":"\\u001b[31mr\\u00f6d\\n"}', status="400 x")) as (url, _):
        assert call(url, "m", "1") == (1, "", "modelserve: \\x1b[31mr\u00f6d\\n\n")


# --- rows ---------------------------------------------------------------------------------------


def test_rows_of_a_file_in_one_request(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"1\n2")
    answer = chunked("application/x-ndjson", b'1\n{"error":"bad","line":2}\n')
    with scripted(answer) as (url, heads):
        code, printed, errors = call(url, "m", "--file", str(path), "--on-error", "stop")
        assert (code, printed, errors) == (4, '1\n{"error":"bad","line":2}\n', "")
        assert heads[0].startswith(b"POST /v1/models/m:predict?on_error=stop HTTP/1.1")
        assert call(url, "m", "--file", str(path), "--raw")[:2] == (0, printed)


def test_rows_of_a_file_in_several_requests(url: str, call: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n\n2\r\n3")
    assert call(url, "square", "--file", str(path), "--chunk", "2") == (0, "1\n4\n9\n", "")


@pytest.mark.parametrize("options", [[], ["--chunk", "1"]])
def test_rows_of_a_file_of_windows(url: str, call: Any, tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"\xef\xbb\xbf1\r\n2\r\n")
    assert call(url, "square", "--file", str(path), *options) == (0, "1\n4\n", "")


def test_a_recording_is_streamed(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    with scripted(chunked("application/x-ndjson", b"1\n")) as (url, heads):
        assert call(url, "m", "--file", str(path), "--content-type", "audio/wav")[0] == 0
        assert b"content-type: audio/wav" in heads[0]


# --- what goes wrong ----------------------------------------------------------------------------


def test_exit_codes(url: str, call: Any) -> None:
    assert call(url, "zz", "1") == (1, "", "modelserve: Model with name zz does not exist.\n")
    assert call(url, "square", "refuse") == (1, "", "modelserve: not this\n")
    with scripted(b"") as (gone, _):
        assert call(gone, "m", "1")[0] == 3
    code, _, errors = call(gone, "m", "1")
    assert (code, errors.startswith(f"modelserve: {gone} cannot be reached")) == (3, True)
    with scripted(whole(b"{]")) as (liar, _):
        assert call(liar, "m", "1")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ftp://x", "m", "1"], "modelserve: 'ftp://x' is not the address of a server"),
        (["x", "m", "--file", "gone.json"], "cannot use gone.json: No such file or directory"),
        (["x", "m", "1", "--token-file", "gone"], "cannot use gone: No such file"),
        (["x", "m", "1", "--token-file", "/dev/null"], "The token is empty."),
    ],
)
def test_what_cannot_be_used(call: Any, arguments: list[str], sentence: str) -> None:
    code, _, errors = call(*arguments)
    assert code == 2
    assert sentence in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("x", "the following arguments are required: MODEL\n"),
        ("x m 1 --file a", "give only one of INSTANCE, --file and --chat"),
        ("x m 1 --header x", "'x' is not a header, like 'X-Name: value'"),
        ("x m --chunk 0", "'0' is not a whole number above 0"),
        ("x m --timeout nan", "'nan' is not a number of seconds"),
        ("x m --raw --chunk 2", "--raw cannot be used with --chunk"),
        ("x m --sse", "--sse is for one payload"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["call", *arguments.split()])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_without_httpx(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    code, _, errors = call("localhost", "m", "1")
    assert code == 2
    assert errors == "modelserve: The client needs httpx: pip install 'modelserve[client]'.\n"


@pytest.mark.slow
def test_a_file_called_call_is_still_served(tmp_path: Path) -> None:
    (tmp_path / "call.py").write_text("app = 5")
    for target in ("./call.py", "call.py"):
        done = run(target, cwd=tmp_path)
        assert (done.returncode, b"not an ASGI application" in done.stderr) == (2, True)


# --- as others run it ---------------------------------------------------------------------------


def started(*arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "modelserve", *arguments], env=environment, **settings
    )


def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "modelserve", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, timeout=50, check=False, **settings
    )


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with each piece as it comes."""
    headers = [(b"content-type", b"application/x-ndjson")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})  # fmt: skip


def test_a_script_sees_each_result_before_it_sends_the_next_row() -> None:
    with serving(echo, lifespan="off") as url:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with started("call", url, "m", **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for row in (b"1\n", b'{"a":2}\n'):
                process.stdin.write(row)
                process.stdin.flush()
                assert process.stdout.readline() == row
            process.stdin.close()
            assert process.stdout.read() == b""
            assert process.wait(30) == 0


@pytest.mark.slow
def test_ctrl_c_while_rows_are_awaited() -> None:
    with serving(echo, lifespan="off") as url:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = started("call", url, "m", **pipes)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (130, b"")


def test_a_script_holds_a_conversation(url: str) -> None:
    said = b"one two\n\nraise\nbye\n"
    done = run("call", url, "bot", "--chat", "--system", "be nice", input=said)
    assert done.stdout == b"ONE TWO 2\nBYE 4\n"
    assert done.stderr == b"modelserve: lost for words\n"
    assert done.returncode == 1


@pytest.mark.slow
def test_a_person_stops_an_answer_and_goes_on(url: str) -> None:
    screen, terminal = pty.openpty()
    process = started(
        "call", url, "bot", "--chat", stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(terminal)
    try:
        read_until(screen, b"> ")
        os.write(screen, b"a wait\n")
        read_until(screen, b"A WAIT ")
        os.write(screen, b"\x03")
        read_until(screen, b"[stopped]\r\n> ")
        os.write(screen, b"b\n")
        read_until(screen, b"B 3\r\n> ")
        assert interrupted_until_it_ends(process, screen) == 0
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def interrupted_until_it_ends(process: subprocess.Popen[bytes], screen: int) -> int:
    """Press Ctrl-C at a prompt: Python loses one that comes just before it begins to read."""
    for _ in range(10):
        os.write(screen, b"\x03")
        with suppress(subprocess.TimeoutExpired):
            return process.wait(2)
    raise AssertionError("it does not end")


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(screen: int, text: bytes) -> bytes:
    found, end = b"", time.monotonic() + 20
    while text not in found:
        assert time.monotonic() < end, found
        with suppress(OSError):
            found += os.read(screen, 1024)
    return found


# --- the bar ------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def filled(output: io.StringIO, *, alone: bool = True, total: int | None = 100) -> str:
    clock = Clock()
    progress = Progress(output, alone=alone, total=total, clock=clock)
    for number in range(1, 5):
        clock.now = number / 4
        progress.sent(25)
        progress.came(500)
    progress.end()
    return output.getvalue()


def test_a_bar_on_a_terminal() -> None:
    first, *_, last = filled(Screen()).split("\r")[1:]
    assert (
        first == "[######------------------]  25%  500 rows  2,000 rows/s  first item 0.250 s\x1b[K"
    )
    assert (
        last
        == "[########################] 100%  2,000 rows  2,000 rows/s  first item 0.250 s\x1b[K\n"
    )
    assert filled(Screen(), total=None).split("\r")[1].startswith("500 rows")


def test_no_bar_elsewhere() -> None:
    assert filled(io.StringIO()) == ""
    assert filled(Screen(), alone=False).count("rows/s") == 1
