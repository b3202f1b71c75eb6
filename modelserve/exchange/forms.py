"""Read a body that is multipart/form-data (RFC 7578), part by part as it arrives.

The parser is python-multipart's, which is an extra. Fields stay in memory; so do files up to 1 MiB
each. Larger ones are written to disk in a thread. The code that makes a reader must close it, which
closes all files.
"""

import codecs
import re
from collections.abc import Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from modelserve.concurrency.threads import Workers
from modelserve.errors import BodyTooLarge, ExtraMissing, InvalidInput
from modelserve.exchange.turns import TURN_SECONDS, give_way
from modelserve.exchange.uploads import Spool, Upload, write_all
from modelserve.protocols.codec import Codec
from modelserve.wire.forms import FIELD_BYTES, MOST_PARTS, FormData, field_too_large, too_many_parts
from modelserve.wire.head import Head
from modelserve.wire.headers import Header
from modelserve.wire.media import media_type, parameters

__all__ = ["FormReader", "form_reader"]

_FORM: Final = "multipart/form-data"
_HEADER_BYTES: Final = 16 << 10  # of one part
_BOUNDARY_BYTES: Final = 256  # RFC 2046 allows 70
_PIECE_BYTES: Final = 1 << 16
_PENDING_BYTES: Final = 1 << 20  # written to disk at once
# Charsets that are decoded quickly; some others of Python's may take minutes.
_CHARSETS: Final = re.compile(
    r"utf-?8|utf-?(16|32)([bl]e)?|us-?ascii|iso-?8859-\d+|latin-?1|(windows-|cp)\d+"
    r"|shift_?jis|euc-?(jp|kr)|gbk|gb2312|gb18030|big5|koi8-[ru]"
)


def form_reader(codec: Codec, head: Head, threads: Workers) -> "FormReader | None":
    """Return a reader of the request's body if that is a form and its codec takes forms.

    Call this before receiving the body. Raises InvalidInput for a form without a boundary, or with
    one that is too long, ExtraMissing if python-multipart is not installed.
    """
    content_type = head.get(b"content-type")
    if not codec.takes_forms or b"form-data" not in content_type.lower():
        return None
    if media_type(content_type.decode("latin-1")) != _FORM:
        return None
    found = parameters(content_type)
    if not found.get("boundary"):
        raise InvalidInput("The content-type of the form names no boundary.")
    if len(found["boundary"]) > _BOUNDARY_BYTES:
        raise InvalidInput("The boundary of the form is too long.")
    return FormReader(found["boundary"], _charset(found.get("charset", b"utf-8")), threads)


