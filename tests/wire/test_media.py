"""Media types."""

import pytest

from modelserve.wire.media import is_json, media_type, parameters


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


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"", {}),
        (b"form-data", {}),
        (b'form-data; name="a"', {"name": b"a"}),
        (b"form-data;name=a;filename=b.txt", {"name": b"a", "filename": b"b.txt"}),
        (b'form-data; NAME = "a" ; x=', {"name": b"a", "x": b""}),
        (b'form-data; name="a;b=c"; filename="d"', {"name": b"a;b=c", "filename": b"d"}),
        (rb'form-data; name="a\"b\\c"', {"name": rb'a"b\c'}),
        (rb'form-data; filename="C:\dir\f.png"', {"filename": rb"C:\dir\f.png"}),
        (b'form-data; name="unclosed', {"name": b'"unclosed'}),
        (b'form-data; name="a"; name="b"', {"name": b"a"}),
        ('form-data; name="ä"'.encode(), {"name": "ä".encode()}),
        (b"form-data; filename*=utf-8''na%C3%AFve.txt", {"filename*": "naïve.txt".encode()}),
        (b"form-data; filename*=ISO-8859-1'en'na%EFve.txt", {"filename*": "naïve.txt".encode()}),
        (b"form-data; filename*=utf-8''%FF; filename=a", {"filename": b"a"}),
        (b"form-data; filename*=koi8-r''a; filename*=a", {}),
        (b"multipart/form-data; boundary=----x", {"boundary": b"----x"}),
        (b"; ; =; a", {}),
    ],
)
def test_the_parameters_of_a_header(header: bytes, found: dict[str, bytes]) -> None:
    assert parameters(header) == found
