"""Send the frames of a clip, or of a camera (a number), over a WebSocket; print what moves.

python examples/11_video/watch.py ws://localhost:8080 clip.mp4|0
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress

import cv2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError


def frames(video: cv2.VideoCapture) -> Iterator[bytes]:
    """Yield each frame as a JPEG."""
    while (read := video.read())[0]:
        yield cv2.imencode(".jpg", read[1])[1].tobytes()


async def send(ws: ClientConnection, video: cv2.VideoCapture) -> None:
    pictures = frames(video)
    with suppress(ConnectionClosed):  # the server has said why
        while frame := await asyncio.to_thread(next, pictures, b""):
            await ws.send(frame)
        await ws.send(b"")  # no more


async def main(url: str, source: str) -> str | int:
    """Return the exit code, or what is wrong."""
    video = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not video.isOpened():
        return f"{source} cannot be opened"
    async with connect(f"{url}/v1/models/motion:predict") as ws, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(ws, video))
        try:
            async for line in ws:
                print(line, flush=True)
        except ConnectionClosedError:
            return 1  # the last line says why
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