class FormReader:
    """Reads one form. Its length is the number of bytes that it was given.

    Attributes:
        payload: The form, once it has been read completely.
    """

    def __init__(self, boundary: bytes, charset: str, threads: Workers) -> None:
        parser, self._parse_error = _parser()
        self._parts = _Parts(charset)
        self._parser = parser(boundary, self._parts.callbacks())
        self._threads = threads
        self._size = 0
        self.payload: FormData | None = None

    def __len__(self) -> int:
        return self._size

    async def feed(self, piece: bytes | bytearray) -> None:
        """Read the next piece of the body.

        Raises InvalidInput for a malformed form, BodyTooLarge for one with too many parts or too
        large ones, OSError if a file cannot be written.
        """
        self._size += len(piece)
        if len(piece) <= _PIECE_BYTES:
            await self._read(bytes(piece))
            return
        began = monotonic()
        for start in range(0, len(piece), _PIECE_BYTES):
            await self._read(bytes(piece[start : start + _PIECE_BYTES]))
            if monotonic() - began > TURN_SECONDS:
                await give_way()
                began = monotonic()

    async def finish(self) -> None:
        """Make the form of the parts that were read. Raises InvalidInput if its end is missing."""
        if not self._parts.ended:
            raise InvalidInput("The form ends before its last boundary.")
        await self._write()
        self.payload = await self._parts.form()

    def close(self) -> None:
        """Close all files; a second call has no effect."""
        for spool in self._parts.spools:
            spool.close()

    async def close_after(self, answering: Coroutine[Any, Any, None]) -> None:
        """Await the answer to the request, and then close all files, however it ended."""
        try:
            await answering
        finally:
            self.close()

    async def _read(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except self._parse_error as exc:
            raise _refusal(self._parts.count, str(exc)) from None
        if self._parts.pending_bytes >= _PENDING_BYTES:
            await self._write()

    async def _write(self) -> None:
        parts = self._parts
        if parts.pending:
            pending, parts.pending, parts.pending_bytes = parts.pending, [], 0
            await self._threads.call("upload", write_all, pending)


class _Part:
    """One part: a file if it has a `spool`, else a field. Names are still encoded."""

    __slots__ = ("charset", "data", "filename", "headers", "name", "spool")

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.name = b""
        self.charset: str | None = None
        self.filename: str | bytes = b""
        self.data = bytearray()
        self.spool: Spool | None = None


class _Parts:
    """The parts that the parser has found.

    Attributes:
        count: The number of the part that is being read, from 1.
        ended: The last boundary has been read.
        spools: The files.
        pending: The writes to disk that are due, in order.
    """

    def __init__(self, charset: str) -> None:
        self.count = 0
        self.ended = False
        self.spools: list[Spool] = []
        self.pending: list[tuple[Spool, bytes]] = []
        self.pending_bytes = 0
        self._charset = charset
        self._parts: list[_Part] = []
        self._part = _Part()
        self._header_bytes = 0
        self._name = self._value = b""

    def callbacks(self) -> Any:
        """Return the parser's callbacks."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    async def form(self) -> FormData:
        """Decode names and fields. Raises InvalidInput for text that is not in its charset."""
        default = self._default_charset()
        items: list[tuple[str, Any]] = []
        began = monotonic()
        for number, part in enumerate(self._parts, 1):
            if monotonic() - began > TURN_SECONDS:  # there may be many large fields
                await give_way()
                began = monotonic()
            name = _decoded(part.name, default, number)
            if part.spool is None:
                items.append((name, _decoded(part.data, part.charset or default, number)))
            else:
                items.append((name, _upload(part, part.spool, default, number)))
        return FormData(items)

    def _default_charset(self) -> str:
        """Return the charset of the field `_charset_` if there is one (RFC 7578, 4.6)."""
        for part in self._parts:
            if part.name == b"_charset_" and part.spool is None:
                return _charset(bytes(part.data))
        return self._charset

    def _begin(self) -> None:
        self.count += 1
        if self.count > MOST_PARTS:
            raise too_many_parts()
        self._part = _Part()
        self._parts.append(self._part)
        self._header_bytes = 0

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _HEADER_BYTES:
            raise _headers_too_large(self.count)

    def _end_header(self) -> None:
        self._part.headers.append((self._name.lower(), self._value))
        self._name = self._value = b""

    def _end_headers(self) -> None:
        part = self._part
        headers = dict(part.headers)
        found = parameters(headers.get(b"content-disposition", b""))
        if "name" not in found:
            raise InvalidInput(
                f"Part {self.count} of the form has no content-disposition with a name."
            )
        part.name = found["name"]
        if "filename*" in found or "filename" in found:
            extended = found.get("filename*")
            part.filename = found["filename"] if extended is None else extended.decode()
            part.spool = Spool()
            self.spools.append(part.spool)
        elif b"content-type" in headers:
            given = parameters(headers[b"content-type"]).get("charset")
            part.charset = None if given is None else _charset(given)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        spool = self._part.spool
        if spool is None:
            if len(self._part.data) + end - start > FIELD_BYTES:
                raise field_too_large()
            self._part.data += data[start:end]
        elif spool.announce(end - start):
            self.pending.append((spool, data[start:end]))
            self.pending_bytes += end - start
        else:
            spool.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True


def _upload(part: _Part, spool: Spool, charset: str, number: int) -> Upload:
    name = part.filename
    filename = name if isinstance(name, str) else _decoded(name, charset, number)
    return spool.upload(filename, part.headers)


def _decoded(data: bytes | bytearray, charset: str, number: int) -> str:
    try:
        return data.decode(charset)
    except UnicodeDecodeError:
        raise InvalidInput(
            f"Part {number} of the form is not text in {charset}: "
            "send what is not text as a file, with a filename."
        ) from None


def _charset(name: bytes) -> str:
    """Return a charset if it is one that forms may have. Raises InvalidInput."""
    charset = name.decode("latin-1").strip().lower()
    if _CHARSETS.fullmatch(charset):
        with suppress(LookupError):
            return codecs.lookup(charset).name
    raise InvalidInput("The form has an unknown charset.")


def _refusal(part: int, problem: str) -> Exception:
    """Return the error for a form that the parser refused, without the parser's own text."""
    if "exceeded" in problem:
        return _headers_too_large(part)
    if not part:
        return InvalidInput("The form does not begin with the boundary of its content-type.")
    return InvalidInput(f"Part {part} of the form is malformed.")


def _headers_too_large(part: int) -> BodyTooLarge:
    return BodyTooLarge(f"Part {part} of the form has too many headers, or too long ones.")


def _parser() -> tuple[Any, type[Exception]]:
    """Return the class of the parser and that of its errors."""
    try:
        from python_multipart import MultipartParser
        from python_multipart.exceptions import FormParserError
    except ImportError:
        raise ExtraMissing("A multipart/form-data body", "python-multipart", "forms") from None
    return MultipartParser, FormParserError
