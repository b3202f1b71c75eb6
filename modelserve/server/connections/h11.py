"""uvicorn's protocol for h11, fixed."""

import sys
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from modelserve.server.connections.refusals import MOST_WAITING_BYTES, TOO_LONG, Lingering

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    H11Protocol = object

__all__ = ["H11Mends"]

_PART: Final = 1 << 14  # bytes that h11 gets at once: it checks a head's length only in between


class H11Mends(Lingering, H11Protocol):
    """uvicorn's protocol for h11, with the right answers to malformed data."""

    received = 0  # bytes of bodies
    _is_refused = False

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self.discard(len(data))
            return
        for start in range(0, len(data), _PART):
            cycle = self.cycle
            before = 0 if cycle is None else len(cycle.body)
            super().data_received(data[start : start + _PART])
            if cycle is not None and cycle is self.cycle:
                self.received += len(cycle.body) - before
            if self._is_refused or self not in self.connections or self.transport.is_closing():
                return
        if self.flow.read_paused and self._may_read():
            self.flow.resume_reading()

    def _may_read(self) -> bool:
        waiting, _ = self.conn.trailing_data
        return len(self.cycle.body) <= HIGH_WATER_LIMIT and len(waiting) <= MOST_WAITING_BYTES

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # nothing may be sent inside of a response
        elif getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._is_refused = True
            self.answer(431, TOO_LONG)
        else:
            self.answer_malformed(msg)
            self.conn.send_failed()  # the application can send nothing after it
