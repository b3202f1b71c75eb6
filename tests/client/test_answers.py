"""What a response holds, by its media type."""

import pytest

from modelserve.client.answers import NDJSON, media_type_of
from modelserve.wire.media import LINE_TYPES


@pytest.mark.parametrize("name", LINE_TYPES)
def test_each_name_of_ndjson_that_a_server_may_send_is_read_as_such(name: str) -> None:
    assert media_type_of(f"{name.upper()}; charset=utf-8") == NDJSON


@pytest.mark.parametrize("name", ["application/json", "text/ndjson", "application/json-seq"])
def test_other_types_are_themselves(name: str) -> None:
    assert media_type_of(name) == name
