"""Stream server-sent events with names and ids, and binary frames with their own content type.

Shows: `ServerSentEvent` for full control over events; `response_headers` to set the content type
of a raw stream; a sync generator, which runs on one worker thread from beginning to end; what a
heartbeat is for. Leaves out: a model. The sound is a sine wave.

    modelserve examples/02_events.py

    curl -N localhost:8080/v1/models/steps:predict -H 'Accept: text/event-stream' -d '{"instances": [3]}'
    curl -N localhost:8080/v1/models/tone:predict -d '{"instances": [440]}' > tone.wav
"""

import math
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio

from modelserve import Model, ModelServer, ServerSentEvent, instances

RATE = 16_000  # samples a second
FRAME = 1_600  # samples an item


class Steps(Model):
    """Report the progress of a job, then its result; a quiet stream is kept alive every 15 s."""

    heartbeat = 15.0

    async def predict(self, payload: Any) -> AsyncIterator[ServerSentEvent]:
        total = instances(payload, int, at_least=1)[0]
        for step in range(1, total + 1):
            await anyio.sleep(0.05)
            yield ServerSentEvent({"step": step, "of": total}, event="progress", id=str(step))
        yield ServerSentEvent({"predictions": [total]}, event="result")


class Tone(Model):
    """Play one second of a tone, a tenth of a second in each item."""

    def predict(self, payload: Any, response_headers: Any) -> Iterator[bytes]:
        response_headers["content-type"] = "audio/wav"
        pitch = instances(payload, float, at_least=1)[0]
        yield wave_header(RATE)
        for start in range(0, RATE, FRAME):
            yield b"".join(sample(pitch, start + n) for n in range(FRAME))


def sample(pitch: float, number: int) -> bytes:
    return struct.pack("<h", int(12_000 * math.sin(2 * math.pi * pitch * number / RATE)))


def wave_header(samples: int) -> bytes:
    """Return the header of a WAVE file with 16-bit mono sound."""
    size = 2 * samples
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, RATE,
                       2 * RATE, 2, 16)  # fmt: skip
    return head + struct.pack("<4sI", b"data", size)


app = ModelServer([Steps("steps"), Tone("tone")])
