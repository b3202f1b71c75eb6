"""Limits as numbers, and the timeout that a client requests."""

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from modelserve.errors import InvalidInput
from modelserve.limits import DEFAULTS, Deadlines, Limits, shortened

NAMES = [field.name for field in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1, 0.5, math.inf, None, 10**6])
def test_a_limit_is_a_positive_number(name: str, value: Any) -> None:
    assert getattr(Limits(**{name: value}), name) == value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, math.nan, -math.inf, True, "1", [], -0.001])
def test_a_meaningless_limit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"The limit {name} cannot be .*: it is a number (abo|of)"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_zero_is_allowed_where_it_has_a_meaning(name: str) -> None:
    if name in ("queue", "max_body_bytes", "max_collected_bytes", "drain_timeout"):
        assert getattr(Limits(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})


def test_limits_are_immutable_values() -> None:
    assert Limits(timeout=1) == Limits(timeout=1)
    with pytest.raises(FrozenInstanceError):
        Limits().timeout = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[misc]


def test_the_defaults() -> None:
    assert (DEFAULTS.concurrency, DEFAULTS.queue) == (math.inf, 1000)
    assert DEFAULTS.max_queued_bytes == 256 * 1024 * 1024
    assert DEFAULTS.max_body_bytes == 64 * 1024 * 1024
    assert DEFAULTS.max_json_values == 5_000_000
    assert (DEFAULTS.first_item_timeout, DEFAULTS.idle_timeout, DEFAULTS.timeout) == (math.inf,) * 3
    assert (DEFAULTS.send_timeout, DEFAULTS.drain_timeout, DEFAULTS.cleanup_timeout) == (60, 25, 5)
    assert DEFAULTS.deadlines() == Deadlines(None, None, None, 60, 5)


def test_defaults_replace_unset_limits() -> None:
    filled = Limits(timeout=3, queue=0).with_defaults(DEFAULTS)
    assert (filled.timeout, filled.queue) == (3, 0)
    assert filled.send_timeout == DEFAULTS.send_timeout
    assert None not in [getattr(filled, name) for name in NAMES]


@pytest.mark.parametrize(
    ("model", "application", "expected"),
    [
        ({}, {"timeout": 5}, {"timeout": 5}),
        ({"timeout": 3}, {"timeout": 5}, {"timeout": 3}),
        ({"timeout": 9}, {"timeout": 5}, {"timeout": 5}),
        ({"timeout": 9}, {}, {"timeout": 9}),
        ({"idle_timeout": 1}, {"timeout": 5}, {"idle_timeout": 1, "timeout": 5}),
        ({"max_body_bytes": 9}, {"max_body_bytes": 5}, {"max_body_bytes": 5}),
        ({"max_body_bytes": 0}, {"max_body_bytes": 5}, {"max_body_bytes": 0}),
        # of the model alone; admission counts the application's requests separately
        ({}, {"concurrency": 2, "queue": 3}, {"concurrency": math.inf, "queue": math.inf}),
        ({"concurrency": 9, "queue": 9}, {"concurrency": 2}, {"concurrency": 9, "queue": 9}),
        ({"concurrency": 1}, {"queue": 0}, {"concurrency": 1, "queue": math.inf}),
    ],
)
def test_the_limits_of_the_model_and_of_the_application_both_apply(
    model: dict[str, Any], application: dict[str, Any], expected: dict[str, Any]
) -> None:
    merged = Limits(**model).within(Limits(**application).with_defaults(DEFAULTS))
    assert {name: getattr(merged, name) for name in expected} == expected
    assert None not in [getattr(merged, name) for name in NAMES]


def test_infinity_is_no_deadline() -> None:
    limits = Limits(timeout=math.inf, idle_timeout=math.inf, send_timeout=math.inf)
    assert limits.deadlines() == Deadlines(cleanup_timeout=5.0)
    assert Limits(first_item_timeout=2, cleanup_timeout=1).deadlines() == Deadlines(
        first_item_timeout=2, cleanup_timeout=1
    )


@pytest.mark.parametrize(
    ("requested", "limit", "timeout"),
    [
        (b"3", None, 3.0),
        (b"3", 5.0, 3.0),
        (b"9", 5.0, 5.0),
        (b"0.25", 5.0, 0.25),
        (b" 3 ", 5.0, 3.0),
        (b"1e3", None, 1000.0),
    ],
)
def test_a_client_may_request_less_time(
    requested: bytes, limit: float | None, timeout: float
) -> None:
    deadlines = Deadlines(timeout=limit, idle_timeout=7)
    assert shortened(deadlines, requested) == Deadlines(timeout=timeout, idle_timeout=7)


@pytest.mark.parametrize(
    "requested", [b"", b"0", b"-1", b"soon", b"nan", b"inf", b"1e400", b"1 s", b"\xff", b","]
)
def test_an_invalid_timeout_is_refused(requested: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        shortened(Deadlines(), requested)
    assert caught.value.reason == "x-request-timeout-seconds must be a positive number."
