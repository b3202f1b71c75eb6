"""Media types."""

import pytest

from modelserve.wire.media import is_json, media_type


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        ("", ""),
        ("application/json", "application/json"),
        (" Application/JSON ; charset=utf-8", "application/json"),
        ("text/plain;charset=utf-8;x=y", "text/plain"),
        (";", ""),
        ("x", "x"),
    ],
)
def test_a_media_type_has_no_parameters(content_type: str, name: str) -> None:
    assert media_type(content_type) == name


@pytest.mark.parametrize(
    ("name", "json"),
    [
        ("application/json", True),
        ("application/ld+json", True),
        ("image/svg+json", True),
        ("text/json", False),
        ("application/jsonl", False),
        ("application/json-seq", False),
        ("", False),
    ],
)
def test_which_media_types_are_json(name: str, json: bool) -> None:
    assert is_json(name) is json
