"""The commonest check of a V1 payload, and what it says."""

from typing import Any

import pytest

from modelserve import InferRequest, InvalidInput, Model, ModelServer, instances
from modelserve.testing import request


@pytest.mark.parametrize(
    ("payload", "arguments"),
    [
        ({"instances": []}, {}),
        ({"instances": [1, "a", None], "parameters": {}}, {}),
        ({"instances": [1]}, {"at_least": 1}),
        ({"instances": ["a", ""]}, {"of": str}),
        ({"instances": [1, 2.5]}, {"of": float}),
        ({"instances": [1, 2.5, "a"]}, {"of": (float, str)}),
        ({"instances": [True]}, {"of": (int, bool)}),
        ({"instances": [[1], {}]}, {"of": (list, dict)}),
    ],
)
def test_the_instances_are_those_of_the_payload(payload: Any, arguments: Any) -> None:
    assert instances(payload, **arguments) is payload["instances"]


@pytest.mark.parametrize(
    ("payload", "arguments", "sentence"),
    [
        ([1], {}, 'Expected a JSON object with "instances", not a list'),
        ("canary", {}, 'Expected a JSON object with "instances", not a string'),
        (None, {}, 'Expected a JSON object with "instances", not null'),
        (True, {}, 'Expected a JSON object with "instances", not a boolean'),
        (5, {}, 'Expected a JSON object with "instances", not an integer'),
        (b"canary", {}, 'Expected a JSON object with "instances", not bytes'),
        (
            InferRequest("m", []),
            {},
            'Expected a JSON object with "instances", not a value of type InferRequest',
        ),
        ({"inputs": []}, {}, 'Expected "instances" in the request'),
        ({}, {"at_least": 1}, 'Expected "instances" in the request'),
        ({"instances": {"a": 1}}, {}, 'Expected "instances" to be a list'),
        ({"instances": None}, {}, 'Expected "instances" to be a list'),
        ({"instances": []}, {"at_least": 1}, 'Expected at least 1 in "instances", not 0'),
        ({"instances": ["a", 5]}, {"of": str}, "Expected instances[1] to be a string"),
        ({"instances": [1.5]}, {"of": int}, "Expected instances[0] to be an integer"),
        ({"instances": [1, True]}, {"of": float}, "Expected instances[1] to be a number"),
        ({"instances": [None]}, {"of": (str, list)}, "Expected instances[0] to be a string or a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(payload: Any, arguments: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        instances(payload, **arguments)
    assert str(caught.value) == sentence


@pytest.mark.anyio
async def test_the_client_reads_the_sentence() -> None:
    class Doubles(Model):
        def predict(self, payload: Any) -> Any:
            return {"predictions": [2 * x for x in instances(payload, float)]}

    app = ModelServer([Doubles("m")])
    good = await request(app, "POST", "/v1/models/m:predict", json={"instances": [1]})
    assert good.json() == {"predictions": [2]}
    bad = await request(app, "POST", "/v1/models/m:predict", json={"instances": ["1"]})
    assert (bad.status, bad.json()) == (400, {"error": "Expected instances[0] to be a number"})
