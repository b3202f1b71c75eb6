"""The head of a request: its headers and its id. Pure."""

import hmac
import os
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import product
from typing import Any, Final, TypeAlias

from starlette.datastructures import MutableHeaders

from modelserve.wire.generation import Generated

__all__ = ["NEW_IDS", "Head", "HookHeaders", "valid_id"]

Scope: TypeAlias = MutableMapping[str, Any]

_PAIRS: Final = [b"%02x" % n for n in range(256)]
_PROCESS: Final = bytearray(16)
_PARTS: Final[list[Sequence[bytes | bytearray]]] = [[_PROCESS], *[_PAIRS] * 6]
# Ids for requests without one: 16 random digits of this process, and 12 that count up.
NEW_IDS: Final[Iterator[bytes]] = map(b"".join, product(*_PARTS))
_ID: Final = b"x-request-id"
_ID_LENGTH: Final = 128
_PRINTABLE: Final = bytes(range(33, 127))


class HookHeaders(MutableHeaders, MutableMapping[str, str]):  # type: ignore[misc]
    """Headers as hooks see them: a mutable, case-insensitive mapping with lower-case keys.

    `scope` and `request_id` belong to the request of the headers.
    """

    scope: Scope | None = None
    request_id: bytes = b""


class Head:
    """The head of one request; a header is decoded only when it is read.

    Attributes:
        scope: The ASGI scope.
        headers: Values by lower-case name; of a repeated name, the last value.
        id: The client's `x-request-id` if it is valid, else a new one.
        generated: The answer of a language model; set only by the codecs for these.
    """

    __slots__ = ("generated", "headers", "id", "scope")
    generated: Generated

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id")
        self.id = next(NEW_IDS) if given is None else valid_id(given)

    def get(self, name: bytes) -> bytes:
        """Return a header's value, b"" without one; the last value of a repeated header."""
        return self.headers.get(name, b"")

    def hook_headers(self) -> HookHeaders:
        """Return a copy of the headers that hooks may write to, with the request's id."""
        raw = list(self.scope["headers"])
        if _ID in self.headers:  # it may be repeated, or none that is valid
            raw = [pair for pair in raw if pair[0] != _ID]
        raw.append((_ID, self.id))
        headers = HookHeaders(raw=raw)
        headers.scope = self.scope
        headers.request_id = self.id
        return headers

    @property
    def accept(self) -> str | None:
        """The `Accept` header; repeated lines are joined (RFC 9110, 5.3)."""
        last = self.headers.get(b"accept")
        if last is None:
            return None
        if len(self.headers) == len(self.scope["headers"]):  # none is repeated
            return last.decode("latin-1")
        values = [value for name, value in self.scope["headers"] if name == b"accept"]
        return b",".join(values).decode("latin-1")

    @property
    def has_connection(self) -> bool:
        """Whether the protocol has a connection that the client can be asked to close."""
        return str(self.scope.get("http_version", "")).startswith("1")

    def carries_token(self, token: str) -> bool:
        """Compare the request's bearer token with `token`, in constant time."""
        scheme, _, given = self.get(b"authorization").partition(b" ")
        same = hmac.compare_digest(given.strip(), token.encode())
        return same and scheme.lower() == b"bearer"


def valid_id(given: bytes) -> bytes:
    """Return the client's id if it is printable ASCII of at most 128 bytes, else a new one."""
    if given and len(given) <= _ID_LENGTH and not given.translate(None, _PRINTABLE):
        return given
    return next(NEW_IDS)


def _name_process() -> None:
    _PROCESS[:] = os.urandom(8).hex().encode()


_name_process()
if hasattr(os, "register_at_fork"):  # a forked worker would continue from the same number
    os.register_at_fork(after_in_child=_name_process)
