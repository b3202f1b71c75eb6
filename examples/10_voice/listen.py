"""Send a WAV over a WebSocket as fast as it would be spoken; print what comes back meanwhile.

python examples/10_voice/listen.py ws://localhost:8080 speech.wav
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

PIECE = 3200  # a tenth of a second


async def send(ws: ClientConnection, sound: bytes) -> None:
    with suppress(ConnectionClosed):  # the server has said why
        for at in range(0, len(sound), PIECE):
            await ws.send(sound[at : at + PIECE])
            await asyncio.sleep(0.1)
        await ws.send(b"")  # no more


async def main(url: str, path: str) -> int:
    """Return the exit code."""
    sound = await asyncio.to_thread(Path(path).read_bytes)
    async with connect(f"{url}/v1/models/voice:predict") as ws, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(ws, sound))
        try:
            async for line in ws:
                print(line, flush=True)
        except ConnectionClosedError:
            return 1  # the last line says why
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
