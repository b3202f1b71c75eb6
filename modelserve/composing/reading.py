"""Read the items of a call in a thread that waits for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from threading import get_ident
from typing import Any

from modelserve.composing.requests import CallRequest
from modelserve.concurrency.bridge import call_of_this_thread, stopping
from modelserve.concurrency.feeding import Feed

__all__ = ["items_in_thread"]


def items_in_thread(
    request: CallRequest,
    call_soon: Callable[[Callable[[], object]], object],
    begin: Callable[[], object],
    leave: Callable[[], object],
    feed: Feed | None = None,
) -> Iterator[Any]:
    """Yield the items of a call; if closed before its end, cancel it and wait for its clean-up.

    If this thread runs a hook, the call ends with that hook. If another thread than the last reader
    closes it, as a garbage collection may do, it does not wait.

    Args:
        call_soon: Calls a function on the event loop of the call.
        begin: Begins the call there.
        leave: Cancels the call there; called by the event loop of the hook that this thread runs.
        feed: The iterable that this thread has to read for the call.

    Raises the exception that ended the call.
    """
    changed, thread, reader = threading.Event(), call_of_this_thread(), get_ident()
    request.notify = changed.set
    if feed is not None:
        feed.notify = changed.set
    with nullcontext() if thread is None else stopping(thread, leave):
        begin()
        try:
            while True:
                is_over = request.ended  # read first: after it, nothing is added
                if request.items and (is_over or request.streams):
                    item = request.items.popleft()
                    if request.waits_for_room and len(request.items) <= request.ahead // 2:
                        call_soon(request.make_room)
                    yield item
                    reader = get_ident()
                elif is_over:
                    break
                elif feed is not None and feed.is_wanted:
                    feed.read()
                else:
                    changed.wait()
                    changed.clear()
        finally:
            if not request.ended:
                call_soon(request.leave)
                while not request.ended and reader == get_ident():
                    changed.wait()
                    changed.clear()
    error, request.error = request.error, None
    if error is None and feed is not None:
        error = feed.error  # the model caught it
    if error is not None:
        raise error
