"""Completions in OpenAI's form, made of the items that a hook yields or returns. Pure.

An item is text; or a dict with the members of a delta (`content`, `tool_calls`,
`reasoning_content`, ...), with `index` for a choice other than the first, and with `logprobs`; or a
dict with `finish_reason` or `usage`, which are kept for the end; or a document with `choices`, a
chunk or a whole answer of another server. Objects of other libraries are converted to dicts if
possible. Another server's error is raised.
https://platform.openai.com/docs/api-reference/chat/streaming
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException

from modelserve.wire.encoders import Item, ServerSentEvent
from modelserve.wire.generation import Generation
from modelserve.wire.json import to_json
from modelserve.wire.values import to_plain

__all__ = [
    "CHAT", "DONE", "TEXT", "Completion", "Kind", "count_in", "event", "told_error", "usage",
]  # fmt: skip

DONE: Final = b"data: [DONE]\n\n"

_dumps: Final = orjson.dumps
_join: Final = b"".join
# The members of a dict that belong to its choice; the rest is its delta.
_OF_CHOICE: Final = frozenset({"index", "finish_reason", "logprobs", "usage"})
# The members of another server's choice that are merged; the rest is kept as it is.
_PUT_TOGETHER: Final = frozenset({"index", "delta", "message", "text", "logprobs", "finish_reason"})
# Text that is the same in each delta; other text is joined.
_REPEATED: Final = frozenset({"role", "id", "type", "name"})
_ANY_TEXT: Final = "\0"


@dataclass(frozen=True, slots=True)
class Kind:
    """Chat or text: the differences in their documents.

    Attributes:
        id_prefix: The start of an answer's id.
        whole, chunk: The member `object` of a whole answer, and of a part of one.
        is_chat: A choice has a message and deltas, else text.
    """

    id_prefix: str
    whole: str
    chunk: str
    is_chat: bool


CHAT: Final = Kind("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)
TEXT: Final = Kind("cmpl-", "text_completion", "text_completion", is_chat=False)


class Completion:
    """One answer, in chunks or whole.

    Args:
        kind: Chat or text.
        request: The request's document.
        id: The id without its prefix.
        created: Seconds since 1970.
        model: The name that the client uses.
    """

    def __init__(
        self, kind: Kind, request: Mapping[str, Any], *, id: str, created: int, model: str
    ) -> None:
        self._kind = kind
        self._frame = {
            "id": kind.id_prefix + id,
            "object": kind.chunk,
            "created": created,
            "model": model,
        }
        options = request.get("stream_options")
        self._tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None
        self._is_complete = False
        self._streams = request.get("stream") is True
        self._around_text: tuple[bytes, bytes] | None = None  # once the first choice has begun

    # -- in chunks

    def chunk(self, item: Item) -> bytes:
        """Return the events for an item: usually one, none for what is kept."""
        if type(item) is str and self._around_text is not None:  # as most are
            before, after = self._around_text
            return _join((before, _dumps(item), after))
        item = _plain(item)
        if isinstance(item, dict) and "choices" in item:
            return b"".join(map(event, self._chunks_of(item)))
        choice, delta, logprobs = self._noted(item)
        if not delta and logprobs is None:
            return b""
        chunk = event(self._chunk(choice, delta, logprobs))
        if choice.index == 0 and self._around_text is None:
            sample = event(self._chunk(choice, {"content": _ANY_TEXT}, None))
            before, after = sample.split(to_json(_ANY_TEXT))
            self._around_text = before, after
        return chunk

    def last(self) -> bytes:
        """Return the events that end a stream: finish reasons of choices, usage, and [DONE]."""
        self._is_complete = True
        choices = self._choices.values() if self._choices else [self._choice(0)]
        events = []
        for choice in choices:
            if self._kind.is_chat and not choice.has_begun:  # clients wait for a role
                events.append(event(self._chunk(choice, {"content": ""}, None)))
            if not choice.is_finished:
                events.append(event(self._chunk(choice, {}, None, choice.finish_reason)))
        if self._tells_usage:
            events.append(event({**self._frame, "choices": [], "usage": usage(self._usage)}))
        return b"".join((*events, DONE))

    def _chunk(
        self, choice: "_Choice", delta: dict[str, Any], logprobs: Any, finish: str | None = None
    ) -> dict[str, Any]:
        if not self._kind.is_chat:
            part: dict[str, Any] = {"text": delta.get("content", "")}
        elif not choice.has_begun and "role" not in delta:
            part = {"delta": {"role": "assistant", **delta}}
        else:
            part = {"delta": delta}
        choice.has_begun = True
        whole = {"index": choice.index, **part, "logprobs": logprobs, "finish_reason": finish}
        return {**self._frame, "choices": [whole]}

    def _chunks_of(self, document: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Return the chunks for another server's chunk or answer."""
        self._take_frame(document)
        parts = []
        for part in document["choices"]:
            choice = self._choice(part.get("index", 0))
            if "message" in part or part.get("delta"):
                delta = choice.numbered(part.get("message") or part.get("delta") or {})
                part = {k: v for k, v in part.items() if k != "message"} | {"delta": delta}
            choice.has_begun = True
            choice.is_finished = choice.is_finished or bool(part.get("finish_reason"))
            parts.append({"index": choice.index, "logprobs": None, "finish_reason": None, **part})
        return [{**self._frame, "choices": parts}] if parts else []

    # -- whole

    def add(self, item: Item) -> Item:
        """Add an item to the whole answer; return it as text or a dict."""
        item = _plain(item)
        if isinstance(item, dict) and "choices" in item:
            self._take_frame(item)
            for part in item["choices"]:
                self._choice(part.get("index", 0)).add_part(part)
        else:
            choice, delta, logprobs = self._noted(item)
            choice.add(delta, logprobs)
        return item

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        self._is_complete = True
        choices = self._sorted_choices() or [self._choice(0)]
        documents = [choice.document(is_chat=self._kind.is_chat) for choice in choices]
        frame = {**self._frame, "object": self._kind.whole}
        return {**frame, "choices": documents, "usage": usage(self._usage)}

    # -- both

    def generation(self) -> Generation:
        """Return the answer's metadata; finish reasons only once it is complete."""
        finished = self._sorted_choices() if self._is_complete else []
        return Generation(
            model=str(self._frame["model"]),
            streams=self._streams,
            id=str(self._frame["id"]),
            input_tokens=count_in(self._usage, "prompt_tokens"),
            output_tokens=count_in(self._usage, "completion_tokens"),
            finish_reasons=tuple(choice.finish_reason for choice in finished),
        )

    def _sorted_choices(self) -> list["_Choice"]:
        return [self._choices[index] for index in sorted(self._choices)]

    def _take_frame(self, document: dict[str, Any]) -> None:
        """Adopt the members of another server's document, except its choices."""
        self._usage = document.get("usage") or self._usage
        self._around_text = None
        self._frame |= {
            key: value
            for key, value in document.items()
            if key not in ("choices", "usage", "object") and value is not None
        }

    def _choice(self, index: Any) -> "_Choice":
        if type(index) is not int or index < 0:
            raise TypeError(f"The index of a choice must be a whole number, not {index!r}")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index)
        return choice

    def _noted(self, item: Item) -> tuple["_Choice", dict[str, Any], Any]:
        """Return the choice, the delta and the log probabilities of an item; keep the rest."""
        if isinstance(item, str):
            return self._choice(0), {"content": item}, None
        if not isinstance(item, dict):
            raise TypeError(
                f"An item of a completion must be str or dict, not {type(item).__name__}"
            )
        choice = self._choice(item.get("index", 0))
        self._usage = item.get("usage") or self._usage
        choice.told_reason = item.get("finish_reason") or choice.told_reason
        delta = {key: value for key, value in item.items() if key not in _OF_CHOICE}
        if not self._kind.is_chat and "text" in delta:
            delta["content"] = delta.pop("text")
        return choice, choice.numbered(delta), item.get("logprobs")


