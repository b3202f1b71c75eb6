"""Close what a request has opened, whatever ends the request meanwhile."""

from collections.abc import Coroutine
from typing import Any

from modelserve.concurrency.asyncio_guard import close_guarded
from modelserve.concurrency.flight import Watched

__all__ = ["clean_up"]


async def clean_up(request: Watched, closing: Coroutine[Any, Any, None]) -> None:
    """Await the coroutine that closes what a request has opened.

    Neither the early end of the request nor the host interrupts it until `cleanup_timeout` has
    passed since that moment.
    """
    flight = request.flight
    if flight is None:  # a request may begin without a flight on asyncio only
        await close_guarded(request, closing)
    else:
        await flight.close(closing)
