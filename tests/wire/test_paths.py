"""The segments of a path below a mount, however a host describes it."""

from typing import Any
from urllib.parse import quote

import pytest

from modelserve.wire.paths import segments_below, segments_of

HOSTS: list[tuple[str, dict[str, Any], str]] = [
    # what the host says of `/ml` + `{}`, and the prefix of the application
    ("nothing is mounted", {"path": "{}", "raw_path": "{}"}, ""),
    ("the whole path", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/ml"}, ""),
    ("a slash at the end", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/ml/"}, ""),
    ("without the prefix", {"path": "{}", "raw_path": "{}", "root_path": "/proxy"}, ""),
    ("without the prefix in path", {"path": "{}/", "raw_path": "/ml{}", "root_path": ""}, ""),
    ("not at all", {"path": "/ml{}", "raw_path": "/ml{}"}, "/ml"),
    (
        "below a proxy",
        {
            "path": "/ml{}",
            "raw_path": "/ml{}",
            "root_path": "/proxy/ml",
            "app_root_path": "/proxy",
        },
        "",
    ),
    ("with a query", {"path": "/ml{}", "raw_path": "/ml{}?a=b/c", "root_path": "/ml"}, ""),
]
PATHS = [
    # decoded, as it came, its segments
    ("/v1/models", "/v1/models", ["v1", "models"]),
    ("/v1/models/ä b", "/v1/models/%C3%A4%20b", ["v1", "models", "ä b"]),
    ("/v1//x", "/v1//x", ["v1", "", "x"]),
    ("/a%b", "/a%25b", ["a%b"]),
    ("/v2/models/a/b/infer", "/v2/models/a%2Fb/infer", ["v2", "models", "a/b", "infer"]),
    ("/v1/models//a//:predict", "/v1/models/%2fa%2F%2f:predict", ["v1", "models", "/a//:predict"]),
    ("/v1/models/a/", "/v1/models/a%2F", ["v1", "models", "a/"]),
]


@pytest.mark.parametrize(("path", "raw_path", "segments"), PATHS)
@pytest.mark.parametrize(
    ("scope", "prefix"), [pytest.param(scope, prefix, id=name) for name, scope, prefix in HOSTS]
)
def test_segments_below_a_mount(
    scope: dict[str, str], prefix: str, path: str, raw_path: str, segments: list[str]
) -> None:
    said: dict[str, Any] = {key: value.replace("{}", path) for key, value in scope.items()}
    said["raw_path"] = scope["raw_path"].replace("{}", raw_path).encode()
    assert segments_below(said, prefix) == segments


@pytest.mark.parametrize(
    ("scope", "prefix", "segments"),
    [
        ({"path": "/"}, "", [""]),
        ({"path": ""}, "", []),
        ({"path": "/ml", "root_path": "/ml"}, "", []),
        ({"path": "/ml/", "root_path": "/ml"}, "", []),
        ({"path": "/ml/x", "root_path": "/ml"}, "", ["x"]),
        ({"path": "/mlx", "root_path": "/ml"}, "", ["mlx"]),
        ({"path": "/mlx"}, "/ml", ["mlx"]),
        ({"path": "/ml/ml/x", "root_path": "/ml"}, "", ["ml", "x"]),
        ({"path": "/ml/a/b", "raw_path": b"/ml/a%2Fb", "root_path": "/ml"}, "", ["a/b"]),
        ({"path": "/a/b", "raw_path": b"/a%2Fb"}, "", ["a/b"]),
        ({"path": "/x/", "raw_path": b"/x/"}, "", ["x", ""]),
        ({"path": "/x/", "raw_path": b"/x"}, "", ["x"]),
        ({"path": "/x", "raw_path": None}, "", ["x"]),
        ({"path": "/\ufffd", "raw_path": b"/%FF"}, "", ["\ufffd"]),
    ],
)
def test_the_edges_of_a_mount(scope: dict[str, Any], prefix: str, segments: list[str]) -> None:
    assert segments_below(scope, prefix) == segments


REWRITTEN: list[tuple[dict[str, Any], str, list[str]]] = [
    # what middleware has made of `path`, the prefix of the application, the segments
    ({"path": "/v1/models/m:predict", "raw_path": b"/invocations"}, "", ["v1", "models", "m:predict"]),
    ({"path": "/v1/models", "raw_path": b"/models"}, "", ["v1", "models"]),
    ({"path": "/models", "raw_path": b"/v1/models"}, "", ["models"]),  # a prefix is cut off
    ({"path": "/models", "raw_path": b"/v1models"}, "", ["models"]),
    ({"path": "/v1/b", "raw_path": b"/v1/a"}, "", ["v1", "b"]),
    ({"path": "/v1/B", "raw_path": b"/v1/b"}, "", ["v1", "B"]),
    ({"path": "/x/", "raw_path": b"/y"}, "", ["x", ""]),
    ({"path": "/v1/models", "raw_path": b"/v1/models/"}, "", ["v1", "models"]),  # a slash is cut off
    ({"path": "/v1/models", "raw_path": b"/v1//models"}, "", ["v1", "models"]),
    ({"path": "/", "raw_path": b"/x"}, "", [""]),
    ({"path": "/x", "raw_path": b"/"}, "", ["x"]),
    ({"path": "/x", "raw_path": b"/y?a=/x"}, "", ["x"]),
    ({"path": "/a/b", "raw_path": b"/c%2Fd"}, "", ["a", "b"]),
    ({"path": "/ml/x", "raw_path": b"/ml/y", "root_path": "/ml"}, "", ["x"]),
    ({"path": "/x", "raw_path": b"/ml/y", "root_path": "/ml"}, "", ["x"]),
    ({"path": "/ml/x", "raw_path": b"/y", "root_path": "/ml"}, "", ["x"]),
    ({"path": "/ml/x", "raw_path": b"/api/ml/x", "root_path": "/ml"}, "", ["x"]),
    ({"path": "/ml/x", "raw_path": b"/ml/y"}, "/ml", ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "prefix", "segments"), REWRITTEN)
def test_a_path_that_was_rewritten_alone_is_believed(
    scope: dict[str, Any], prefix: str, segments: list[str]
) -> None:
    assert segments_below(scope, prefix) == segments


@pytest.mark.parametrize("below", ["/v1/models", "/models"])  # as it is, or below a mount
@pytest.mark.parametrize(
    ("encoding", "errors"),
    [("utf-8", "replace"), ("utf-8", "surrogateescape"), ("latin-1", "strict")],
)
def test_how_a_host_decodes_does_not_matter(below: str, encoding: str, errors: str) -> None:
    for raw in (b"a\xff", "ä".encode()):
        path = f"{below}/{raw.decode(encoding, errors)}"
        raw_path = b"/v1/models/" + quote(raw).encode()
        segments = segments_below({"path": path, "raw_path": raw_path}, "")
        assert segments[-2:] == ["models", raw.decode("utf-8", "replace")]


def test_a_host_that_decodes_nothing() -> None:
    scope = {"path": "/models/a%2Fb", "raw_path": b"/v1/models/a%2Fb"}
    assert segments_below(scope, "") == ["models", "a/b"]


def test_a_path_of_slashes_is_read_once() -> None:
    raw_path = b"/" * 200_000  # looking for every prefix of it would take minutes
    assert segments_below({"path": "/x", "raw_path": raw_path}, "") == ["x"]
    assert len(segments_below({"path": raw_path.decode(), "raw_path": raw_path}, "")) == 200_000


def test_segments_are_split_before_they_are_decoded() -> None:
    assert segments_of(b"/a%2Fb/%C3%A4") == ["a/b", "ä"]
