"""Receive what is left of a body once its request is over.

A host may wait for that. hypercorn ends an answer by a message for the application, into the queue
of the body; while that is full, it neither closes the connection nor lets go of it, and nobody else
receives after the application has returned. Behind that message it puts the rest of those of a
WebSocket that it has read. Other hosts say again and again that the client has left.
"""

from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Final

import anyio

from modelserve.concurrency.loops import event_loop
from modelserve.exchange.exchange import Exchange

__all__ = ["receive_leftover"]

_LEAVING: Final = ("http.disconnect", "websocket.disconnect")
_PAUSE_SECONDS: Final = 0.002  # a client that sends on must not keep the event loop busy
_QUIET_SECONDS: Final = 1.0


def receive_leftover(exchange: Exchange, ended: BaseException) -> None:
    """Receive and throw away, in a task of its own, until the host says twice that the client left.

    Args:
        ended: What has ended the task that received until now.

    The task ends as well once the request is over and nothing has come for a second. There is none
    if the host cancels both tasks at once, without a word to the request: its event loop is ending.
    """
    if exchange.reason is None and exchange.is_interrupted_by(ended):
        return
    with suppress(RuntimeError):  # trio is ending
        event_loop().start_soon(partial(_receive, exchange), Context())


async def _receive(exchange: Exchange) -> None:
    told = 0
    with suppress(Exception):  # whatever it is, the client has left
        while told < 2:
            is_over = exchange.flight is None
            with anyio.move_on_after(_QUIET_SECONDS) as quiet:
                told += (await exchange.receive())["type"] in _LEAVING
            if is_over and quiet.cancelled_caught:
                return
            await anyio.sleep(0 if is_over else _PAUSE_SECONDS)
