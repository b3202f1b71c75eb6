"""Completions in OpenAI's form, made of what a hook yields or returns. Pure.

An item is text; or a dict with the members of a delta (`content`, `tool_calls`,
`reasoning_content`, ...), with `index` for another choice than the first, and with `logprobs`; or a
dict with `finish_reason` or `usage`, which are kept for the end; or a document with `choices`, a
chunk or a whole answer of another server.
https://platform.openai.com/docs/api-reference/chat/streaming
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelserve.wire.encoders import Item, ServerSentEvent
from modelserve.wire.json import to_json

__all__ = ["CHAT", "DONE", "TEXT", "Completion", "Kind", "event", "usage"]

DONE: Final = b"data: [DONE]\n\n"

# What of a dict is about its choice; the rest is its delta.
_OF_CHOICE: Final = frozenset({"index", "finish_reason", "logprobs", "usage"})
# Text that is the same in each delta that has it; other text is joined.
_REPEATED: Final = frozenset({"role", "id", "type", "name"})
_ANY_TEXT: Final = "\0"


@dataclass(frozen=True, slots=True)
class Kind:
    """Chat or text: what differs in their documents.

    Attributes:
        id_prefix: The start of an answer's id.
        whole, chunk: What `object` says of a whole answer, and of a part of one.
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
        id: Without its prefix.
        created: Seconds since 1970.
        model: The name that the client knows.
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
        self._answer: dict[str, Any] | None = None  # another server's whole one
        self._around_text: tuple[bytes, bytes] | None = None  # once the first choice has begun

    # -- in chunks

    def chunk(self, item: Item) -> bytes:
        """Return the events that an item becomes: one as a rule, none for what is kept."""
        if type(item) is str and self._around_text is not None:  # as most are
            before, after = self._around_text
            return b"%b%b%b" % (before, to_json(item), after)
        item = _plain(item)
        if isinstance(item, dict) and "choices" in item:
            return b"".join(map(event, self._chunks_of(item)))
        choice, delta, logprobs = self._noted(item)
        if not delta:
            return b""
        chunk = event(self._chunk(choice, delta, logprobs))
        if choice.index == 0 and self._around_text is None:
            sample = event(self._chunk(choice, {"content": _ANY_TEXT}, None))
            before, after = sample.split(to_json(_ANY_TEXT))
            self._around_text = before, after
        return chunk

    def last(self) -> bytes:
        """Return the events that end a stream: how each choice has finished, usage, and [DONE]."""
        choices = self._choices.values() if self._choices else [self._choice(0)]
        events = [event(self._finish(choice)) for choice in choices if not choice.is_finished]
        if self._tells_usage:
            events.append(event({**self._frame, "choices": [], "usage": usage(self._usage)}))
        return b"".join((*events, DONE))

    def _chunk(
        self, choice: "_Choice", delta: dict[str, Any], logprobs: Any, finish: str | None = None
    ) -> dict[str, Any]:
        if not self._kind.is_chat:
            part: dict[str, Any] = {"text": delta.get("content", "")}
        elif delta and not choice.has_begun and "role" not in delta:
            part = {"delta": {"role": "assistant", **delta}}
        else:
            part = {"delta": delta}
        choice.has_begun = True
        whole = {"index": choice.index, **part, "logprobs": logprobs, "finish_reason": finish}
        return {**self._frame, "choices": [whole]}

    def _finish(self, choice: "_Choice") -> dict[str, Any]:
        return self._chunk(choice, {}, None, choice.finish_reason)

    def _chunks_of(self, document: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Return the chunks that another server's chunk or answer becomes."""
        self._usage = document.get("usage") or self._usage
        frame = {key: value for key, value in document.items() if key not in ("choices", "usage")}
        frame = {**self._frame, **frame, "object": self._kind.chunk}
        parts = []
        for part in document["choices"]:
            choice = self._choice(part.get("index", 0))
            if "message" in part:
                part = {k: v for k, v in part.items() if k != "message"} | {
                    "delta": choice.numbered(part["message"])
                }
            choice.has_begun = True
            choice.is_finished = choice.is_finished or bool(part.get("finish_reason"))
            parts.append({"index": choice.index, "logprobs": None, "finish_reason": None, **part})
        return [{**frame, "choices": parts}] if parts else []

    # -- whole

    def add(self, item: Item) -> None:
        """Add an item to the whole answer."""
        item = _plain(item)
        if not (isinstance(item, dict) and "choices" in item):
            choice, delta, logprobs = self._noted(item)
            choice.add(delta, logprobs)
            return
        self._usage = item.get("usage") or self._usage
        if any("delta" not in part for part in item["choices"]):
            self._answer = item
        for part in item["choices"]:
            choice = self._choice(part.get("index", 0))
            choice.add(choice.numbered(part.get("delta") or {}), part.get("logprobs"))
            choice.told_reason = part.get("finish_reason") or choice.told_reason

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        frame = {**self._frame, "object": self._kind.whole}
        if self._answer is not None:
            return {**frame, **self._answer, "usage": usage(self._usage)}
        choices = [self._choices[index] for index in sorted(self._choices)] or [self._choice(0)]
        documents = [choice.document(is_chat=self._kind.is_chat) for choice in choices]
        return {**frame, "choices": documents, "usage": usage(self._usage)}

    # -- both

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
        has_begun, is_finished: Of a stream: its first chunk, and the one with a reason, are sent.
        message: What the deltas add up to, for a whole answer.
        calls: How many tool calls there are.
    """

    index: int
    told_reason: str | None = None
    has_begun: bool = False
    is_finished: bool = False
    message: dict[str, Any] = field(default_factory=dict)
    logprobs: Any = None
    calls: int = 0

    @property
    def finish_reason(self) -> str:
        return self.told_reason or ("tool_calls" if self.calls else "stop")

    def numbered(self, delta: dict[str, Any]) -> dict[str, Any]:
        """Return a delta whose tool calls have the index by which clients put them together."""
        calls = delta.get("tool_calls")
        if not calls:
            return delta
        numbered = [{"index": self.calls + place, **call} for place, call in enumerate(calls)]
        self.calls = max(self.calls, *(call["index"] + 1 for call in numbered))
        return {**delta, "tool_calls": numbered}

    def add(self, delta: dict[str, Any], logprobs: Any) -> None:
        _merge(self.message, delta)
        if logprobs is not None:
            self.logprobs = _merged_logprobs(self.logprobs, logprobs)

    def document(self, *, is_chat: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": None if self.calls else "", **self.message}
        if "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} for call in calls
            ]
        part = {"message": message} if is_chat else {"text": message["content"] or ""}
        end = {"logprobs": self.logprobs, "finish_reason": self.finish_reason}
        return {"index": self.index, **part, **end}


def _merge(whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a delta: text is joined, what has an index is merged with what has the same one."""
    for key, value in delta.items():
        known = whole.get(key)
        if key == "tool_calls":
            whole[key] = _merged_calls(known or [], value or [])
        elif isinstance(value, str) and isinstance(known, str) and key not in _REPEATED:
            whole[key] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            whole[key] = {**known}
            _merge(whole[key], value)
        elif value is not None or known is None:
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
    """Return the usage that clients expect: what the hook has said, and zeros for other counts."""
    told: dict[str, Any] = dict.fromkeys(counts or ("prompt_tokens", "completion_tokens"), 0)
    told |= given if isinstance(given, dict) else {}
    total = sum(told.get(count) or 0 for count in ("prompt_tokens", "completion_tokens"))
    return {"total_tokens": total, **told}


def event(document: Any) -> bytes:
    """Return a document as one server-sent event."""
    return b"data: %b\n\n" % to_json(document)


def _plain(item: Item) -> Item:
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item).decode()
    return item
