"""Those who wait for something that may never come, and are told when to wait no longer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelserve.concurrency.loops import event_loop

__all__ = ["Sleepers"]


class Sleepers:
    """Tasks of any event loops, each with what ends its wait."""

    def __init__(self) -> None:
        self._wakes = set[Callable[[], None]]()

    def __len__(self) -> int:
        return len(self._wakes)

    @contextmanager
    def woken_by(self, wake: Callable[[], None]) -> Iterator[None]:
        """Have a function called, on the event loop that is running now, if `wake` is meanwhile."""
        loop = event_loop()

        def wake_soon() -> None:
            loop.call_from_thread(wake)

        self._wakes.add(wake_soon)
        try:
            yield
        finally:
            self._wakes.discard(wake_soon)

    def wake(self) -> None:
        """Wake all that sleep now, from any thread."""
        for wake in [*self._wakes]:
            wake()
