"""Close what a request has opened, whatever ends the request meanwhile."""

from collections.abc import Coroutine
from typing import Any

from modelserve.concurrency.asyncio_guard import close_guarded
from modelserve.concurrency.flight import Watched

__all__ = ["clean_up"]


async def clean_up(request: Watched, closing: Coroutine[Any, Any, None]) -> None:
    """Await the coroutine that closes what a request has opened.

    Neither the request's early end nor the host interrupts it before `cleanup_timeout` has passed
    since then.
    """
    flight = request.flight
    if flight is None:  # only on asyncio does a request begin without one
        await close_guarded(request, closing)
    else:
        await flight.close(closing)
