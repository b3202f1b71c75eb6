"""Output for a person: the progress of rows, and a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

from modelserve.client.failures import ClientError
from modelserve.client.sync import Client

__all__ = ["Progress", "asking", "complain", "converse"]

_BAR: Final = 24
_EVERY_SECONDS: Final = 0.1


class Progress:
    """One line that says how many rows are done; nothing unless `output` is a terminal.

    If the results go to a terminal too, only the last line is shown, so that they do not mix.
    `total` is the size of the source in bytes, None if it is unknown.
    """

    def __init__(
        self, output: TextIO | None, *, alone: bool, total: int | None, clock: Callable[[], float]
    ) -> None:
        self._output = output if output is not None and output.isatty() else None
        self._alone = alone
        self._total = total
        self._clock = clock
        self._begun = self._drawn = clock()
        self._first: float | None = None
        self._rows = self._sent = 0

    def sent(self, size: int) -> None:
        """Count bytes of the source."""
        self._sent += size

    def came(self, count: int) -> None:
        """Count rows that are done."""
        now = self._clock()
        if self._first is None:
            self._first = now - self._begun
        self._rows += count
        if self._alone and now - self._drawn >= _EVERY_SECONDS:
            self._drawn = now
            self._draw("\r")

    def end(self) -> None:
        """Draw the last line."""
        self._draw("\r" if self._alone else "", "\n")

    def _draw(self, before: str, after: str = "") -> None:
        if self._output is not None:
            erase = "\x1b[K" if before else ""
            self._output.write(f"{before}{self.line()}{erase}{after}")
            self._output.flush()

    def line(self) -> str:
        """Return what is shown."""
        seconds = max(self._clock() - self._begun, 1e-6)
        parts = [f"{self._rows:,} rows", f"{self._rows / seconds:,.0f} rows/s"]
        if self._first is not None:
            parts.append(f"first item {self._first:.3f} s")
        if self._total:
            share = min(self._sent / self._total, 1.0)
            full = round(share * _BAR)
            parts.insert(0, f"[{'#' * full}{'-' * (_BAR - full)}] {share:4.0%}")
        return "  ".join(parts)


def converse(
    client: Client, model: str, *, system: str | None, ask: Callable[[], str | None]
) -> ClientError | None:
    """Hold a conversation: `ask` returns what a person says, None at the end.

    Ctrl-C stops an answer; the part that has come stays in the conversation. Returns the last error
    of an answer, if any.
    """
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    error = None
    while (said := ask()) is not None:
        if not said.strip():
            continue
        error = _turn(client, model, messages, said) or error
    return error


def _turn(
    client: Client, model: str, messages: list[dict[str, Any]], said: str
) -> ClientError | None:
    """Send a message and print the answer; keep both, unless there is no answer."""
    messages.append({"role": "user", "content": said})
    pieces: list[str] = []
    error = None
    try:
        with client.chat(model, messages) as answer:
            for piece in answer:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    except ClientError as exc:
        error = exc
    if pieces or error is None:
        print(flush=True)
    if error is not None:
        complain(str(error))
    if pieces:
        messages.append({"role": "assistant", "content": "".join(pieces)})
    else:
        messages.pop()
    return error


def complain(sentence: str) -> None:
    """Print an error to stderr, on one line: a server's text must not steer the terminal."""
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    print(f"modelserve: {safe}", file=sys.stderr, flush=True)


def asking() -> Iterator[str]:
    """Yield the lines that a person types; Ctrl-C ends them as well."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            if prompt:
                print()
            return
