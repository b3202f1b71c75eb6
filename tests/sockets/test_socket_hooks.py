"""What the hooks of a model are given, and in what order they run."""

from typing import Any

import pytest
from rawclient import Answer, Connection, post, request
from realserver import Server, Start

from modelserve import Model, ModelServer


@pytest.fixture(scope="module", params=["httptools", "trio"])
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(request.param, "hooks")


def ask(server: Server, model: str, payload: Any = 5, *, verb: str = "predict") -> Answer:
    return post(server.port, f"/v1/models/{model}:{verb}", payload, X_Mine="yes")


# headers and response_headers go by name wherever declared, the payload by position.


@pytest.mark.parametrize(
    ("model", "received", "sets"),
    [
        ("payload-only", {}, False),
        ("with-headers", {"mine": "yes"}, False),
        ("with-default", {"mine": "yes"}, False),
        ("with-both", {"mine": "yes"}, True),
        ("swapped", {"mine": "yes"}, True),
        ("response-headers-only", {"mine": "yes"}, True),
        ("keyword-only", {"mine": "yes"}, True),
        ("positional-only", {"mine": "yes"}, False),
        ("other-default", {"mine": "yes", "temperature": 0.5}, False),
        ("arguments", {"mine": "yes", "number": 2}, True),
        ("keywords", {"mine": "yes", "names": ["headers", "response_headers"]}, True),
        ("positions", {"number": 3}, False),
        ("static", {"mine": "yes"}, False),
        ("of-class", {"mine": "yes"}, False),
        ("function", {"mine": "yes"}, False),
        ("lambda", {}, True),
    ],
)
def test_arguments(server: Server, model: str, received: dict[str, Any], sets: bool) -> None:
    answer = ask(server, model)
    assert (answer.status, answer.json) == (200, {"payload": 5, **received})
    assert answer.headers.get("x-set") == ("1" if sets else None)
    assert "x-mine" not in answer.headers


# Order: preprocess, then predict or explain, then postprocess.


@pytest.mark.parametrize("model", ["ordered", "reversed"])
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_order(server: Server, model: str, verb: str) -> None:
    answer = ask(server, model, ["sent"], verb=verb)
    assert answer.json == {"trace": ["sent", "preprocess", verb, "postprocess"]}
    assert answer.headers["x-postprocessed"] == "yes"
    assert answer.headers.get("x-predicted") == ("yes" if verb == "predict" else None)
    assert "x-preprocessed" not in answer.headers


# headers is a mutable, case-insensitive mapping with lower-case keys.


def test_headers_are_a_mutable_mapping(server: Server) -> None:
    with Connection(server.port) as client:
        data = request("POST", "/v1/models/mapping:predict", b"5", X_MINE="yes")
        client.send(data.replace(b"host:", b"X-Twice: a\r\nx-twice: b\r\nhost:", 1))
        facts = client.answer().json
    assert facts.pop("twice") in ("a", "b", "a, b", "a,b")
    assert facts == {
        "mapping": True,
        "lower": True,
        "any case": True,
        "contains": True,
        "missing": None,
        "items": "yes",
        "length": True,
        "written": ["1", "2", True],
        "popped": "yes",
        "deleted": [False, False],
        "key error": True,
    }


def test_headers_belong_to_one_request(server: Server) -> None:
    assert ask(server, "mapping").status == 200
    assert ask(server, "mapping").json["popped"] == "yes"


@pytest.mark.parametrize("hook", ["preprocess", "predict", "postprocess"])
def test_failure_in_any_hook(server: Server, hook: str) -> None:
    answer = ask(server, "failing", hook)
    assert (answer.status, answer.json) == (400, {"error": f"wrong in {hook}"})


def test_error_has_its_own_content_type(server: Server) -> None:
    answer = ask(server, "sets-headers-and-fails")
    assert (answer.status, answer.json) == (500, {"error": "Internal Server Error"})
    assert answer.headers["content-type"] == "application/json"


# Generators are predict, explain, postprocess; elsewhere a TypeError at registration.


class Yielding(Model):
    def preprocess(self, payload):  # type: ignore[no-untyped-def]
        yield payload

    def predict(self, payload):  # type: ignore[no-untyped-def]
        return payload


class AsyncYielding(Model):
    async def preprocess(self, payload):  # type: ignore[no-untyped-def]
        yield payload

    def predict(self, payload):  # type: ignore[no-untyped-def]
        return payload


class YieldingLoad(Model):
    def load(self):  # type: ignore[no-untyped-def]
        yield True

    def predict(self, payload):  # type: ignore[no-untyped-def]
        return payload


class SyncOverStream(Model):
    async def predict(self, payload):  # type: ignore[no-untyped-def]
        yield payload

    def postprocess(self, result):  # type: ignore[no-untyped-def]
        yield from result


class SyncOverSyncStream(Model):
    def predict(self, payload):  # type: ignore[no-untyped-def]
        yield payload

    def postprocess(self, result):  # type: ignore[no-untyped-def]
        yield from result


@pytest.mark.parametrize(
    "kind", [Yielding, AsyncYielding, YieldingLoad, SyncOverStream, SyncOverSyncStream]
)
def test_generators_elsewhere_are_refused_at_registration(kind: type[Model]) -> None:
    with pytest.raises(TypeError):
        ModelServer([kind("m")])


class Fine(Model):
    def predict(self, payload):  # type: ignore[no-untyped-def]
        return payload


@pytest.mark.parametrize("name", ["a:b", ":", "a:predict"])
def test_colon_in_a_name_is_refused_at_registration(name: str) -> None:
    with pytest.raises(ValueError, match=":"):
        ModelServer([Fine(name)])
