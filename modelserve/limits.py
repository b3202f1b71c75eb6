"""The limits of an application, of a model and of one request's time, as data."""

import math
from dataclasses import dataclass, fields, replace
from typing import Final, NamedTuple

from modelserve.errors import InvalidInput

__all__ = [
    "BINARY_BYTES",
    "DEFAULTS",
    "SMALL_BYTES",
    "TIMEOUT_HEADER",
    "Deadlines",
    "Limits",
    "shortened",
]

# The client's own time-out for one request; the name is Ray Serve's.
TIMEOUT_HEADER: Final = b"x-request-timeout-seconds"

MEBIBYTE: Final = 1 << 20
_MAY_BE_ZERO: Final = ("queue", "max_body_bytes", "max_collected_bytes", "drain_timeout")


def _is_valid(value: object, minimum: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return False
    return value > 0 if minimum is None else value >= minimum


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


class Deadlines(NamedTuple):
    """The limits on one request's time, in seconds; None means no limit."""

    timeout: float | None = None
    first_item_timeout: float | None = None
    idle_timeout: float | None = None
    send_timeout: float | None = None
    cleanup_timeout: float = 5.0
    input_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of an application or of one model; None means the default.

    Args:
        concurrency: Requests that run at the same time.
        queue: Requests that may wait for a slot; more are refused with 503.
        max_queued_bytes: Bytes of the bodies of all requests that are not admitted yet, uploads in
            progress included; more are refused with 503. One body may be larger while it is alone;
            of the application only.
        max_body_bytes: Bytes of a request's body; more is a 413. The default is 1 GiB for a body
            of binary tensors (V2) and 64 MiB for any other. A body that is streamed to the model
            is not limited.
        max_json_values: Values in a body of JSON, counted before it is parsed; more is a 413. A
            number or a text counts as one, a list as two, a key as three, an object as four.
        max_line_bytes: Bytes of one line of a streamed body; a longer one is an error in its place.
        max_collected_bytes: Bytes of a stream that is collected into one document; more is a 500.
        first_item_timeout: Seconds from admission to the first item or the result.
        idle_timeout: Seconds between two items.
        timeout: Seconds for the whole request, from its arrival.
        input_timeout: Seconds for which no line of a streamed body may arrive.
        send_timeout: Seconds for which a client may read nothing.
        drain_timeout: Seconds that running requests have to finish when the server stops; of
            the application only.
        cleanup_timeout: Seconds that the clean-up of a cancelled hook may take.

    `math.inf` means no limit. Raises ValueError for a meaningless number.
    """

    concurrency: float | None = None
    queue: float | None = None
    max_queued_bytes: float | None = None
    max_body_bytes: float | None = None
    max_json_values: float | None = None
    max_line_bytes: float | None = None
    max_collected_bytes: float | None = None
    first_item_timeout: float | None = None
    idle_timeout: float | None = None
    timeout: float | None = None
    input_timeout: float | None = None
    send_timeout: float | None = None
    drain_timeout: float | None = None
    cleanup_timeout: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            minimum = 0 if field.name in _MAY_BE_ZERO else None
            if value is not None and not _is_valid(value, minimum):
                least = "above 0" if minimum is None else "of 0 or more"
                raise ValueError(
                    f"The limit {field.name} cannot be {value!r}: it is a number {least}"
                )

    def with_defaults(self, defaults: "Limits") -> "Limits":
        """Return these limits, with `defaults` for those that are not set."""
        unset = {f.name: getattr(defaults, f.name) for f in fields(self) if self._is_unset(f.name)}
        return replace(self, **unset)

    def within(self, outer: "Limits") -> "Limits":
        """Combine a model's limits with its application's: the smaller number of each.

        A limit that only one of them sets counts as it is, so that a model may take larger bodies
        than the default. `concurrency` and `queue` stay the model's.
        """
        smaller = {
            f.name: min(getattr(self, f.name), getattr(outer, f.name))
            for f in fields(self)
            if not (self._is_unset(f.name) or outer._is_unset(f.name))
        }
        inner = replace(self, **smaller | {"concurrency": self.concurrency, "queue": self.queue})
        return inner.with_defaults(replace(outer, concurrency=math.inf, queue=math.inf))

    def deadlines(self) -> Deadlines:
        """Return the limits on one request's time."""
        return Deadlines(
            _finite(self.timeout),
            _finite(self.first_item_timeout),
            _finite(self.idle_timeout),
            _finite(self.send_timeout),
            self.cleanup_timeout if self.cleanup_timeout is not None else 5.0,
            _finite(self.input_timeout),
        )

    @property
    def binary_bytes(self) -> float:
        """The most bytes of a body of binary tensors: `max_body_bytes`, or 1 GiB if it is unset."""
        return BINARY_BYTES if self.max_body_bytes is None else self.max_body_bytes

    def _is_unset(self, name: str) -> bool:
        return getattr(self, name) is None


BINARY_BYTES: Final = 1024 * MEBIBYTE  # the default `max_body_bytes` for binary tensors
SMALL_BYTES: Final = MEBIBYTE // 4  # of a body decoded on the event loop: milliseconds
DEFAULTS: Final = Limits(
    concurrency=math.inf,
    queue=1000,
    max_queued_bytes=256 * MEBIBYTE,
    max_body_bytes=64 * MEBIBYTE,
    max_json_values=5_000_000,
    max_line_bytes=MEBIBYTE,
    max_collected_bytes=64 * MEBIBYTE,
    first_item_timeout=math.inf,
    idle_timeout=math.inf,
    timeout=math.inf,
    input_timeout=math.inf,
    send_timeout=60.0,
    drain_timeout=25.0,
    cleanup_timeout=5.0,
)


def shortened(deadlines: Deadlines, requested: bytes) -> Deadlines:
    """Return deadlines with the timeout that the client requests, where that is shorter.

    Args:
        requested: The value of `TIMEOUT_HEADER`.

    Raises InvalidInput for anything but a positive number.
    """
    try:
        seconds = float(requested)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput(f"{TIMEOUT_HEADER.decode()} must be a positive number.")
    if deadlines.timeout is not None:
        seconds = min(seconds, deadlines.timeout)
    return deadlines._replace(timeout=seconds)
