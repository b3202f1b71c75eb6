"""`modelserve call URL MODEL`: call a model from the terminal or a script."""

from __future__ import annotations

import mimetypes
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from modelserve.client.aio import AsyncClient
from modelserve.client.answers import media_type_of
from modelserve.client.failures import AnswerError, ClientError
from modelserve.client.items import ItemError
from modelserve.client.lots import Lots
from modelserve.client.settings import Given
from modelserve.client.sync import Client, lots
from modelserve.client.terminal import Progress, asking, complain, converse
from modelserve.errors import ExtraMissing
from modelserve.wire.encoders import ServerSentEvent
from modelserve.wire.json import to_json

__all__ = ["main"]

REFUSED: Final = 1
UNUSABLE: Final = 2
NO_ANSWER: Final = 3
BAD_LINES: Final = 4
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141  # a shell's exit code for SIGPIPE
_PIECE: Final = 64 * 1024
_LINES: Final = (".jsonl", ".jsonlines", ".ndjson")
_EPILOG: Final = """\
INSTANCE is JSON, or else text. One that has "instances" or "inputs" is the whole payload. Without
any, rows are read from stdin, one JSON value per line, and sent as they come; results are printed
as they come, a bad line's error in its place.

exit codes: 0 all went well, 1 the server answered with an error, 2 the arguments cannot be used,
3 no answer or a broken one, 4 some lines had errors, 130 Ctrl-C"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code. An error is one sentence on stderr."""
    options = _parse(arguments)
    try:
        return _run(options)
    except AnswerError as exc:
        return _failed(str(exc), REFUSED)
    except ClientError as exc:
        return _failed(str(exc), NO_ANSWER)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except OSError as exc:
        return _failed(f"cannot use {exc.filename}: {exc.strerror}", UNUSABLE)
    except (ExtraMissing, ValueError, TypeError) as exc:
        return _failed(str(exc), UNUSABLE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _failed(sentence: str, code: int) -> int:
    complain(sentence)
    return code


def _run(options: Namespace) -> int:
    settings: Given = {
        "token": _token_in(options.token_file),
        "headers": dict(options.header),
        "timeout": options.timeout,
        "verify": not options.insecure,
    }
    payload = None if options.chat else _payload(options)
    if payload is None and not options.chat:
        return _run_rows(partial(AsyncClient, options.url, **settings), options)
    with Client(options.url, **settings) as client:
        return _run_chat(client, options) if options.chat else _run_one(client, options, payload)


def _run_chat(client: Client, options: Namespace) -> int:
    said = asking()
    error = converse(client, options.model, system=options.system, ask=lambda: next(said, None))
    if error is None or sys.stdin.isatty():  # a person has seen it
        return 0
    return REFUSED if isinstance(error, AnswerError) else NO_ANSWER


def _run_one(client: Client, options: Namespace, payload: Any) -> int:
    """Send one payload and print the items of the answer as they come."""
    out = sys.stdout.buffer
    with client.stream(
        options.model,
        payload,
        verb=options.verb,
        version=options.model_version,
        content_type=_type_of(options),
        sse=options.sse,
        raw=options.raw,
        headers={} if options.sse or "accept" in _names(options) else {"accept": "*/*"},
    ) as items:
        is_text = media_type_of(items.content_type) == "text/plain"
        write = _as_it_is if options.raw or is_text else _as_line
        for item in items:
            out.write(write(item))
            out.flush()
        if is_text and not options.raw and sys.stdout.isatty():
            out.write(b"\n")
            out.flush()
    return 0


def _run_rows(new_client: Callable[[], AsyncClient], options: Namespace) -> int:
    """Send rows as they come and print results as they come."""
    source = _opened(options)
    progress = Progress(
        sys.stderr, alone=not sys.stdout.isatty(), total=_size(source), clock=time.monotonic
    )
    begin = partial(_begin, options=options, pieces=_pieces(source, progress))
    try:
        with source, closing(lots(new_client, begin)) as found:
            return _print_lots(found, options, progress)
    finally:
        progress.end()


def _begin(client: AsyncClient, *, options: Namespace, pieces: Iterator[bytes]) -> Lots:
    """Begin to send rows: all in one request, or some in each of several."""
    verb, version = options.verb, options.model_version
    if options.chunk is not None:
        return client.map(
            options.model,
            _lines(pieces),
            chunk=options.chunk,
            at_once=options.at_once,
            verb=verb,
            version=version,
        )
    content_type = _type_of(options)
    return client.pipe(
        options.model,
        pieces if content_type is not None else _whole_lines(pieces),
        verb=verb,
        version=version,
        content_type=content_type,
        on_error=options.on_error,
        raw=options.raw,
    )


def _print_lots(lots: Iterator[list[Any]], options: Namespace, progress: Progress) -> int:
    write = _as_it_is if options.raw else _as_line
    out, has_bad_lines = sys.stdout.buffer, False
    for lot in lots:
        out.write(b"".join(map(write, lot)))
        out.flush()
        progress.came(sum(item.count(b"\n") for item in lot) if options.raw else len(lot))
        has_bad_lines = has_bad_lines or any(isinstance(item, ItemError) for item in lot)
    return BAD_LINES if has_bad_lines else 0


def _token_in(path: str | None) -> str | None:
    return None if path is None else Path(path).read_text(encoding="utf-8").strip()


# --- what is sent -------------------------------------------------------------------------------


def _payload(options: Namespace) -> Any:
    """Return the payload to send in one piece, None if rows are to be streamed."""
    if options.instance:
        return _as_payload([_parsed(text) for text in options.instance])
    path = options.file
    if options.json or (path is not None and path.endswith(".json")):
        with _opened(options) as source:
            return _as_payload(orjson.loads(source.read()))
    if path in (None, "-") or path.endswith(_LINES) or options.content_type is not None:
        return None
    return Path(path).read_bytes()


def _parsed(text: str) -> Any:
    """Return the value of an INSTANCE. Raises ValueError for what a shell has made of an object."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        if text.lstrip().startswith("{"):
            problem = f"INSTANCE begins like a JSON object and is none: {exc}"
            raise ValueError(f"{problem}; text that begins so is sent in double quotes") from None
        return text


def _as_payload(value: Any) -> Any:
    """Return a payload as it is; make other values the instances of one."""
    if isinstance(value, list) and len(value) == 1 and _is_payload(value[0]):
        return value[0]
    return value if _is_payload(value) or isinstance(value, list) else [value]


def _is_payload(value: Any) -> bool:
    return isinstance(value, dict) and ("instances" in value or "inputs" in value)


def _type_of(options: Namespace) -> str | None:
    """Return the content type: the given one, or that of a file that is not JSON."""
    if options.content_type is not None or options.instance or options.file in (None, "-"):
        return options.content_type  # type: ignore[no-any-return]
    if options.json or options.file.endswith((".json", *_LINES)):
        return None
    return mimetypes.guess_type(options.file)[0]


def _opened(options: Namespace) -> BinaryIO:
    """Open the file, or stdin, without a buffer: a read returns the bytes that have arrived."""
    if options.file in (None, "-"):
        return open(0, "rb", buffering=0, closefd=False)
    return Path(options.file).open("rb", buffering=0)


def _size(source: BinaryIO) -> int | None:
    return os.fstat(source.fileno()).st_size or None


def _pieces(source: BinaryIO, progress: Progress) -> Iterator[bytes]:
    while piece := source.read(_PIECE):
        progress.sent(len(piece))
        yield piece


def _whole_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces that end at the end of a line, except perhaps the last."""
    rest = b""
    for piece in pieces:
        lines, end, left = piece.rpartition(b"\n")
        if end:
            yield rest + lines + end
            rest = left
        else:
            rest += left
    if rest:
        yield rest


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    mark = BOM_UTF8  # the byte order mark of files from Windows
    for piece in _whole_lines(pieces):
        piece, mark = piece.removeprefix(mark), b""
        yield from (line for line in piece.split(b"\n") if line and not line.isspace())


# --- what is printed ----------------------------------------------------------------------------


def _as_it_is(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else bytes(item)


def _as_line(item: Any) -> bytes:
    """Write an item as a line of JSON; bytes as they are."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, ItemError):
        item = {"error": item.error, "line": item.line}
    elif isinstance(item, ServerSentEvent):
        fields = {"event": item.event, "id": item.id, "data": item.data}
        item = {name: value for name, value in fields.items() if value is not None}
    return to_json(item) + b"\n"


# --- the arguments ------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    sources = [bool(options.instance), options.file is not None, options.chat]
    if sum(sources) > 1:
        parser.error("give only one of INSTANCE, --file and --chat")
    if not any(sources) and sys.stdin is not None and sys.stdin.isatty():
        parser.error("give an INSTANCE, --file FILE or --chat, or rows on stdin")
    if options.raw and options.chunk is not None:
        parser.error("--raw cannot be used with --chunk")
    if options.sse and options.raw is False and not options.instance and options.file is None:
        parser.error("--sse is for one payload: give an INSTANCE or --file FILE")
    return options


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="modelserve call",
        usage="modelserve call URL MODEL [INSTANCE ...] [options]",
        description="Call a model of a server.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the server, for example http://localhost:8080")
    add("model", metavar="MODEL", help="the name of a model there")
    add("instance", metavar="INSTANCE", nargs="*", default=[], help="what to send")
    add("--file", metavar="FILE", help="send a file: .json is one payload, .ndjson and .jsonl"
        " are rows, any other is sent as it is; - is stdin")  # fmt: skip
    add("--json", action="store_true", help="stdin, or the file, is one JSON document")
    add("--content-type", metavar="TYPE", help="stream stdin, or the file, as this type")
    add("--verb", choices=("predict", "explain"), default="predict", help="default: predict")
    add("--model-version", metavar="V", help="the version of the model")
    add("--sse", action="store_true", help="ask for server-sent events")
    add("--raw", action="store_true", help="print the bytes of the answer as they come")
    add("--on-error", choices=("stop",), help="have the server stop at the first bad line")
    add("--chunk", type=_count, metavar="N", help="send rows in requests of N each, for servers"
        " and proxies that read a body to its end first")  # fmt: skip
    add(
        "--at-once", type=_count, default=4, metavar="N", help="requests under way with --chunk (4)"
    )
    add("--chat", action="store_true", help="hold a conversation; Ctrl-C stops an answer")
    add("--system", metavar="TEXT", help="the system's message of a conversation")
    add("--header", type=_header, action="append", default=[], metavar="'NAME: VALUE'",
        help="to be sent with each request; repeatable")  # fmt: skip
    add("--token-file", metavar="FILE", help="a file with the bearer token")
    add("--timeout", type=_seconds, default=60.0, metavar="SECONDS",
        help="without a byte, either way (60)")  # fmt: skip
    add("--insecure", action="store_true", help="trust any certificate")
    return parser


def _checked(read: Callable[[str], Any], words: str, text: str) -> Any:
    try:
        value = read(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise ArgumentTypeError(f"{text!r} is not {words}")
    return value


def _count(text: str) -> int:
    return _checked(int, "a whole number above 0", text)  # type: ignore[no-any-return]


def _seconds(text: str) -> float:
    return _checked(float, "a number of seconds", text)  # type: ignore[no-any-return]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ArgumentTypeError(f"{text!r} is not a header, like 'X-Name: value'")
    return name.strip(), value.strip()


def _names(options: Namespace) -> set[str]:
    return {name.lower() for name, _ in options.header}
