"""Send the frames of a clip, or of a camera (a number), over a WebSocket; print what moves.

python examples/11_video/watch.py ws://localhost:8080 clip.mp4|0
"""

import asyncio
import sys
from collections.abc import Iterator

import cv2
from websockets.asyncio.client import ClientConnection, connect


def frames(source: str) -> Iterator[bytes]:
    """Yield each frame as a JPEG."""
    video = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not video.isOpened():
        raise SystemExit(f"{source} cannot be opened")
    while (read := video.read())[0]:
        yield cv2.imencode(".jpg", read[1])[1].tobytes()


async def send(ws: ClientConnection, source: str) -> None:
    video = frames(source)
    while frame := await asyncio.to_thread(next, video, b""):
        await ws.send(frame)
    await ws.send(b"")  # no more


async def main(url: str, source: str) -> None:
    async with connect(f"{url}/v1/models/motion:predict") as ws, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(ws, source))
        async for line in ws:
            print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
