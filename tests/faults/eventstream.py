"""Server-sent events, read as the standard says (WHATWG HTML, section 9.2.6), word by word.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from typing import NamedTuple

__all__ = ["Event", "Interpretation", "interpret"]

_LINE_END = re.compile("\r\n|\n|\r")


class Event(NamedTuple):
    """What an `EventSource` dispatches."""

    type: str
    data: str
    last_id: str


class Interpretation(NamedTuple):
    """A whole stream: its events, and the state that outlives them.

    `rest` is what came after the last blank line, which a browser discards.
    """

    events: list[Event]
    last_id: str
    retry: int | None
    rest: str


def interpret(stream: bytes) -> Interpretation:
    """Interpret a whole event stream. Raises UnicodeDecodeError where it is not UTF-8."""
    text = stream.decode().removeprefix("\ufeff")
    lines = _LINE_END.split(text)
    rest = lines.pop()  # no line end after it
    events: list[Event] = []
    data: list[str] = []
    event_type, last_id, retry = "", "", None
    pending: list[str] = []
    for line in lines:
        pending.append(line)
        if not line:
            if data:
                events.append(Event(event_type or "message", "\n".join(data), last_id))
            data, event_type, pending = [], "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event_type = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            retry = int(value)
    return Interpretation(events, last_id, retry, "\n".join([*pending, rest]))
