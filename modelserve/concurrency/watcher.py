"""Wait for a client to leave."""

from typing import Final

import anyio
from starlette.types import Receive

from modelserve.concurrency.flight import Flight
from modelserve.errors import ClientGone

__all__ = ["watch"]

_PAUSE_SECONDS: Final = 0.02


async def watch(flight: Flight, receive: Receive) -> None:
    """Cancel a flight when its client leaves; any exception from `receive` means that it has.

    Hardly any host sends anything else after the body. If one does, it is asked again after a
    pause: a `receive` that always returns at once would keep the event loop busy for ever.
    """
    try:
        while (await receive())["type"] != "http.disconnect":  # noqa: ASYNC110 - the host's to wait for
            await anyio.sleep(_PAUSE_SECONDS)
    except Exception:  # noqa: S110 - `suppress` would make each idle stream larger
        pass
    flight.cancel(ClientGone())
