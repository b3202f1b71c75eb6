"""A bound on the bytes of requests that are not admitted yet.

All bytes that a request holds while it waits are counted: the received parts of an upload, the
decompressed form of a body, and the body of a request in a queue. A request that is admitted at
once does not wait, and is not counted.
"""

from collections.abc import Callable

from modelserve.errors import ServingError

__all__ = ["Budget", "Share"]


class Budget:
    """The bytes that the requests of one application hold while they wait.

    Attributes:
        limit: How many they may hold together; one request may hold any number alone.
        held: How many they hold.
    """

    def __init__(self, limit: float, refusal: Callable[[], ServingError]) -> None:
        self.limit = limit
        self.held = 0
        self.refusal = refusal

    def hold(self, size: int, share: "Share | None" = None) -> "Share":
        """Let one request hold this many bytes, by the share that it has or a new one.

        The caller closes the share. Raises as `Share.resize`.
        """
        share = share or Share(self)
        share.resize(size)
        return share


class Share:
    """The part of a budget that one request holds.

    Attributes:
        size: In bytes.
    """

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def resize(self, size: int) -> None:
        """Hold this many bytes from now on.

        Raises the budget's refusal if the share grows and the budget is exceeded, with the bytes of
        other requests; the share is then as it was before.
        """
        budget = self._budget
        held = budget.held - self.size + size
        if held > budget.limit and size > self.size and held > size:
            raise budget.refusal()
        budget.held = held
        self.size = size

    def grow(self, more: int) -> None:
        """Hold this many bytes more. Raises as `resize`."""
        self.resize(self.size + more)

    def close(self) -> None:
        """Give the bytes back; a second call has no effect."""
        self.resize(0)