@dataclass(slots=True)
class _Choice:
    """One of the answers to a request.

    Attributes:
        told_reason: Why it has finished, if the hook has said so.
        has_begun, is_finished: In a stream, its first chunk, or the chunk with its reason, is sent.
        message: The sum of the deltas, for a whole answer.
        more: Other members of another server's choice.
        calls: The number of tool calls.
    """

    index: int
    told_reason: str | None = None
    has_begun: bool = False
    is_finished: bool = False
    message: dict[str, Any] = field(default_factory=dict)
    logprobs: Any = None
    more: dict[str, Any] = field(default_factory=dict)
    calls: int = 0

    @property
    def finish_reason(self) -> str:
        return self.told_reason or ("tool_calls" if self.calls else "stop")

    def numbered(self, delta: dict[str, Any]) -> dict[str, Any]:
        """Return a delta whose tool calls have the index by which clients merge them."""
        calls = delta.get("tool_calls")
        if not calls:
            return delta
        numbered = [
            {"index": self.calls + place, **{k: v for k, v in call.items() if v is not None}}
            for place, call in enumerate(map(_as_dict, calls))
        ]
        self.calls = max(self.calls, *(call["index"] + 1 for call in numbered))
        return {**delta, "tool_calls": numbered}

    def add(self, delta: dict[str, Any], logprobs: Any) -> None:
        _merge(self.message, delta)
        if logprobs is not None:
            self.logprobs = _merged_logprobs(self.logprobs, logprobs)

    def add_part(self, part: Mapping[str, Any]) -> None:
        """Add a choice of another server's chunk or answer."""
        delta = part.get("message") or part.get("delta") or {}
        if "text" in part:
            delta = {"content": part["text"]}
        self.add(self.numbered(delta), part.get("logprobs"))
        self.told_reason = part.get("finish_reason") or self.told_reason
        self.more |= {key: value for key, value in part.items() if key not in _PUT_TOGETHER}

    def document(self, *, is_chat: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": None if self.calls else "", **self.message}
        if "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} for call in calls
            ]
        part = {"message": message} if is_chat else {"text": message["content"] or ""}
        end = {"logprobs": self.logprobs, "finish_reason": self.finish_reason}
        return {"index": self.index, **part, **end, **self.more}


