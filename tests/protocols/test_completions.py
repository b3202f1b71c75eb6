"""What a hook yields, as OpenAI's chunks and as a whole answer."""

from collections import UserDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException

from modelserve import ServerSentEvent
from modelserve.protocols.completions import CHAT, TEXT, Completion, Kind, usage

CREATED = 1_700_000_000


def completion(kind: Kind = CHAT, **request: Any) -> Completion:
    return Completion(kind, request, id="1", created=CREATED, model="m")


def events(data: bytes) -> list[Any]:
    """Return the documents of some events, and "[DONE]"."""
    assert data.endswith(b"\n\n") or not data
    bodies = [part.removeprefix(b"data: ") for part in data.split(b"\n\n")[:-1]]
    return [body.decode() if body == b"[DONE]" else orjson.loads(body) for body in bodies]


def streamed(items: list[Any], kind: Kind = CHAT, **request: Any) -> list[Any]:
    made = completion(kind, **request)
    return events(b"".join(map(made.chunk, items)) + made.last())


def choices(documents: list[Any]) -> list[Any]:
    return [choice for document in documents[:-1] for choice in document["choices"]]


def whole(items: list[Any], kind: Kind = CHAT) -> Any:
    made = completion(kind)
    for item in items:
        made.add(item)
    return made.whole()


def test_a_stream_of_text_to_the_letter() -> None:
    made = completion()
    frame = b'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m"'
    assert made.chunk("He") == (
        b"data: {" + frame + b',"choices":[{"index":0,"delta":{"role":"assistant","content":"He"},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert made.chunk('l"\n') == (
        b"data: {" + frame + b',"choices":[{"index":0,"delta":{"content":"l\\"\\n"},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert made.last() == (
        b"data: {" + frame + b',"choices":[{"index":0,"delta":{},"logprobs":null,'
        b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )


def test_each_chunk_has_all_that_clients_need() -> None:
    for document in streamed(["a", {"content": "b"}, {"index": 1, "content": "c"}])[:-1]:
        assert set(document) == {"id", "object", "created", "model", "choices"}
        for choice in document["choices"]:
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}


def test_the_first_chunk_of_each_choice_names_the_role() -> None:
    items = ["a", {"index": 1, "content": "b"}, "c", {"index": 1, "content": "d"}]
    roles = [choice["delta"].get("role") for choice in choices(streamed(items))]
    assert roles == ["assistant", "assistant", None, None, None, None]


def test_each_choice_says_how_it_has_finished() -> None:
    items = ["a", {"index": 1, "content": "b"}, {"index": 1, "finish_reason": "length"}]
    finished = {c["index"]: c["finish_reason"] for c in choices(streamed(items)) if not c["delta"]}
    assert finished == {0: "stop", 1: "length"}


