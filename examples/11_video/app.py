"""Find what moves in a video, frame by frame, while the video is still coming in.

Shows: a sync hook with an `Iterator`, which runs on one thread and keeps its state for one stream;
frames as messages of a WebSocket; the same frames as one HTTP body, where the pieces that arrive
are no frames. Leaves out: faces and names. What is found by is OpenCV's background subtraction,
which learns from the stream itself, so that no model has to be downloaded.

    pip install 'modelserve[tensors]' opencv-python-headless websockets
    modelserve examples/11_video/app.py

    ffmpeg -v error -i clip.mp4 -f mjpeg - | curl -N -T . -X POST -H 'Content-Type: video/x-motion-jpeg' \
        localhost:8080/v1/models/motion:predict
    python examples/11_video/watch.py ws://localhost:8080 clip.mp4

Each frame is a JPEG; over HTTP they follow one another. For each, there is one line:

    {"frame": 31, "moving": [{"x": 40, "y": 52, "width": 24, "height": 24}]}
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from modelserve import InvalidInput, Limits, Model, ModelServer

BEGIN, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG; there may be others in it only for a thumbnail
MOST_BYTES = 8 << 20  # of one frame
LEARNT = 10  # frames until the background is known
LEAST_AREA = 64  # pixels; less is noise


def split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the frames of a stream of JPEGs, however it is cut into pieces."""
    rest, seen = b"", 0
    for piece in pieces:
        if not isinstance(piece, bytes):
            raise InvalidInput("Expected the bytes of JPEGs.")
        rest += piece
        while (end := rest.find(END, seen)) >= 0:
            yield rest[: end + 2]
            rest, seen = rest[end + 2 :], 0
        seen = max(len(rest) - 1, 0)  # the marker itself may be cut
        if len(rest) > MOST_BYTES:
            raise InvalidInput(f"A frame has more than {MOST_BYTES} bytes.")
    if rest:
        raise InvalidInput("The last frame is not complete.")


def decode(frame: bytes) -> Any:
    """Return the pixels of a JPEG in grey."""
    picture = None
    if frame.startswith(BEGIN):
        picture = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise InvalidInput("A frame is no JPEG that can be read.")
    return picture


class Motion(Model):
    limits = Limits(concurrency=4)

    def load(self) -> None:
        cv2.setNumThreads(1)  # streams run side by side; a frame is too small to be divided
        self.ready = True

    def predict(self, payload: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        background = cv2.createBackgroundSubtractorMOG2(detectShadows=False)
        kernel = np.ones((3, 3), np.uint8)
        size = None
        for number, frame in enumerate(split(payload)):
            picture = decode(frame)
            if picture.shape != (size := size or picture.shape):
                raise InvalidInput("All frames of a stream have one size.")
            # Slowly, once it is known: what moves is not to become a part of it.
            changed = background.apply(picture, learningRate=-1 if number < LEARNT else 0.002)
            mask = cv2.morphologyEx(changed, cv2.MORPH_OPEN, kernel)
            moving = boxes(mask) if number >= LEARNT else []
            yield {"frame": number, "moving": moving}


def boxes(mask: Any) -> list[dict[str, int]]:
    """Return where the mask is set, from left to right."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = sorted(cv2.boundingRect(outline) for outline in outlines)
    names = ("x", "y", "width", "height")
    return [
        dict(zip(names, map(int, box), strict=True))
        for box in found
        if box[2] * box[3] >= LEAST_AREA
    ]


app = ModelServer([Motion("motion")])
