"""The segments of a path below a mount, however a host describes it."""

from typing import Any

import pytest

from modelserve.wire.paths import segments_below

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