def _merge(whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a delta: text is joined, elements with the same index are merged."""
    for key, value in delta.items():
        known = whole.get(key)
        if key == "tool_calls":
            if value:
                whole[key] = _merged_calls(known or [], value)
        elif isinstance(value, str) and isinstance(known, str) and key not in _REPEATED:
            whole[key] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            whole[key] = {**known}
            _merge(whole[key], value)
        elif value is not None or (known is None and key != "role"):
            whole[key] = value


def _merged_calls(calls: list[Any], deltas: Iterable[dict[str, Any]]) -> list[Any]:
    by_index = {call["index"]: call for call in calls}
    for delta in deltas:
        _merge(by_index.setdefault(delta["index"], {"type": "function"}), delta)
    return [by_index[index] for index in sorted(by_index)]


def _merged_logprobs(known: Any, more: Any) -> Any:
    if not (isinstance(known, dict) and isinstance(more, dict)):
        return more
    return {
        key: known[key] + value if isinstance(known.get(key), list) else value
        for key, value in {**known, **more}.items()
        if key in more
    }


def usage(given: Any, *counts: str) -> dict[str, Any]:
    """Return the usage that clients expect: the hook's counts, and zeros for other ones."""
    told: dict[str, Any] = dict.fromkeys(counts or ("prompt_tokens", "completion_tokens"), 0)
    told |= _as_dict(given)
    total = sum(told.get(count) or 0 for count in ("prompt_tokens", "completion_tokens"))
    return {"total_tokens": total, **told}


def count_in(given: Any, name: str) -> int | None:
    """Return a count of tokens, if the hook has given it."""
    count = _as_dict(given).get(name)
    return count if type(count) is int else None


def _as_dict(value: Any) -> dict[str, Any]:
    """Return a dict, or an object converted to one; an empty dict for anything else."""
    plain = value if isinstance(value, dict | str | None) else to_plain(value)
    return plain if isinstance(plain, dict) else {}


def event(document: Any) -> bytes:
    """Return a document as one server-sent event."""
    return b"data: %b\n\n" % to_json(document)


def told_error(error: Any) -> HTTPException:
    """Turn another server's error into an exception; its `code` may be a status."""
    if not isinstance(error, dict):
        error = {"message": str(error)}
    code = str(error.get("code"))
    status = int(code) if code.isdecimal() and 400 <= int(code) <= 599 else 500
    known = {key: error[key] for key in ("message", "type", "param", "code") if key in error}
    detail: Any = {"message": "The model failed.", **known}
    return HTTPException(status, detail)


def _plain(item: Item) -> Item:
    """Return an item as text or a dict. Raises HTTPException for another server's error."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item).decode()
    if not isinstance(item, str | dict):
        item = to_plain(item)
    if isinstance(item, dict) and item.get("error") and "choices" not in item:
        raise told_error(item["error"])
    return item
