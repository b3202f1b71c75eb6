"""How requests of a model are processed together, as data: in batches, or step by step."""

import math
from dataclasses import dataclass

__all__ = ["Batching", "Stepping"]


@dataclass(frozen=True, slots=True)
class Batching:
    """How the requests of one model are batched.

    An item is one of V1's `instances`, or one row of V2's tensors. While the model is free, each
    request is processed at once, alone. While it is busy, requests wait, and when a call ends those
    that have waited longest are processed together.

    Args:
        max_size: Items in one call; a larger request is divided over several. LitServe's
            `max_batch_size`, KServe's `maxBatchSize`.
        max_wait: Seconds for which a request waits for others although the model is free.
            LitServe's `batch_timeout`; KServe's `maxLatency`, which is in milliseconds.
        concurrency: Calls of `predict` at the same time, in each event loop that serves the model.
            That of `Limits` counts requests instead.
        isolate: If a call for several requests raises, make it again once for each of them, so that
            one bad input fails its own request only.

    Raises ValueError for a meaningless number.
    """

    max_size: int = 32
    max_wait: float = 0.0
    concurrency: int = 1
    isolate: bool = True

    def __post_init__(self) -> None:
        for name in ("max_size", "concurrency"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of Batching must be an integer above 0, not {value!r}")
        wait = self.max_wait
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise ValueError(f"max_wait of Batching must be a number of seconds, not {wait!r}")


@dataclass(frozen=True, slots=True)
class Stepping:
    """How the requests of a model with `step(active)` are stepped together.

    Each request has a slot (see `Slot`). `step(active)` is called again and again with the slots
    that are active; for each it calls `put(item)` and, at the end, `end()`, or `fail(error)`.
    Requests join and leave between two steps: `join(slot)` is called before the first step of a
    slot; if it raises, the request is answered with that error. `leave(slot)` is called once for
    every slot that has joined, however it ended. Both are optional.

    Sync methods run in the model's own thread, async ones on the event loop.

    Args:
        max_active: Slots in one step; more requests wait.
        room: Items that may wait for a slow client. A slot with that many is left out of the steps.

    Raises ValueError for a meaningless number.
    """

    max_active: int = 8
    room: int = 16

    def __post_init__(self) -> None:
        for name in ("max_active", "room"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of Stepping must be an integer above 0, not {value!r}")
