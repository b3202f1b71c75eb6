"""A file that holds the bearer token: read at the start, and again while the server runs.

Kubernetes rotates a secret by swapping a symbolic link. A thread reads the file every half second,
so that no request waits for a disk. A new token counts only when it has been read twice: a file
that is being written may hold a part of a token.
"""

import logging
import threading
import time
import weakref
from pathlib import Path
from typing import Final, Protocol

from modelserve.wire.bearer import LONGEST_TOKEN, token_problem

__all__ = ["HasToken", "follow_token", "read_token"]

logger = logging.getLogger("modelserve")

# In a worker process, these paths name another file, or none.
_DESCRIPTORS: Final = ("/dev/fd/", "/dev/stdin", "/proc/")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class HasToken(Protocol):
    """An object with a token that its clients must send."""

    token: str | None


# The latest thread for each holder: one that is served again has a new thread.
_latest: Final = weakref.WeakKeyDictionary[HasToken, threading.Thread]()


def read_token(path: str) -> str:
    """Return the token in a file, without a byte order mark and the white space around it.

    Raises ValueError, with a sentence that does not show what the file holds.
    """
    try:
        token = _read(path).removeprefix(_BYTE_ORDER_MARK).decode().strip(" \t\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read the token file {path}: {reason}") from None
    problem = token_problem(token)
    if problem is not None:
        raise ValueError(f"the token file {path} {problem}")
    return token


def follow_token(path: str, holder: HasToken, *, every: float = 0.5) -> None:
    """Update a holder's token from the file, read at intervals, as long as the holder lives.

    A file that it followed before is given up. A pipe (`--token-file <(pass show token)`) can be
    read only once, and is not followed. If the file cannot be used any more, that is logged, and
    the token stays as it is.
    """
    path = str(Path(path).absolute())  # links are not resolved: they change
    _latest.pop(holder, None)
    if path.startswith(_DESCRIPTORS) or Path(path).is_fifo():
        return
    holder.token = _look(path)[0] or holder.token  # a worker may start much later
    arguments = (path, weakref.ref(holder), every)
    thread = threading.Thread(target=_follow, args=arguments, name="modelserve-token", daemon=True)
    _latest[holder] = thread
    try:
        thread.start()
    except RuntimeError as exc:  # no more threads
        logger.warning("The token file %s is not read again: %s", path, exc)


def _follow(path: str, reference: "weakref.ref[HasToken]", every: float) -> None:
    seen: tuple[str | None, str | None] | None = None
    settled: str | None = None  # the problem that was logged
    while True:
        time.sleep(every)
        holder = reference()
        if holder is None or _latest.get(holder) is not threading.current_thread():
            return
        before, seen = seen, _look(path)
        if seen == before:
            token, problem = seen
            if problem is not None and problem != settled:
                logger.error("The token stays as it was: %s", problem)
            elif token is not None and token != holder.token:
                holder.token = token
                logger.info("The token is that of the changed file %s", path)
            settled = problem
        del holder


def _look(path: str) -> tuple[str | None, str | None]:
    """Return the token, or what is wrong with its file."""
    try:
        return read_token(path), None
    except ValueError as exc:
        return None, str(exc)


def _read(path: str) -> bytes:
    """Read a bounded part of a file, which may be /dev/zero."""
    with Path(path).open("rb") as file:
        return file.read(8 * LONGEST_TOKEN)