def test_an_empty_answer_is_complete_too() -> None:
    first, last = choices(streamed([]))
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert len(choices(streamed([], TEXT))) == 1
    assert whole([])["choices"][0]["message"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("told", [None, {"prompt_tokens": 3, "completion_tokens": 4}])
def test_usage_comes_last_and_only_if_it_is_asked_for(told: Any) -> None:
    items = ["a"] if told is None else ["a", {"usage": told}]
    assert all("usage" not in d for d in streamed(items)[:-1])
    *_, last, done = streamed(items, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == []
    total = 0 if told is None else 7
    assert last["usage"] == {
        "prompt_tokens": 0, "completion_tokens": 0, **(told or {}), "total_tokens": total,
    }  # fmt: skip


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":'}}


def test_tool_calls_pass_and_set_the_reason() -> None:
    items = [
        {"tool_calls": [{"index": 0, **CALL}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    made = choices(streamed(items))
    assert made[0]["delta"]["tool_calls"] == [{"index": 0, **CALL}]
    assert made[-1]["finish_reason"] == "tool_calls"
    (choice,) = whole(items)["choices"]
    call = {**CALL, "function": {"name": "add", "arguments": '{"a":1}'}}
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert choice["finish_reason"] == "tool_calls"


def test_whole_tool_calls_are_numbered_for_clients() -> None:
    items = [{"tool_calls": [CALL, CALL]}, {"tool_calls": [CALL]}]
    indexes = [
        call["index"]
        for choice in choices(streamed(items))
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert indexes == [0, 1, 2]
    assert len(whole(items)["choices"][0]["message"]["tool_calls"]) == 3


def test_tool_calls_and_usage_may_be_objects() -> None:
    call = {"index": None, "type": "function", "function": {"name": "add", "arguments": "{}"}}
    items = [{"tool_calls": [MappingProxyType(call)]}, {"usage": Counts(3)}]
    assert whole(items)["usage"]["total_tokens"] == 3
    (made,) = choices(streamed(items))[0]["delta"]["tool_calls"]
    assert made == {**call, "index": 0}


def test_deltas_are_put_together() -> None:
    items = [
        {"role": "assistant", "reasoning_content": "be"},
        {"role": "assistant", "reasoning_content": "cause"},
        "ye",
        {"content": "s", "refusal": None},
        {"audio": {"id": "a", "transcript": "y"}},
        {"audio": {"id": "a", "transcript": "es"}},
    ]
    assert whole(items)["choices"][0]["message"] == {
        "role": "assistant",
        "reasoning_content": "because",
        "content": "yes",
        "refusal": None,
        "audio": {"id": "a", "transcript": "yes"},
    }


def test_log_probabilities_are_of_the_choice() -> None:
    items = [
        {"content": "a", "logprobs": {"content": [1]}},
        {"content": "b", "logprobs": {"content": [2], "refusal": None}},
    ]
    assert [c["logprobs"] for c in choices(streamed(items))] == [
        {"content": [1]}, {"content": [2], "refusal": None}, None,
    ]  # fmt: skip
    assert whole(items)["choices"][0]["logprobs"] == {"content": [1, 2], "refusal": None}


def test_log_probabilities_may_come_alone() -> None:
    first, _ = choices(streamed([{"logprobs": {"content": [1]}}]))
    assert first["logprobs"] == {"content": [1]}


@pytest.mark.parametrize(
    "item", [b"text", ServerSentEvent("text", id="7", event="e"), {"content": "text"}]
)
def test_other_forms_of_text(item: Any) -> None:
    assert choices(streamed([item]))[0]["delta"] == {"role": "assistant", "content": "text"}
    assert whole([item])["choices"][0]["message"]["content"] == "text"


@dataclass
class Delta:
    """An object of some library."""

    content: str
    role: str | None = None


@dataclass
class Counts:
    """An object of some library, too."""

    prompt_tokens: int


def test_objects_count_as_the_dicts_that_they_can_be_made_into() -> None:
    items = [Delta("a"), MappingProxyType({"content": "b"}), UserDict({"content": "c"})]
    assert [c["delta"]["content"] for c in choices(streamed(items))[:3]] == ["a", "b", "c"]
    assert whole(items)["choices"][0]["message"] == {"role": "assistant", "content": "abc"}


@pytest.mark.parametrize(
    "item", [7, None, ["text"], {"index": "0", "content": "a"}, {"index": -1, "content": "a"}]
)
def test_what_is_no_item_is_a_type_error(item: Any) -> None:
    with pytest.raises(TypeError):
        completion().chunk(item)
    with pytest.raises(TypeError):
        completion().add(item)


# --- text ---------------------------------------------------------------------------------------


def test_a_text_completion() -> None:
    items = ["a", {"text": "b"}, {"index": 1, "content": "c", "finish_reason": "length"}]
    first, second, third, *ends, _ = streamed(items, TEXT)
    assert (first["object"], first["id"]) == ("text_completion", "cmpl-1")
    assert first["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]
    assert [d["choices"][0]["text"] for d in (second, third)] == ["b", "c"]
    assert [d["choices"][0]["finish_reason"] for d in ends] == ["stop", "length"]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in whole(items, TEXT)["choices"]] == [
        (0, "ab", "stop"),
        (1, "c", "length"),
    ]


# --- another server's documents -----------------------------------------------------------------

ANSWER = {
    "id": "theirs",
    "object": "chat.completion",
    "created": 5,
    "model": "their model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "tool_calls": [CALL]},
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def their_chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "theirs", "object": "chat.completion.chunk", "choices": [choice], **more}


def test_a_whole_answer_of_another_server_passes() -> None:
    assert whole([ANSWER]) == ANSWER


def test_a_whole_answer_can_be_streamed() -> None:
    *documents, done = streamed([ANSWER])
    assert done == "[DONE]"
    assert documents[0]["object"] == "chat.completion.chunk"
    assert documents[0]["id"] == "theirs"
    (choice,) = documents[0]["choices"]
    assert choice["delta"]["content"] == "hi"
    assert choice["delta"]["tool_calls"] == [{"index": 0, **CALL}]
    assert [c["finish_reason"] for d in documents for c in d["choices"]] == ["tool_calls"]


def test_chunks_of_another_server_pass_and_are_finished_once() -> None:
    items = [
        their_chunk({"role": "assistant", "content": ""}),
        their_chunk({"content": "hi"}),
        their_chunk({}, "length"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    ]
    made = streamed(items)
    assert [c["delta"] for c in choices(made)] == [{"role": "assistant", "content": ""},
                                                   {"content": "hi"}, {}]  # fmt: skip
    assert [c["finish_reason"] for c in choices(made)] == [None, None, "length"]
    *_, last, _ = streamed(items, stream_options={"include_usage": True})
    assert last["usage"]["total_tokens"] == 3
    answer = whole(items)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 3


def test_tool_calls_of_another_server_set_the_reason() -> None:
    made = choices(streamed([their_chunk({"tool_calls": [{"index": 0, **CALL}]})]))
    assert made[0]["delta"] == {"tool_calls": [{"index": 0, **CALL}]}
    assert made[-1]["finish_reason"] == "tool_calls"


def test_chunks_that_never_finish_are_finished() -> None:
    made = choices(streamed([their_chunk({"content": "hi"})]))
    assert [c["finish_reason"] for c in made] == [None, "stop"]


def test_the_end_of_another_servers_stream_is_of_the_same_answer() -> None:
    *documents, _ = streamed([their_chunk({"content": "hi"}, model="theirs")])
    assert {(d["id"], d["model"]) for d in documents} == {("theirs", "theirs")}
    answer = whole([their_chunk({"content": "hi"}, model="theirs", system_fingerprint="f")])
    assert (answer["id"], answer["model"]) == ("theirs", "theirs")
    assert answer["system_fingerprint"] == "f"
    assert answer["object"] == "chat.completion"


def test_text_after_another_servers_chunk_is_of_the_same_answer() -> None:
    made = streamed(["a", "b", their_chunk({"content": "c"}), "d"])
    assert [d["id"] for d in made[:-1]] == [
        "chatcmpl-1",
        "chatcmpl-1",
        "theirs",
        "theirs",
        "theirs",
    ]
    assert [c["delta"].get("content") for c in choices(made)] == ["a", "b", "c", "d", None]


def test_chunks_of_another_servers_text_are_put_together() -> None:
    items = [
        {
            "id": "t",
            "choices": [{"index": 0, "text": text, "finish_reason": finish, "stop_reason": 7}],
        }
        for text, finish in (("a", None), ("b", None), ("", "length"))
    ]
    answer = whole(items, TEXT)
    assert (answer["id"], answer["object"]) == ("t", "text_completion")
    assert answer["choices"] == [
        {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length", "stop_reason": 7}
    ]
    assert [c["text"] for c in choices(streamed(items, TEXT))] == ["a", "b", ""]


def test_members_that_are_null_are_not_taken_for_said() -> None:
    items = [their_chunk({"role": None, "content": "a", "tool_calls": None, "refusal": None})]
    message = whole(items)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "a", "refusal": None}


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        ({"message": "busy", "type": "t", "param": None, "code": 429}, 429,
         {"message": "busy", "type": "t", "param": None, "code": 429}),
        ({"message": "long", "code": "context_length"}, 500,
         {"message": "long", "code": "context_length"}),
        ({"message": "ok?", "code": "200"}, 500, {"message": "ok?", "code": "200"}),
        ({"secret": 1}, 500, {"message": "The model failed."}),
        ("text", 500, {"message": "text"}),
    ],
)  # fmt: skip
def test_another_servers_error_is_raised(error: Any, status: int, detail: Any) -> None:
    for step in (completion().chunk, completion().add):
        with pytest.raises(HTTPException) as caught:
            step({"error": error})
        assert (caught.value.status_code, caught.value.detail) == (status, detail)
    nothing = their_chunk({"content": "a"}, error=None)
    assert choices(streamed([nothing]))[0]["delta"] == {"content": "a"}


@pytest.mark.parametrize("given", [None, "many", {"prompt_tokens": 2}, {"total_tokens": 9}])
def test_usage_has_every_count(given: Any) -> None:
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= set(usage(given))
    if isinstance(given, dict):
        assert usage(given).items() >= given.items()
